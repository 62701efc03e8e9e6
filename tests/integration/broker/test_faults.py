"""Faults of the broker: it is killed, it blocks publishers, it loses a queue."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.transport import Delivery
from fedmq.schemas.errors import PublishTimeout, TransportClosed
from tests.integration.broker.traffic import WAIT_S, Corner, News, alive
from tests.support.asking import ask_until

pytestmark = pytest.mark.broker
MESSAGES = 400


def test_a_broker_killed_in_mid_traffic_loses_nothing(node: PrivateNode, prefix: str) -> None:
    corner, news = Corner(prefix), News()
    publisher = corner.open(node.url, name="publisher")
    consumer = corner.open(node.url, news, name="consumer")

    def take(delivery: Delivery) -> None:
        news.on_delivery(delivery)
        consumer.ack(delivery)

    node.flush_new_queues()
    consumer.consume(corner.queue.name, take, prefetch=8)
    futures = [publisher.publish(corner.message(str(n), b"x" * 50_000), timeout_s=60.0) for n in range(MESSAGES)]
    futures[MESSAGES // 4].result(WAIT_S)
    killed = node.pid
    assert killed is not None
    node.kill()

    assert not alive(killed)
    assert node.pid is None
    unconfirmed = sum(not future.done() for future in futures)
    assert unconfirmed > 0, "killed in mid-traffic: some publishes are still open"
    lost = news.wait_for_state("disconnected")
    assert str(node.port) in lost.detail

    node.start()
    assert node.pid not in (None, killed)
    assert [future.exception(60.0) for future in futures] == [None] * MESSAGES
    news.wait_for(lambda found: len(found.ids) == MESSAGES)
    assert news.count("connected") == 2
    publisher.close()
    consumer.close()


def test_a_delivery_of_the_connection_before_is_stale(node: PrivateNode, prefix: str) -> None:
    corner, news = Corner(prefix), News()
    transport = corner.open(node.url, news)
    transport.publish(corner.message("1")).result(WAIT_S)
    transport.consume(corner.queue.name, news.on_delivery, prefetch=1)
    news.wait_for(lambda found: len(found.deliveries) == 1)
    node.flush_new_queues()
    node.stop()
    news.wait_for_state("disconnected")
    assert transport.ack(news.deliveries[0]) is False
    waiting = transport.publish(corner.message("2"), timeout_s=60.0)
    short = transport.publish(corner.message("3"), timeout_s=0.1)
    assert isinstance(short.exception(WAIT_S), PublishTimeout)
    node.start()
    assert waiting.exception(60.0) is None
    news.wait_for(lambda found: len(found.deliveries) == 2)
    again = news.deliveries[1]
    assert (again.message_id, again.redelivered) == ("1", True)
    assert transport.ack(again) is True
    news.wait_for(lambda found: len(found.deliveries) == 3)
    assert news.deliveries[2].message_id == "2"
    transport.close()


def test_a_memory_alarm_holds_publishers_back_while_consumers_go_on(rabbitmq_node: PrivateNode, prefix: str) -> None:
    corner, news = Corner(prefix), News()
    transport = corner.open(rabbitmq_node.url, news)
    for n in range(20):
        transport.publish(corner.message(f"before {n}")).result(WAIT_S)
    rabbitmq_node.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        held = transport.publish(corner.message("held"), timeout_s=120.0)
        blocked = news.wait_for_state("blocked")
        assert "memory" in blocked.detail
        assert isinstance(transport.publish(corner.message("late"), timeout_s=0.2).exception(WAIT_S), PublishTimeout)
        transport.consume(corner.queue.name, news.on_delivery, prefetch=3)
        for n in range(20):
            news.wait_for(lambda found, n=n: len(found.deliveries) > n)  # type: ignore[misc]
            assert transport.ack(news.deliveries[n])
        assert not held.done()
    finally:
        rabbitmq_node.ctl("set_vm_memory_high_watermark", "0.5")
    news.wait_for_state("unblocked")
    assert held.exception(WAIT_S) is None
    news.wait_for(lambda found: "held" in found.ids)
    assert "late" not in news.ids
    assert news.count("disconnected") == 0
    transport.close()


def test_a_queue_deleted_under_its_consumer_is_declared_and_consumed_again(
    rabbitmq_node: PrivateNode, prefix: str
) -> None:
    corner, news = Corner(prefix), News()
    transport = corner.open(rabbitmq_node.url, news)
    transport.consume(corner.queue.name, news.on_delivery, prefetch=5)
    transport.publish(corner.message("1")).result(WAIT_S)
    news.wait_for(lambda found: len(found.deliveries) == 1)
    rabbitmq_node.ctl("delete_queue", corner.queue.name)
    lost = news.wait_for_state("consumer_lost")
    assert corner.queue.name in lost.detail
    assert transport.ack(news.deliveries[0]) is False
    ask_until(lambda: transport.publish(corner.message("2")).exception(WAIT_S) is None)
    news.wait_for(lambda found: "2" in found.ids)
    assert news.count("disconnected") == 0
    transport.close()


def test_what_was_handed_over_behind_a_job_that_raises_is_done_all_the_same(
    rabbitmq_node: PrivateNode, prefix: str
) -> None:
    corner, news, go_on = Corner(prefix), News(), threading.Event()
    transport = corner.open(rabbitmq_node.url, news)

    def wait() -> None:
        assert go_on.wait(WAIT_S)

    def fail() -> None:
        raise ZeroDivisionError

    for job in (wait, fail):
        transport._enter(job)
    behind = transport.publish(corner.message("1"))
    go_on.set()
    news.wait_for_state("disconnected")
    assert behind.exception(WAIT_S) is None
    transport.close()


def test_close_ends_in_time_with_a_broker_that_is_frozen(node: PrivateNode, prefix: str) -> None:
    corner = Corner(prefix)
    transport = corner.open(node.url, name="frozen")
    assert node.pid is not None
    os.kill(node.pid, signal.SIGSTOP)
    try:
        future = transport.publish(corner.message("1"))
        transport.close(timeout_s=0.2)
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert isinstance(future.exception(0), TransportClosed)
    assert not [thread for thread in threading.enumerate() if thread.name == "fedmq-frozen"]
