"""Rules 2 to 4 across lost connections, an absent broker and deleted queues."""

from __future__ import annotations

import threading
from queue import Queue

import pytest

from fedmq.schemas.errors import BrokerUnavailable, TransportClosed
from tests.contract.world import WAIT_S, States, World, outcome
from tests.support.asking import ask_until


def test_a_severed_transport_tells_and_consumes_again(world: World) -> None:
    queue = world.queue()
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    received = world.consume(transport, queue, then=transport.ack)
    world.publish(transport, "before")
    assert received.next().message_id == "before"
    for turn in range(3):
        world.sever("one")
        states.wait_for("disconnected")
        states.wait_for("connected")
        world.publish(transport, f"after-{turn}")
        ask_until(received.next, lambda found, turn=turn: found.message_id == f"after-{turn}")


def test_a_transport_reconnects_when_it_is_asked_and_loses_nothing(world: World) -> None:
    queue = world.queue("q", "quorum")
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    received = world.consume(transport, queue)
    states.wait_for("connected")
    world.publish(transport, "held")
    held = received.next()
    ids = [str(number) for number in range(20)]
    futures = [transport.publish(world.message(message_id), timeout_s=WAIT_S) for message_id in ids]
    transport.reconnect("the test asks for it")
    states.wait_for("disconnected")
    states.wait_for("connected")
    assert transport.ack(held) is False  # of the connection before
    assert [outcome(future) for future in futures] == [None] * 20
    wanted = {"held", *ids}
    while wanted:
        delivery = received.next()
        wanted.discard(delivery.message_id or "")
        transport.ack(delivery)


def test_severing_one_spares_the_others(world: World) -> None:
    queue = world.queue()
    states = States()
    one, two = world.open("one", queue), world.open("two", queue, on_state=states.put)
    states.wait_for("connected")
    received = world.consume(two, queue)
    world.publish(one, "m1")
    held = received.next()
    world.sever("one")
    world.publish(one, "m2")
    assert received.next().message_id == "m2"
    assert two.ack(held) is True
    assert states.empty()


def test_publishes_made_while_the_broker_is_away_arrive_in_order(world: World) -> None:
    queue = world.queue("q", "quorum")
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    received = world.consume(transport, queue, prefetch=100)
    world.down()
    states.wait_for("disconnected")
    ids = [str(number) for number in range(20)]
    futures = [transport.publish(world.message(message_id), timeout_s=WAIT_S) for message_id in ids]
    assert not any(future.done() for future in futures)
    world.up()
    assert [outcome(future) for future in futures] == [None] * 20
    assert [delivery.message_id for delivery in received.next_ones(20)] == ids


def test_a_queue_that_was_deleted_meanwhile_is_declared_and_consumed_again(world: World) -> None:
    queue = world.queue()
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    received = world.consume(transport, queue)
    world.down()
    states.wait_for("disconnected")
    future = transport.publish(world.message("m1"), timeout_s=WAIT_S)
    world.delete_queue(queue)
    world.up()
    states.wait_for("connected")
    future.result(WAIT_S)
    assert received.next().message_id == "m1"


def test_a_consumer_whose_queue_is_deleted_under_it_tells_and_comes_back(world: World) -> None:
    queue = world.queue()
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    received = world.consume(transport, queue)
    world.publish(transport, "before")
    before = received.next()
    world.delete_queue(queue)
    states.wait_for("consumer_lost")
    assert transport.ack(before) is False
    ask_until(lambda: outcome(transport.publish(world.message("after"))), lambda found: found is None)
    assert received.next().message_id == "after"


def test_messages_survive_the_broker_s_absence(world: World) -> None:
    queue = world.queue()
    transport = world.open("one", queue)
    world.publish(transport, "1", "2")
    world.down()
    world.up()
    received = world.consume(transport, queue)
    assert [delivery.message_id for delivery in received.next_ones(2)] == ["1", "2"]


def test_open_gives_up_at_its_deadline_where_there_is_no_broker(world: World) -> None:
    world.down()
    transport = world.make_transport("one")
    with pytest.raises(BrokerUnavailable):
        transport.open((world.exchange,), (world.queue(),), timeout_s=0.3)
    with pytest.raises(TransportClosed):
        transport.publish(world.message("m1")).result(WAIT_S)


def test_open_waits_for_a_broker_that_comes_late(world: World) -> None:
    world.down()
    transport = world.make_transport("one")
    ended: Queue[BaseException | None] = Queue()

    def open_it() -> None:
        try:
            transport.open((world.exchange,), (world.queue(),), timeout_s=WAIT_S)
        except BaseException as error:  # noqa: BLE001  for the other thread to see
            ended.put(error)
        else:
            ended.put(None)

    thread = threading.Thread(target=open_it)
    thread.start()
    assert ended.empty()
    world.up()
    assert ended.get(timeout=WAIT_S) is None
    thread.join(WAIT_S)
    world.publish(transport, "m1")
