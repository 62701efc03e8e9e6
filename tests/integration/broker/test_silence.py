"""RabbitMQ never answers a question, although its connection lives."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from fedmq.broker_config.amqp import answers as amqp_answers
from fedmq.broker_config.amqp import keeper
from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.schemas.errors import BrokerUnavailable
from fedmq.schemas.local.backoff import Backoff
from tests.chaos.proxy import Proxy
from tests.integration.broker.traffic import WAIT_S, Corner, News

pytestmark = pytest.mark.broker


@pytest.fixture
def deaf(rabbitmq_node: PrivateNode) -> Any:
    proxy = Proxy(rabbitmq_node.port)
    yield proxy
    proxy.close()


def mute_once(proxy: Proxy, method: bytes, name: str) -> threading.Event:
    """Hold back all answers on one connection, from the method (its class and number) on that names this queue."""
    done = threading.Event()

    def on_up(connection: Any, data: bytes) -> None:
        if method in data and name.encode() in data and not done.is_set():
            connection.mute.add("down")
            done.set()

    proxy.on_up = on_up
    return done


DECLARE, DELETE = b"\x00\x32\x00\x0a", b"\x00\x32\x00\x28"


def test_a_declaration_that_is_never_answered_is_made_again_on_a_new_connection(
    rabbitmq_node: PrivateNode,
    deaf: Proxy,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(amqp_answers, "ANSWER_S", 0.5)
    corner, news = Corner(prefix), News()
    muted = mute_once(deaf, DECLARE, corner.queue.name)
    with caplog.at_level(logging.WARNING, "fedmq.broker_config"):
        transport = corner.open(rabbitmq_node.url_for(port=deaf.port), news)
    assert muted.is_set()
    assert f"has not answered the declaration of queue {corner.queue.name!r} for 0.5 s" in caplog.text
    assert transport.publish(corner.message("1")).exception(WAIT_S) is None
    transport.close()


def test_a_deletion_that_is_never_answered_fails_alone(
    rabbitmq_node: PrivateNode, deaf: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_answers, "ANSWER_S", 0.5)
    corner = Corner(prefix)
    transport = AmqpTransport(rabbitmq_node.url_for(port=deaf.port), name="deaf", backoff=Backoff(0.05, 0.1))
    transport.open((corner.exchange,), (corner.queue,), timeout_s=WAIT_S)
    muted = mute_once(deaf, DELETE, f"{prefix}.stuck")
    error = transport.delete_queue(f"{prefix}.stuck", timeout_s=3600.0).exception(WAIT_S)
    assert muted.is_set()
    assert isinstance(error, BrokerUnavailable)
    assert "has not answered the deletion of queue" in str(error)
    assert transport.publish(corner.message("1")).exception(WAIT_S) is None, "the publishing connection is another"
    transport.close()


def test_a_consumer_that_the_broker_dropped_without_a_word_is_there_again(
    rabbitmq_node: PrivateNode, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ does that if a queue is deleted, and declared again before the consumer's channel hears of it."""
    monkeypatch.setattr(keeper, "KEEP_S", 0.1)
    corner, news = Corner(prefix), News()
    transport = corner.open(rabbitmq_node.url, news)
    transport.consume(corner.queue.name, news.on_delivery, prefetch=8)
    assert transport.publish(corner.message("1")).exception(WAIT_S) is None
    news.wait_for(lambda news: news.ids == {"1"})
    transport.ack(news.deliveries[0])
    consumer = transport._consumers._by_queue[corner.queue.name]
    channel = consumer.confirmed_on
    transport._loop.add_callback_threadsafe(lambda: channel.basic_cancel(channel.consumer_tags[0]))
    news.wait_for_state("consumer_lost")
    assert transport.publish(corner.message("2")).exception(WAIT_S) is None
    news.wait_for(lambda news: "2" in news.ids)
    transport.close()
