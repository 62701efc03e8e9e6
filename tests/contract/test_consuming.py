"""Deliveries: order, prefetch, settling, redelivery, sharing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fedmq.broker_config.transport import Delivery
from tests.contract.world import Received, States, World


def test_deliveries_come_in_the_order_of_publishing(world: World) -> None:
    queue = world.queue("q", "quorum")
    transport = world.open("one", queue)
    received = world.consume(transport, queue, prefetch=3, then=transport.ack)
    ids = [str(number) for number in range(50)]
    world.publish(transport, *ids)
    assert [delivery.message_id for delivery in received.next_ones(50)] == ids


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_an_acked_message_never_comes_again(world: World, kind: Any) -> None:
    queue = world.queue("q", kind)
    first, second = world.open("first", queue), world.open("second", queue)
    world.publish(first, "m1", "m2")
    m1, m2 = world.consume(first, queue).next_ones(2)
    assert first.ack(m1) is True
    first.close()
    again = world.consume(second, queue).next()
    assert (again.message_id, m2.message_id) == ("m2", "m2")
    assert second.ack(again)
    world.await_depth(second, queue, 0)


def test_a_delivery_is_settled_once(world: World) -> None:
    queue = world.queue_to_dead()
    transport = world.open("one", world.dead_queue, queue)
    received = world.consume(transport, queue)
    world.publish(transport, "m1", "m2")
    m1, m2 = received.next_ones(2)
    assert transport.ack(m1) is True
    assert [transport.ack(m1), transport.nack(m1), transport.nack(m1, requeue=False)] == [False] * 3
    assert transport.ack(m2) is True  # the connection took no harm


def test_deliveries_may_be_settled_in_any_order(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    received = world.consume(transport, queue, prefetch=3)
    world.publish(transport, "1", "2", "3", "4")
    one, two, three = received.next_ones(3)
    assert transport.ack(three)
    assert received.next().message_id == "4"
    transport.close()
    other = world.open("two", queue)
    left = world.consume(other, queue).next_ones(3)
    assert [(delivery.message_id, delivery.redelivered) for delivery in left] == [("1", True), ("2", True), ("4", True)]
    assert (one.message_id, two.message_id) == ("1", "2")


def test_a_nacked_message_of_a_classic_queue_comes_again_in_its_place(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    world.publish(transport, "1", "2", "3")
    received = world.consume(transport, queue, prefetch=1)
    first = received.next()
    assert not first.redelivered
    assert transport.nack(first) is True
    order = []
    for _ in range(3):
        delivery = received.next()
        order.append((delivery.message_id, delivery.redelivered, delivery.delivery_count))
        assert transport.ack(delivery)
    assert order == [("1", True, 0), ("2", False, 0), ("3", False, 0)]


def test_a_quorum_queue_counts_deliveries(world: World) -> None:
    queue = world.queue("q", "quorum")
    transport = world.open("one", queue)
    world.publish(transport, "1")
    received = world.consume(transport, queue, prefetch=1)
    seen = []
    for _ in range(3):
        delivery = received.next()
        seen.append((delivery.message_id, delivery.redelivered, delivery.delivery_count))
        assert transport.nack(delivery)
    assert seen == [("1", False, 0), ("1", True, 1), ("1", True, 2)]


def test_prefetch_holds_back_until_an_ack(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    received = world.consume(transport, queue, prefetch=2)
    world.publish(transport, "1", "2", "3", "4")
    one, two = received.next_ones(2)
    world.await_depth(transport, queue, 2)
    assert received.empty()
    assert transport.ack(one)
    assert received.next().message_id == "3"
    world.await_depth(transport, queue, 1)
    assert transport.nack(two, requeue=False)
    assert received.next().message_id == "4"


def test_prefetch_counts_for_each_consumer_alone(world: World) -> None:
    narrow, wide = world.queue("narrow"), world.queue("wide")
    transport = world.open("one", narrow, wide)
    held = world.consume(transport, narrow, prefetch=1)
    flowing = world.consume(transport, wide, prefetch=5)
    world.publish(transport, "1", "2", key="narrow")
    world.publish(transport, "a", "b", "c", "d", "e", key="wide")
    assert [delivery.message_id for delivery in flowing.next_ones(5)] == ["a", "b", "c", "d", "e"]
    assert held.next().message_id == "1"
    world.await_depth(transport, narrow, 1)


def test_two_consumers_share_a_queue(world: World) -> None:
    queue = world.queue()
    first, second = world.open("first", queue), world.open("second", queue)
    mine, yours = world.consume(first, queue, prefetch=1), world.consume(second, queue, prefetch=1)
    world.publish(first, "1", "2")
    assert {mine.next().message_id, yours.next().message_id} == {"1", "2"}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_single_active_consumer_has_the_queue_alone_until_it_leaves(world: World, kind: Any) -> None:
    queue = world.queue("q", kind, single_active_consumer=True)
    first = world.open("first", queue)
    mine = world.consume(first, queue, prefetch=1)
    world.publish(first, "1")
    held = mine.next()  # the first consumer is the active one
    second = world.open("second", queue)
    yours = world.consume(second, queue, prefetch=5)
    world.publish(first, "2", "3")
    assert first.ack(held)
    assert mine.next().message_id == "2"
    assert yours.empty()
    first.close()
    # The order differs: "2" is first in a classic queue of RabbitMQ 3.10, "3" in a quorum queue and in RabbitMQ 4.
    left = {delivery.message_id: delivery.redelivered for delivery in yours.next_ones(2)}
    assert left == {"2": True, "3": False}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_token_that_is_given_back_stays_with_the_single_active_consumer_and_goes_on_when_it_is_cut_off(
    world: World, kind: Any
) -> None:
    """The behaviour that coordinator.service.leading.leadership relies on, with the very queue that it uses."""
    delivery_limit = 1_000_000 if kind == "quorum" else None
    queue = world.queue("q", kind, max_length=1, delivery_limit=delivery_limit, single_active_consumer=True)
    states = States()
    first, second = world.open("first", queue, on_state=states.put), world.open("second", queue)
    mine = world.consume(first, queue, prefetch=1)
    world.publish(first, "token")
    held = mine.next()
    yours = world.consume(second, queue, prefetch=1)
    world.publish(second, "asked", "asked again")  # one message too many: the head is dropped
    world.await_depth(second, queue, 1)
    for _ in range(3):
        assert first.nack(held)
        held = mine.next()
    assert yours.empty()
    world.sever("first")
    yours.next()
    states.wait_for("disconnected")
    assert not first.nack(held)
    assert mine.empty()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_lost_consumer_s_deliveries_go_to_another(world: World, kind: Any) -> None:
    queue = world.queue("q", kind)
    lost, other = world.open("lost", queue), world.open("other", queue)
    received = world.consume(lost, queue, prefetch=2)
    world.publish(other, "1", "2")
    received.next_ones(2)
    taken_over = world.consume(other, queue, then=other.ack)
    world.publish(other, "3")
    assert taken_over.next().message_id == "3"
    lost.close()
    again = taken_over.next_ones(2)
    assert [(delivery.message_id, delivery.redelivered) for delivery in again] == [("1", True), ("2", True)]


def test_a_settlement_after_a_reconnect_is_stale(world: World) -> None:
    queue = world.queue("q", "quorum")
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    states.wait_for("connected")
    received = world.consume(transport, queue)
    world.publish(transport, "m1")
    stale = received.next()
    world.sever("one")
    states.wait_for("connected")
    fresh = received.next()
    assert (fresh.message_id, fresh.redelivered, fresh.delivery_count) == ("m1", True, 1)
    assert [transport.ack(stale), transport.nack(stale), transport.nack(stale, requeue=False)] == [False] * 3
    assert transport.ack(fresh) is True
    world.await_depth(transport, queue, 0)


def test_callbacks_run_on_one_thread_of_the_transport_s_own(world: World) -> None:
    a, b = world.queue("a"), world.queue("b")
    idents: set[int] = set()
    transport = world.open("one", a, b, on_state=lambda _: idents.add(threading.get_ident()))
    received = Received()

    def note(delivery: Delivery) -> None:
        idents.add(threading.get_ident())
        received.put(delivery)

    transport.consume(a.name, note, 10)
    transport.consume(b.name, note, 10)
    world.publish(transport, "1", key="a")
    world.publish(transport, "2", key="b")
    received.next_ones(2)
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_a_callback_that_raises_loses_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    received = Received()

    def fragile(delivery: Delivery) -> None:
        received.put(delivery)
        if delivery.message_id == "1" and not delivery.redelivered:
            raise ZeroDivisionError("of the test")

    transport.consume(queue.name, fragile, 10)
    world.publish(transport, "1", "2")
    deliveries = received.next_ones(3)
    assert [(delivery.message_id, delivery.redelivered) for delivery in deliveries] == [
        ("1", False),
        ("2", False),
        ("1", True),
    ]
    assert transport.ack(deliveries[0]) is False
    assert transport.ack(deliveries[2]) is True
    assert "ZeroDivisionError" in caplog.text


def test_consuming_a_queue_again_replaces_its_consumer(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    former = world.consume(transport, queue, prefetch=1)
    world.publish(transport, "1", "2")
    held = former.next()
    latter = world.consume(transport, queue, prefetch=5)
    taken_over = latter.next_ones(2)
    assert [(delivery.message_id, delivery.redelivered) for delivery in taken_over] == [("1", True), ("2", False)]
    assert transport.ack(held) is False
    assert former.empty()
