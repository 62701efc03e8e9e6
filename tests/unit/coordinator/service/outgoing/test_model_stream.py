"""The steps of a publication, against a transport that answers when a test says so."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Message, OnDelivery
from fedmq.coordinator.service.outgoing.model_stream import ANSWER_S, MOST_LOOKED_AT, ModelStream, Published, StreamNews
from fedmq.schemas.chunks import Pieces
from fedmq.schemas.errors import BrokerRefused, TopologyConflict, Unroutable

STREAM = Topology("p").models(2**23, 2**20)
BODY = bytes(3000)


class Bench:
    """A stream, what it asked of the transport, and the news that it gets back."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, Any, Future[Any]]] = []
        self.consumer: OnDelivery | None = None
        self.acked = 0
        self.news: list[Any] = []
        self.outcomes: list[Published | BaseException] = []
        self.stream = ModelStream(
            self,  # type: ignore[arg-type]
            STREAM,
            chunk_bytes=1024,
            timeout_s=5.0,
            put=self.news.append,
            clock=lambda: self.now,
        )

    # The transport

    def declare(self, queue: Any, _timeout_s: float) -> Future[int]:
        return self._ask("declare", queue)

    def delete_queue(self, name: str, _timeout_s: float = 0.0) -> Future[int]:
        return self._ask("delete", name)

    def publish(self, message: Message, _timeout_s: float) -> Future[None]:
        return self._ask("publish", message)

    def forget_queue(self, name: str) -> None: ...

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int, offset: str) -> None:
        assert (queue, offset) == ("p.models", "last")
        self.consumer = on_delivery

    def stop_consuming(self, _queue: str) -> None:
        self.consumer = None

    def ack(self, _delivery: Delivery) -> bool:
        self.acked += 1
        return True

    def _ask(self, what: str, about: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.asked.append((what, about, future))
        return future

    # The test

    def begin(self) -> None:
        self.stream.publish(Pieces([BODY]), "d" * 64, self.outcomes.append)

    def answer(self, what: str, result: Any = None) -> Any:
        """Answer the oldest question, which must be of this kind, and give the stream its news."""
        asked, about, future = self.asked.pop(0)
        assert asked == what
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
        self.tell()
        return about

    def tell(self) -> None:
        while self.news:
            news = self.news.pop(0)
            news.sender.on_news(news)

    def deliver(self, message_id: str, offset: int) -> None:
        assert self.consumer is not None
        self.consumer(Delivery("p.models", b"", message_id, None, None, {}, False, 0, None, offset))
        self.tell()

    def to_the_mark(self) -> str:
        self.begin()
        self.answer("declare", 0)
        return str(self.answer("publish").message_id)


def test_a_model_is_announced_with_the_offset_of_its_mark_once_all_chunks_are_confirmed() -> None:
    one = Bench()
    mark = one.to_the_mark()
    one.deliver("somebody else's", 41)
    one.deliver(mark, 42)
    assert (one.consumer, one.acked) == (None, 1)
    one.answer("declare", 9)  # whatever the depth of a stream is
    for _ in range(2):
        one.answer("publish")
        assert one.outcomes == []
    one.answer("publish")
    (published,) = one.outcomes
    assert isinstance(published, Published)
    assert (published.offset, published.digest, published.payload.count) == (42, "d" * 64, 3)
    assert published.payload.payload_id == mark
    assert not one.stream.busy


@pytest.mark.parametrize("after", ["declare", "mark", "chunk"])
def test_what_the_broker_refuses_ends_the_publication(after: str) -> None:
    one, error = Bench(), Unroutable("gone")
    if after == "declare":
        one.begin()
        one.answer("declare", BrokerRefused("no right"))
    elif after == "mark":
        one.begin()
        one.answer("declare", 0)
        one.answer("publish", error)
    else:
        one.deliver(one.to_the_mark(), 0)
        one.answer("declare", 0)
        one.answer("publish", error)
    assert isinstance(one.outcomes[0], BrokerRefused if after == "declare" else Unroutable)
    assert len(one.outcomes) == 1
    assert not one.stream.busy


def test_a_stream_with_other_arguments_is_deleted_once() -> None:
    one = Bench()
    one.begin()
    one.answer("declare", TopologyConflict("x-max-length-bytes"))
    assert one.answer("delete", 5) == "p.models"
    one.answer("declare", TopologyConflict("x-max-length-bytes"))
    assert isinstance(one.outcomes[0], TopologyConflict)


def test_a_mark_that_does_not_come_back_is_given_up() -> None:
    one = Bench()
    one.to_the_mark()
    one.now = ANSWER_S - 1
    one.stream.look()
    assert one.outcomes == []
    one.now = ANSWER_S
    one.stream.look()
    assert len(one.outcomes) == 1
    assert one.consumer is None


def test_the_end_of_a_stream_that_somebody_else_fills_is_not_read_for_ever() -> None:
    one = Bench()
    one.to_the_mark()
    for number in range(MOST_LOOKED_AT):
        one.deliver("somebody else's", number)
    assert len(one.outcomes) == 1
    assert one.acked == MOST_LOOKED_AT - 1


def test_chunks_that_nobody_confirms_are_given_up_and_slow_ones_are_not() -> None:
    one = Bench()
    one.deliver(one.to_the_mark(), 0)
    one.answer("declare", 0)
    one.stream.look()
    one.now = ANSWER_S
    one.answer("publish")
    one.stream.look()
    one.now = 2 * ANSWER_S
    one.stream.look()
    assert one.outcomes == []
    one.now = 3 * ANSWER_S
    one.stream.look()
    assert len(one.outcomes) == 1
    for _ in range(2):
        one.answer("publish")  # what comes late changes nothing
    assert len(one.outcomes) == 1


def test_news_of_a_publication_that_is_over_changes_nothing() -> None:
    one = Bench()
    mark = one.to_the_mark()
    one.stream.cancel()
    one.stream.on_news(StreamNews(one.stream, mark, "found", 3))
    assert one.outcomes == []
    one.begin()
    one.stream.on_news(StreamNews(one.stream, mark, "found", 3))
    assert len(one.asked) == 1
