"""Rule 2: a publish is confirmed or fails with the reason, and is never lost in silence."""

from __future__ import annotations

import threading
from dataclasses import replace
from queue import Queue
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.transport import Delivery, Message
from fedmq.schemas.errors import PublishError, PublishRejected, PublishTimeout, Unroutable
from tests.contract.world import WAIT_S, World, outcome
from tests.support.asking import ask_until


def test_a_confirmed_publish_is_in_its_queue(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    assert transport.publish(world.message("m1"), timeout_s=10).result(WAIT_S) is None
    world.await_depth(transport, queue, 1)


def test_ids_headers_and_body_survive(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    headers = {"text": "σ(τ) ≤ 1", "empty": "", "int": -(2**40), "yes": True, "no": False}
    message = world.message("id-1", correlation_id="task-1", headers=headers, body=bytes(range(256)))
    transport.publish(message).result(WAIT_S)
    delivery = world.consume(transport, queue).next()
    assert (delivery.queue, delivery.body) == (queue.name, bytes(range(256)))
    assert (delivery.message_id, delivery.correlation_id) == ("id-1", "task-1")
    assert {name: delivery.headers[name] for name in headers} == headers
    assert {name for name, value in delivery.headers.items() if isinstance(value, bool)} == {"yes", "no"}
    assert delivery.user_id
    assert (delivery.redelivered, delivery.delivery_count) == (False, 0)


def test_a_message_without_correlation_id_arrives_without(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    world.publish(transport, "m1")
    assert world.consume(transport, queue).next().correlation_id is None


def test_a_header_that_amqp_cannot_carry_fails_its_message_alone(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    wrong = transport.publish(world.message("wrong", headers={"loss": 0.5}))
    world.publish(transport, "right")
    with pytest.raises(PublishError, match="wrong"):
        wrong.result(WAIT_S)
    assert world.consume(transport, queue).next().message_id == "right"


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_any_bytes_like_body_arrives_as_bytes(world: World, wrap: type) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    transport.publish(replace(world.message("m1"), body=wrap(b"\x00tensor\xff"))).result(WAIT_S)
    delivery = world.consume(transport, queue).next()
    assert type(delivery.body) is bytes
    assert delivery.body == b"\x00tensor\xff"


@pytest.mark.parametrize("num_bytes", [0, 8 * 1024 * 1024])
def test_a_body_arrives_bit_for_bit(world: World, num_bytes: int) -> None:
    queue = world.queue("q", "quorum")
    transport = world.open("one", queue)
    body = np.random.default_rng(7).bytes(num_bytes)
    transport.publish(world.message("m1", body=body)).result(WAIT_S)
    assert world.consume(transport, queue).next().body == body


def test_a_routing_key_without_a_queue_is_unroutable(world: World) -> None:
    transport = world.open("one", world.queue())
    with pytest.raises(Unroutable, match="nobody"):
        transport.publish(world.message("m1", key="nobody")).result(WAIT_S)


def test_an_unknown_exchange_is_unroutable_and_spares_the_other_publishes(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    futures = [transport.publish(world.message(f"before-{i}")) for i in range(5)]
    wrong = transport.publish(Message(f"{world.prefix}.none", "q", b"", "wrong"))
    futures += [transport.publish(world.message(f"after-{i}")) for i in range(5)]
    assert outcome(wrong) is Unroutable
    assert [outcome(future) for future in futures] == [None] * 10


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_full_queue_rejects_and_takes_again_once_drained(world: World, kind: Any) -> None:
    queue = world.queue("q", kind, max_length=5, overflow="reject-publish")
    transport = world.open("one", queue)
    accepted = world.publish_until_rejected(transport, 100)
    assert len(accepted) >= 5  # a quorum queue tells its publishers a little late
    assert outcome(transport.publish(world.message("over"))) is PublishRejected
    received = world.consume(transport, queue, prefetch=200, then=transport.ack)
    assert [delivery.message_id for delivery in received.next_ones(len(accepted))] == accepted
    ask_until(lambda: outcome(transport.publish(world.message("next"))), lambda found: found is None)
    assert received.next().message_id == "next"


def test_a_publish_without_a_broker_fails_at_its_deadline_and_the_next_goes_through(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    world.down()
    late = transport.publish(world.message("late"), timeout_s=0.2)
    patient = transport.publish(world.message("patient"), timeout_s=WAIT_S)
    with pytest.raises(PublishTimeout, match="late"):
        late.result(WAIT_S)
    assert not patient.done()
    world.up()
    patient.result(WAIT_S)
    assert world.consume(transport, queue).next().message_id == "patient"


def test_a_publish_that_is_never_confirmed_fails_at_its_deadline(world: World) -> None:
    queue = world.queue()
    publisher, consumer = world.open("publisher", queue), world.open("consumer", queue)
    received = world.consume(consumer, queue)
    world.withhold_confirms("publisher")
    future = publisher.publish(world.message("m1"), timeout_s=0.2)
    assert outcome(future) is PublishTimeout
    assert received.next().message_id == "m1"  # it may or may not have arrived: here it has
    world.sever("publisher")


def test_publishes_whose_confirms_are_lost_are_sent_again_in_order(world: World) -> None:
    queue = world.queue()
    publisher, consumer = world.open("publisher", queue), world.open("consumer", queue)
    received = world.consume(consumer, queue)
    world.withhold_confirms("publisher")
    futures = [publisher.publish(world.message(message_id), timeout_s=WAIT_S) for message_id in ("1", "2", "3")]
    assert [delivery.message_id for delivery in received.next_ones(3)] == ["1", "2", "3"]
    assert not any(future.done() for future in futures)
    world.sever("publisher")
    assert [outcome(future) for future in futures] == [None] * 3
    assert [delivery.message_id for delivery in received.next_ones(3)] == ["1", "2", "3"]


def test_publishes_of_one_thread_keep_their_order(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    ids = [str(number) for number in range(300)]
    futures = [transport.publish(world.message(message_id)) for message_id in ids]
    assert [outcome(future) for future in futures] == [None] * 300
    received = world.consume(transport, queue, prefetch=50, then=transport.ack)
    assert [delivery.message_id for delivery in received.next_ones(300)] == ids


def test_four_threads_publish_at_once_and_all_arrives_once_in_their_orders(world: World) -> None:
    queue = world.queue("q", "quorum")
    publisher, consumer = world.open("publisher", queue), world.open("consumer", queue)
    received = world.consume(consumer, queue, prefetch=100, then=consumer.ack)
    errors: Queue[object] = Queue()

    def publish(thread: int) -> None:
        futures = [publisher.publish(world.message(f"{thread}.{number}")) for number in range(200)]
        for future in futures:
            errors.put(outcome(future))

    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    ids = [str(delivery.message_id) for delivery in received.next_ones(800)]
    for thread in threads:
        thread.join(WAIT_S)
    assert [errors.get(timeout=WAIT_S) for _ in range(800)] == [None] * 800
    for number in range(4):
        mine = [message_id for message_id in ids if message_id.startswith(f"{number}.")]
        assert mine == [f"{number}.{i}" for i in range(200)]
    assert received.empty()


def test_a_delivery_callback_may_publish_and_settle(world: World) -> None:
    ping, pong = world.queue("ping"), world.queue("pong")
    transport = world.open("one", ping, pong)

    def answer(delivery: Delivery) -> None:
        transport.publish(world.message(f"re-{delivery.message_id}", key="pong"))
        assert transport.ack(delivery)

    asked = world.consume(transport, ping, prefetch=1, then=answer)
    answers = world.consume(transport, pong, then=transport.ack)
    world.publish(transport, "a", "b", "c", key="ping")
    assert [delivery.message_id for delivery in asked.next_ones(3)] == ["a", "b", "c"]
    assert [delivery.message_id for delivery in answers.next_ones(3)] == ["re-a", "re-b", "re-c"]


def test_a_future_s_callback_may_publish(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    transport.publish(world.message("first")).add_done_callback(lambda _: transport.publish(world.message("second")))
    received = world.consume(transport, queue)
    assert [delivery.message_id for delivery in received.next_ones(2)] == ["first", "second"]
