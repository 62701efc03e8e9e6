"""Declaring, depth, and closing."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Transport
from fedmq.schemas.errors import BrokerError, TopologyConflict, TransportClosed, Unroutable
from tests.contract.world import WAIT_S, States, World, outcome
from tests.support.asking import ask_until


def test_declaring_again_changes_nothing(world: World) -> None:
    queue = world.queue_to_dead("q", "quorum", max_length=10, delivery_limit=3, message_ttl_s=60.0)
    one = world.open("one", world.dead_queue, queue)
    world.publish(one, "1", "2")
    two = world.open("two", world.dead_queue, queue)
    world.await_depth(two, queue, 2)
    world.publish(one, "3")
    world.await_depth(two, queue, 3)


@pytest.mark.parametrize(
    ("before", "after", "argument"),
    [
        ({"max_length": 3}, {"max_length": 4}, "x-max-length"),
        ({"message_ttl_s": 60.0}, {}, "x-message-ttl"),
        ({}, {"kind": "quorum"}, "x-queue-type"),
        ({"max_length": 3}, {"max_length": 3, "overflow": "reject-publish"}, "x-overflow"),
    ],
    ids=["changed", "removed", "kind", "overflow"],
)
def test_other_arguments_than_the_queue_s_are_a_conflict(
    world: World, before: dict[str, Any], after: dict[str, Any], argument: str
) -> None:
    world.open("one", world.queue(**before))
    with pytest.raises(TopologyConflict) as caught:
        world.open("two", world.queue(**after))
    assert world.queue().name in str(caught.value)
    assert argument.removeprefix("x-queue-") in str(caught.value)


def test_the_federation_s_own_topology_can_be_declared(world: World) -> None:
    topology = Topology(prefix=world.prefix, updates_max_bytes=10_000)
    transport = world.make_transport("one")
    transport.open(topology.exchanges, (*topology.shared_queues, topology.participant("p1")), timeout_s=WAIT_S)
    assert transport.depth(topology.updates.name) == 0
    transport.close()
    for queue in (*topology.shared_queues, topology.participant("p1")):
        world.delete_queue(queue)


def test_depth_counts_what_is_ready(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    assert transport.depth(queue.name) == 0
    world.publish(transport, "1", "2", "3")
    world.await_depth(transport, queue, 3)
    world.consume(transport, queue, prefetch=1).next()
    world.await_depth(transport, queue, 2)


def test_the_depth_of_an_unknown_queue_is_an_error_that_names_it(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    with pytest.raises(BrokerError, match="nowhere"):
        transport.depth(f"{world.prefix}.nowhere")
    world.publish(transport, "m1")  # the connection took no harm


def test_a_queue_goes_away_after_its_time_without_consumers(world: World) -> None:
    queue = world.queue(expires_s=0.3)
    transport = world.open("one", world.queue("other"), queue)
    ask_until(lambda: outcome(transport.publish(world.message("m"))), lambda found: found is Unroutable)


def test_closing_returns_what_is_unsettled(world: World) -> None:
    queue = world.queue()
    one, two = world.open("one", queue), world.open("two", queue)
    held = world.consume(one, queue, prefetch=2)
    world.publish(two, "1", "2", "3")
    first, _ = held.next_ones(2)
    one.close()
    assert one.ack(first) is False
    again = world.consume(two, queue).next_ones(3)
    assert [(delivery.message_id, delivery.redelivered) for delivery in again] == [
        ("1", True),
        ("2", True),
        ("3", False),
    ]


def test_closing_sends_first_what_was_handed_over(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    futures = [transport.publish(world.message(str(number))) for number in range(100)]
    transport.close(WAIT_S)
    assert all(future.done() for future in futures)
    assert [outcome(future) for future in futures] == [None] * 100
    world.await_depth(world.open("two", queue), queue, 100)


def test_closing_settles_first_what_was_acked(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    received = world.consume(transport, queue, prefetch=100)
    world.publish(transport, *(str(number) for number in range(30)))
    for delivery in received.next_ones(30):
        assert transport.ack(delivery)
    transport.close()
    world.await_depth(world.open("two", queue), queue, 0)


def test_closing_without_a_broker_fails_what_could_not_be_sent(world: World) -> None:
    states = States()
    transport = world.open("one", world.queue(), on_state=states.put)
    world.down()
    states.wait_for("disconnected")
    future = transport.publish(world.message("m1"), timeout_s=WAIT_S)
    deleted = transport.delete_queue(world.queue().name)
    transport.close(0.2)
    assert outcome(future) is TransportClosed
    assert isinstance(deleted.exception(0), TransportClosed)


def start_closing(transport: Transport, world: World) -> threading.Thread:
    closing = threading.Thread(target=transport.close, args=(WAIT_S,))
    closing.start()
    ask_until(lambda: transport.publish(world.message("late")), is_refused)
    return closing


def is_refused(late: Future[None]) -> bool:
    return late.done() and isinstance(late.exception(), TransportClosed)


def test_closing_finishes_over_a_new_connection_what_a_lost_one_cut_off(world: World) -> None:
    queue, doomed = world.queue("q"), world.queue("doomed")
    states = States()
    one, two = world.open("one", queue, on_state=states.put), world.open("two", queue)
    received = world.consume(two, queue)
    one.declare(doomed).result(WAIT_S)
    world.withhold_confirms("one")
    sent, deleted = one.publish(world.message("m1")), one.delete_queue(doomed.name)
    closing = start_closing(one, world)
    assert not sent.done()
    world.sever("one")
    closing.join(WAIT_S)
    assert (outcome(sent), deleted.result(0)) == (None, 0)
    assert received.next().message_id == "m1"
    assert outcome(two.publish(world.message("m2", "doomed"))) is Unroutable
    assert states.get_nowait().name == "connected"
    assert states.empty(), "nobody hears of a connection that was lost while closing"


def test_closing_waits_for_a_broker_that_is_away_as_long_as_it_may(world: World) -> None:
    queue, doomed = world.queue("q"), world.queue("doomed")
    states = States()
    one, two = world.open("one", queue, on_state=states.put), world.open("two", queue)
    one.declare(doomed).result(WAIT_S)
    world.down()
    states.wait_for("disconnected")
    sent, deleted = one.publish(world.message("m1")), one.delete_queue(doomed.name)
    closing = start_closing(one, world)
    assert closing.is_alive()
    world.up()
    closing.join(WAIT_S)
    assert (outcome(sent), deleted.result(0)) == (None, 0)
    assert outcome(two.publish(world.message("m2", "doomed"))) is Unroutable


def test_nothing_works_after_closing_but_closing(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    transport.close()
    transport.close()
    assert outcome(transport.publish(world.message("m1"))) is TransportClosed
    with pytest.raises(TransportClosed):
        transport.consume(queue.name, print, 1)
    with pytest.raises(TransportClosed):
        transport.depth(queue.name)


def test_closing_from_a_callback_does_not_hang(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    received = world.consume(transport, queue, then=lambda _: transport.close())
    world.publish(transport, "m1")
    assert received.next().message_id == "m1"
    ask_until(lambda: outcome(transport.publish(world.message("m2"))), lambda found: found is TransportClosed)


def test_a_transport_that_was_never_opened_can_be_closed(world: World) -> None:
    transport = world.make_transport("one")
    transport.close()
    assert outcome(transport.publish(world.message("m1"))) is TransportClosed
