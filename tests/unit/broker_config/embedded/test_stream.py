"""The model of a stream: RabbitMQ's rules without a broker."""

from __future__ import annotations

from fedmq.broker_config.embedded.queue import Consumer, Content, Position
from fedmq.broker_config.embedded.stream import StreamModel
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Offset


def stream(*bodies: bytes, keep: int = 100, segment: int = 10) -> StreamModel:
    model = StreamModel(Topology("p").models(keep, segment))
    for number, body in enumerate(bodies):
        assert model.push(Content("", "p.models", body, str(number), None, "u", {}), 0.0)
    return model


def reader(model: StreamModel, offset: Offset | None, prefetch: int = 10) -> Consumer:
    consumer = Consumer("somebody", prefetch, position=Position(offset))
    model.attach(consumer)
    return consumer


def offsets(model: StreamModel) -> list[int | None]:
    return [handout.stored.offset for handout in model.advance(0.0).handouts]


def test_a_reader_gets_each_message_once_from_its_offset_on() -> None:
    model = stream(b"a", b"b", b"c")
    reader(model, 1)
    assert offsets(model) == [1, 2]
    assert offsets(model) == []
    model.push(Content("", "", b"d", None, None, None, {}), 0.0)
    assert offsets(model) == [3]


def test_last_is_the_newest_message_and_none_is_what_comes() -> None:
    model = stream(b"a", b"b")
    reader(model, "last")
    assert offsets(model) == [1]
    reader(model, None)
    assert offsets(model) == []


def test_the_window_is_the_reader_s_own() -> None:
    model = stream(b"a", b"b", b"c")
    reader(model, 0, prefetch=1)
    (handout,) = model.advance(0.0).handouts
    assert offsets(model) == []
    assert model.give_back(handout.tag)
    assert not model.ack(handout.tag)
    assert offsets(model) == [1]


def test_a_reader_that_leaves_may_go_on_at_its_oldest_unsettled_message() -> None:
    model = stream(b"a", b"b", b"c")
    consumer = reader(model, 0)
    first, _, third = model.advance(0.0).handouts
    model.ack(first.tag)
    model.ack(third.tag)
    model.detach(consumer, 0.0)
    assert consumer.position is not None
    assert consumer.position.offset == 1
    assert model.num_unsettled == 0


def test_old_segments_go_and_the_newest_one_stays() -> None:
    model = stream(*[b"12345"] * 9, keep=20, segment=10)  # segments of two messages, and one with the ninth
    reader(model, 0)
    assert offsets(model) == [4, 5, 6, 7, 8]
    alone = stream(b"123456789012", keep=1, segment=1)
    reader(alone, 0)
    assert offsets(alone) == [0]
