"""Rule 5: queues that are declared and deleted, and consumers that stop, while the transport is open."""

from __future__ import annotations

import pytest

from fedmq.schemas.errors import BrokerError, BrokerUnavailable, TopologyConflict, TransportClosed, Unroutable
from tests.contract.world import WAIT_S, States, World, outcome


def test_a_queue_declared_later_takes_messages_and_its_depth_is_told(world: World) -> None:
    queue = world.queue("later", "quorum", expires_s=60.0, max_length_bytes=10_000, overflow="reject-publish")
    transport = world.open("one")
    assert outcome(transport.publish(world.message("m", "later"))) is Unroutable
    assert transport.declare(queue).result(WAIT_S) == 0
    world.publish(transport, "1", "2", key="later")
    assert transport.declare(queue).result(WAIT_S) == 2
    assert [delivery.message_id for delivery in world.consume(transport, queue).next_ones(2)] == ["1", "2"]


def test_depth_is_right_at_once_after_the_last_confirm(world: World) -> None:
    queue = world.queue("later")
    transport = world.open("one")
    transport.declare(queue).result(WAIT_S)
    for number in range(5):
        world.publish(transport, str(number), key="later")
        assert transport.declare(queue).result(WAIT_S) == number + 1


def test_declaring_other_arguments_is_a_conflict_that_harms_nothing_else(world: World) -> None:
    transport = world.open("one", world.queue("q"))
    transport.declare(world.queue("later", max_length=3)).result(WAIT_S)
    with pytest.raises(TopologyConflict, match="later"):
        transport.declare(world.queue("later", max_length=4)).result(WAIT_S)
    world.publish(transport, "1")
    world.sever("one")
    world.publish(transport, "2")
    assert transport.declare(world.queue("later", max_length=3)).result(WAIT_S) == 0


def test_a_queue_declared_later_is_declared_again_after_a_reconnect(world: World) -> None:
    queue = world.queue("later")
    states = States()
    transport = world.open("one", on_state=states.put)
    transport.declare(queue).result(WAIT_S)
    world.down()
    states.wait_for("disconnected")
    world.delete_queue(queue)
    future = transport.publish(world.message("m", "later"), timeout_s=WAIT_S)
    world.up()
    future.result(WAIT_S)


def test_what_is_declared_and_deleted_without_a_broker_is_done_in_its_order_later(world: World) -> None:
    one, two = world.queue("one"), world.queue("two")
    states = States()
    transport = world.open("one", on_state=states.put)
    world.down()
    states.wait_for("disconnected")
    chores = [transport.declare(one), transport.declare(two), transport.delete_queue(one.name), transport.declare(one)]
    assert not any(chore.done() for chore in chores)
    world.up()
    assert [chore.result(WAIT_S) for chore in chores] == [0, 0, 0, 0]
    world.publish(transport, "m", key="one")


def test_a_deadline_ends_a_wait_for_the_broker(world: World) -> None:
    states = States()
    transport = world.open("one", on_state=states.put)
    world.down()
    states.wait_for("disconnected")
    late = (transport.declare(world.queue("q"), 0.1), transport.delete_queue("nowhere", 0.1))
    for chore in late:
        with pytest.raises(BrokerUnavailable, match=r"within 0\.1 s"):
            chore.result(WAIT_S)


def test_a_deleted_queue_is_gone_with_its_messages_and_stays_gone(world: World) -> None:
    queue = world.queue("q")
    states = States()
    transport = world.open("one", queue, on_state=states.put)
    received = world.consume(transport, queue, prefetch=1)
    world.publish(transport, "1", "2", "3")
    held = received.next()
    transport.delete_queue(queue.name).result(WAIT_S)
    assert transport.ack(held) is False
    with pytest.raises(BrokerError):
        transport.depth(queue.name)
    world.sever("one")
    states.wait_for("disconnected")
    states.wait_for("connected")
    assert outcome(transport.publish(world.message("m"))) is Unroutable
    assert received.empty()
    assert transport.declare(queue).result(WAIT_S) == 0


def test_deleting_what_is_not_there_is_no_error(world: World) -> None:
    transport = world.open("one")
    assert transport.delete_queue(f"{world.prefix}.nowhere").result(WAIT_S) == 0
    queue = world.queue("later")
    transport.declare(queue).result(WAIT_S)
    world.publish(transport, "1", key="later")
    assert transport.delete_queue(queue.name).result(WAIT_S) == 1


def test_a_consumer_that_was_stopped_gives_back_what_it_holds_and_gets_no_more(world: World) -> None:
    queue = world.queue("q")
    states = States()
    one, two = world.open("one", queue, on_state=states.put), world.open("two", queue)
    received = world.consume(one, queue, prefetch=2)
    world.publish(two, "1", "2", "3")
    first, _ = received.next_ones(2)
    one.stop_consuming(queue.name)
    world.await_depth(two, queue, 3)
    assert one.ack(first) is False
    world.sever("one")
    states.wait_for("disconnected")
    states.wait_for("connected")
    assert one.depth(queue.name) == 3
    assert [delivery.message_id for delivery in world.consume(one, queue).next_ones(3)] == ["1", "2", "3"]


def test_stopping_what_nobody_consumes_does_nothing(world: World) -> None:
    transport = world.open("one", world.queue("q"))
    transport.stop_consuming("nowhere")
    world.publish(transport, "1")


def test_a_stopped_consumer_is_not_brought_back_where_its_queue_is_deleted(world: World) -> None:
    queue, other = world.queue("q"), world.queue("other")
    states = States()
    transport = world.open("one", queue, other, on_state=states.put)
    world.consume(transport, queue)
    transport.stop_consuming(queue.name)
    world.publish(transport, "0", key="other")  # by then it has stopped
    world.delete_queue(queue)
    world.publish(transport, "1", key="other")
    states.wait_for("connected")
    assert states.empty()


def test_closing_does_first_what_was_to_be_deleted(world: World) -> None:
    queue = world.queue("later")
    one, two = world.open("one"), world.open("two")
    one.declare(queue).result(WAIT_S)
    deleted = one.delete_queue(queue.name)
    one.close(WAIT_S)
    assert deleted.result(0) == 0
    assert outcome(two.publish(world.message("m", "later"))) is Unroutable


def test_nothing_is_declared_after_closing(world: World) -> None:
    transport = world.open("one", world.queue("q"))
    transport.close()
    for chore in (transport.declare(world.queue("q")), transport.delete_queue("q")):
        with pytest.raises(TransportClosed):
            chore.result(WAIT_S)
    with pytest.raises(TransportClosed):
        transport.stop_consuming("q")


def test_a_forgotten_queue_stays_with_its_messages_and_is_not_declared_again(world: World) -> None:
    kept, lost = world.queue("kept"), world.queue("lost")
    states = States()
    transport = world.open("one", on_state=states.put)
    for queue in (kept, lost):
        transport.declare(queue).result(WAIT_S)
        transport.forget_queue(queue.name)
    world.publish(transport, "1", key="kept")
    world.down()
    states.wait_for("disconnected")
    world.delete_queue(lost)
    world.up()
    states.wait_for("connected")
    assert transport.depth(kept.name) == 1
    with pytest.raises(BrokerError):
        transport.depth(lost.name)
    transport.forget_queue("nowhere")
