"""The fate of messages that nobody consumes: rejected, poisonous, expired, or too many."""

from __future__ import annotations

from typing import Any

import pytest

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery
from tests.contract.world import World

KINDS = pytest.mark.parametrize("kind", ["classic", "quorum"])


def death(delivery: Delivery) -> tuple[Any, Any]:
    """Return queue and reason of the latest death, as RabbitMQ writes them."""
    deaths: Any = delivery.headers["x-death"]
    assert deaths[0]["count"] == 1
    return deaths[0]["queue"], deaths[0]["reason"]


@KINDS
def test_a_rejected_message_goes_to_the_dead_letter_exchange(world: World, kind: Any) -> None:
    queue = world.queue_to_dead("q", kind)
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    received = world.consume(transport, queue)
    transport.publish(world.message("m1", body=b"bad", correlation_id="t1", headers={"kind": "update"}))
    assert transport.nack(received.next(), requeue=False) is True
    delivery = dead.next()
    assert (delivery.message_id, delivery.correlation_id, delivery.body) == ("m1", "t1", b"bad")
    assert delivery.headers["kind"] == "update"
    assert death(delivery) == (queue.name, "rejected")
    world.await_depth(transport, queue, 0)


def test_a_rejected_message_without_a_dead_letter_exchange_is_gone(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    received = world.consume(transport, queue, prefetch=1)
    world.publish(transport, "1", "2")
    assert transport.nack(received.next(), requeue=False) is True
    assert received.next().message_id == "2"
    transport.close()
    other = world.open("two", queue)
    assert world.consume(other, queue, then=other.ack).next().message_id == "2"
    world.await_depth(other, queue, 0)


def test_dead_letter_publishes_a_copy_with_its_reason_and_acks(world: World) -> None:
    queue = world.queue("q", "quorum")
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    received = world.consume(transport, queue, prefetch=1)
    transport.publish(world.message("m1", body=b"nan", correlation_id="t1", headers={"schema_version": 1}))
    transport.dead_letter(received.next(), world.dead_exchange.name, "not_finite", "NaN in dense/kernel")
    copy = dead.next()
    assert (copy.message_id, copy.correlation_id, copy.body) == ("m1", "t1", b"nan")
    wanted = {
        "schema_version": 1,
        "reason": "not_finite",
        "detail": "NaN in dense/kernel",
        "from_queue": queue.name,
    }
    assert {name: copy.headers.get(name) for name in wanted} == wanted
    world.publish(transport, "m2")
    assert received.next().message_id == "m2"  # with a prefetch of 1: the original was settled
    transport.close()
    other = world.open("two", queue)
    assert world.consume(other, queue).next().message_id == "m2"


def test_a_message_that_was_dead_lettered_before_keeps_its_history(world: World) -> None:
    queue = world.queue_to_dead()
    transport = world.open("one", world.dead_queue, queue)
    received = world.consume(transport, queue)
    dead = world.consume(transport, world.dead_queue, prefetch=1)
    world.publish(transport, "m1")
    transport.nack(received.next(), requeue=False)
    transport.dead_letter(dead.next(), world.dead_exchange.name, "malformed", "still")
    copy = dead.next()
    assert copy.headers["reason"] == "malformed"
    assert death(copy) == (queue.name, "rejected")


def test_what_cannot_be_dead_lettered_is_given_back(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)  # no queue is bound to the dead exchange
    received = world.consume(transport, queue, prefetch=1)
    world.publish(transport, "m1")
    transport.dead_letter(received.next(), world.dead_exchange.name, "malformed", "")
    again = received.next()
    assert (again.message_id, again.redelivered) == ("m1", True)


def test_a_poison_message_is_dead_after_its_delivery_limit(world: World) -> None:
    queue = world.queue_to_dead("q", "quorum", delivery_limit=2)
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    counts = []

    def give_back(delivery: Delivery) -> None:
        counts.append(delivery.delivery_count)
        transport.nack(delivery)

    received = world.consume(transport, queue, then=give_back)
    world.publish(transport, "poison")
    delivery = dead.next()
    assert delivery.message_id == "poison"
    assert death(delivery) == (queue.name, "delivery_limit")
    assert counts == [0, 1, 2]
    assert received.qsize() == 3


def test_a_dead_message_can_be_looked_at_more_often_than_rabbitmq_4_s_own_limit(world: World) -> None:
    queue = world.queue("q", "quorum", delivery_limit=Topology().dead.delivery_limit)
    transport = world.open("one", queue)
    received = world.consume(transport, queue, prefetch=1)
    world.publish(transport, "poison")
    for count in range(30):  # RabbitMQ 4 drops a message at 20 if its queue has no limit of its own
        delivery = received.next()
        assert delivery.delivery_count == count
        assert transport.nack(delivery)
    assert received.next().message_id == "poison"


@KINDS
def test_drop_head_keeps_the_newest(world: World, kind: Any) -> None:
    queue = world.queue_to_dead("q", kind, max_length=3, overflow="drop-head")
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    world.publish(transport, "1", "2", "3", "4", "5")
    dropped = dead.next_ones(2)
    assert [delivery.message_id for delivery in dropped] == ["1", "2"]
    assert [death(delivery) for delivery in dropped] == [(queue.name, "maxlen")] * 2
    world.await_depth(transport, queue, 3)
    kept = world.consume(transport, queue).next_ones(3)
    assert [delivery.message_id for delivery in kept] == ["3", "4", "5"]


def test_drop_head_counts_bytes_too(world: World) -> None:
    queue = world.queue_to_dead(max_length_bytes=250)
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    for message_id in ("1", "2", "3"):
        transport.publish(world.message(message_id, body=bytes(100)))
    assert dead.next().message_id == "1"
    world.await_depth(transport, queue, 2)


def test_unsettled_messages_do_not_count_towards_the_length(world: World) -> None:
    queue = world.queue_to_dead(max_length=1)
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    received = world.consume(transport, queue, prefetch=2)
    for message_id in "12":  # one after the other, so that the second does not push the first out before its delivery
        world.publish(transport, message_id)
        received.next()
    world.publish(transport, "3", "4")
    assert dead.next().message_id == "3"
    world.await_depth(transport, queue, 1)


@KINDS
def test_a_message_lives_as_long_as_its_queue_s_ttl(world: World, kind: Any) -> None:
    queue = world.queue("q", kind, message_ttl_s=0.5)  # longer than a busy broker takes to start a consumer
    transport = world.open("one", queue)
    world.publish(transport, "1", "2")
    world.await_depth(transport, queue, 0)
    received = world.consume(transport, queue)
    world.publish(transport, "3")
    assert received.next().message_id == "3"


@KINDS
def test_an_expired_message_is_dead_lettered(world: World, kind: Any) -> None:
    queue = world.queue_to_dead("q", kind)
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    transport.publish(world.message("short", expiration_s=0.05))
    world.publish(transport, "long")
    delivery = dead.next()
    assert delivery.message_id == "short"
    assert death(delivery) == (queue.name, "expired")
    assert world.consume(transport, queue).next().message_id == "long"


def test_a_message_expires_only_at_the_head(world: World) -> None:
    queue = world.queue_to_dead()
    transport = world.open("one", world.dead_queue, queue)
    dead = world.consume(transport, world.dead_queue)
    transport.publish(world.message("head", expiration_s=0.4))
    transport.publish(world.message("behind", expiration_s=0.01))
    assert [delivery.message_id for delivery in dead.next_ones(2)] == ["head", "behind"]
