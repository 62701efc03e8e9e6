"""Streams: every consumer reads all messages, from a place of its own."""

from __future__ import annotations

from fedmq.broker_config.rights import Rights
from fedmq.broker_config.topology import Queue
from fedmq.schemas.errors import BrokerRefused, Unroutable
from tests.contract.world import WAIT_S, Received, World, outcome
from tests.support.asking import ask_until


def stream_of(world: World, **limits: int) -> Queue:
    return world.queue(kind="stream", **limits)


def ids(received: Received, count: int) -> list[tuple[str | None, int | None]]:
    return [(delivery.message_id, delivery.offset) for delivery in received.next_ones(count)]


def test_every_consumer_gets_all_messages_from_its_offset_on(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    two = world.open("two", stream)
    world.publish(one, "a", "b", "c", "d")

    assert ids(world.consume(one, stream, offset=1), 3) == [("b", 1), ("c", 2), ("d", 3)]
    assert ids(world.consume(two, stream, offset=0), 4) == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]


def test_an_offset_that_is_not_there_yet_is_waited_for(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    world.publish(one, "a")
    received = world.consume(one, stream, offset=2)

    world.publish(one, "b", "c", "d")

    assert ids(received, 2) == [("c", 2), ("d", 3)]


def test_the_last_message_says_where_the_stream_ends(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    world.publish(one, "a", "b", "c")

    received = world.consume(one, stream, offset="last")

    found = received.next()
    while found.message_id != "c":  # RabbitMQ may begin a few messages before it
        found = received.next()
    assert found.offset == 2


def test_a_message_comes_as_it_was_published(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    body = bytes(range(256)) * 4096
    sent = world.message("a", body=body, correlation_id="task", headers={"payload": "p" * 32, "chunk": 3, "last": True})
    one.publish(sent).result(WAIT_S)

    came = world.consume(one, stream, offset=0).next()

    assert bytes(came.body) == body
    assert (came.message_id, came.correlation_id) == ("a", "task")
    assert came.user_id in ("guest", "fedmq")
    assert {key: came.headers[key] for key in sent.headers} == {"payload": "p" * 32, "chunk": 3, "last": True}
    assert type(came.headers["chunk"]) is int


def test_settling_makes_room_in_the_window(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    world.publish(one, "a", "b", "c", "d")
    received = world.consume(one, stream, prefetch=2, offset=0)
    first, second = received.next_ones(2)
    assert received.empty()

    assert one.ack(first)
    assert one.nack(second)  # it is not given again
    assert not one.ack(first)

    assert ids(received, 2) == [("c", 2), ("d", 3)]


def test_after_a_reconnect_reading_goes_on_at_the_oldest_that_was_not_settled(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    world.publish(one, "a", "b", "c", "d")
    received = world.consume(one, stream, offset=0)
    deliveries = received.next_ones(4)
    for delivery in (deliveries[0], deliveries[1], deliveries[3]):
        assert one.ack(delivery)

    world.sever("one")

    assert ids(received, 2) == [("c", 2), ("d", 3)]
    assert not one.ack(deliveries[2])


def test_after_a_reconnect_nothing_that_was_settled_comes_again(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one", stream)
    world.publish(one, "a", "b")
    received = world.consume(one, stream, offset=0)
    for delivery in received.next_ones(2):
        assert one.ack(delivery)

    world.sever("one")
    world.publish(one, "c")

    assert ids(received, 1) == [("c", 2)]


def test_a_full_stream_drops_its_oldest_messages_and_reading_begins_with_those_that_are_left(world: World) -> None:
    stream = stream_of(world, max_length_bytes=100_000, segment_bytes=50_000)
    one = world.open("one", stream)
    for n in range(40):
        one.publish(world.message(str(n), body=bytes(10_000))).result(WAIT_S)

    def oldest() -> int:
        offset = world.consume(one, stream, offset=0).next().offset
        assert offset is not None
        return offset

    found = ask_until(oldest, lambda offset: offset >= 20)  # RabbitMQ drops a segment some time after it is full
    left = world.consume(one, stream, offset=0)
    last = left.next()
    while last.message_id != "39":
        assert one.ack(last)
        last = left.next()
    assert last.offset is not None
    assert found < last.offset


def test_a_stream_that_was_deleted_takes_nothing_and_starts_anew(world: World) -> None:
    stream = stream_of(world)
    one = world.open("one")
    one.declare(stream).result(WAIT_S)
    one.forget_queue(stream.name)
    world.publish(one, "a")

    one.delete_queue(stream.name).result(WAIT_S)
    assert outcome(one.publish(world.message("b"))) is Unroutable
    one.declare(stream).result(WAIT_S)
    world.publish(one, "c")

    assert ids(world.consume(one, stream, offset=0), 1) == [("c", 0)]


def test_a_reader_may_read_a_stream_and_nothing_else(world: World) -> None:
    stream = stream_of(world)
    maker = world.open("maker", stream)
    world.publish(maker, "a")
    reader = world.make_transport_of(f"{world.prefix}-reader", Rights("^$", "^$", f"^{stream.name}$"))
    reader.open((), (), timeout_s=WAIT_S)

    assert ids(world.consume(reader, stream, offset=0), 1) == [("a", 0)]
    assert outcome(reader.publish(world.message("b"))) is BrokerRefused
    assert isinstance(reader.declare(stream).exception(WAIT_S), BrokerRefused)
    assert isinstance(reader.delete_queue(stream.name).exception(WAIT_S), BrokerRefused)
