"""The sending of one payload, step by step, against a broker that answers when the test says so."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from fedmq.broker_config.chunks.sender import MOST_TRIES, WINDOW, ChunkSender, News
from fedmq.broker_config.topology import Queue, Topology
from fedmq.broker_config.transport import Message
from fedmq.schemas import chunks
from fedmq.schemas.errors import BrokerUnavailable, PublishError, TopologyConflict, Unroutable
from fedmq.schemas.messages import ChunkedPayload

SIZE = 1024
COUNT = 20
BODY = b"".join(bytes([number]) * SIZE for number in range(COUNT - 1)) + b"end"
PARTS = [BODY[start : start + SIZE] for start in range(0, len(BODY), SIZE)]
DIGESTS = [chunks.digest_of(part) for part in PARTS]
WHOLE = ChunkedPayload(
    payload_id="one", num_bytes=len(BODY), chunk_bytes=SIZE, count=COUNT, digest=chunks.digest_of_all(DIGESTS)
)


class Wire:
    """A stand-in for a transport: every question waits for the test's answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, Future[Any]]] = []
        self.forgotten: list[str] = []

    def declare(self, queue: Queue, timeout_s: float) -> Future[int]:
        return self._ask("declare", queue)

    def delete_queue(self, name: str, timeout_s: float = 30.0) -> Future[int]:
        return self._ask("delete", name)

    def publish(self, message: Message, timeout_s: float) -> Future[None]:
        return self._ask("publish", message)

    def forget_queue(self, name: str) -> None:
        self.forgotten.append(name)

    def _ask(self, what: str, about: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.asked.append((what, about, future))
        return future


class Sending:
    """A sender, its news, and its reports to its owner."""

    def __init__(self, digests: Sequence[bytes] = (), read: Any = None) -> None:
        self.wire = Wire()
        self.news: list[News] = []
        self.outcomes: list[ChunkedPayload | BaseException] = []
        self.noted: list[int] = []
        self.queue = Topology("p").upload("p0", "u")
        self.sender = ChunkSender(
            self.wire,  # type: ignore[arg-type]
            self.queue,
            payload_id="one",
            task_id="t",
            num_bytes=len(BODY),
            chunk_bytes=SIZE,
            read=read or (lambda start, length: BODY[start : start + length]),
            put=self.news.append,
            on_done=self.outcomes.append,
            on_confirmed=lambda digests: self.noted.append(len(digests)),
            digests=digests,
        )
        self.sender.begin()

    def asks(self) -> list[str]:
        """Return the open questions, with a chunk's index for its publish."""
        return [str(about.headers[chunks.INDEX]) if what == "publish" else what for what, about, _ in self.wire.asked]

    def answer(self, outcome: int | Exception | None = None, at: int = 0) -> Any:
        """Answer one question, by default the oldest. Return its subject."""
        _, about, future = self.wire.asked.pop(at)
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        while self.news:
            self.sender.on_news(self.news.pop(0))
        return about

    def confirm_all(self) -> list[int]:
        """Confirm all chunks. Return their indices in the order of sending."""
        sent = []
        while self.wire.asked and self.wire.asked[0][0] == "publish":
            sent.append(self.answer().headers[chunks.INDEX])
        return sent


def test_all_chunks_go_with_their_labels_and_are_announced_once_the_queue_has_them() -> None:
    one = Sending()
    assert one.asks() == ["declare"]
    assert one.answer(0) == one.queue
    first = one.wire.asked[0][1]
    assert (first.exchange, first.routing_key, first.message_id) == (one.queue.exchange, one.queue.name, "one.0")
    assert (first.correlation_id, first.body) == ("t", PARTS[0])
    assert first.headers == chunks.headers("one", 0, DIGESTS[0])
    assert one.confirm_all() == list(range(COUNT))
    assert (one.asks(), one.outcomes) == (["declare"], [])
    one.answer(COUNT)
    assert one.outcomes == [WHOLE]
    assert one.sender.sent == COUNT


def test_no_more_than_a_window_is_unconfirmed_whatever_the_order_of_the_confirms() -> None:
    one = Sending()
    one.answer(0)
    assert one.asks() == [str(index) for index in range(WINDOW)]
    one.answer(at=WINDOW - 1)
    one.answer(at=3)
    assert one.asks()[-2:] == [str(WINDOW), str(WINDOW + 1)]
    assert len(one.wire.asked) == WINDOW


def test_what_is_confirmed_is_noted_a_window_at_a_time_up_to_the_first_gap() -> None:
    one = Sending()
    one.answer(0)
    for _ in range(WINDOW + 4):
        one.answer(at=1)  # all but chunk 0
    assert one.noted == []
    one.answer()
    assert one.noted == [WINDOW + 5]
    one.confirm_all()
    assert one.noted == [WINDOW + 5, COUNT]


def test_chunks_that_were_confirmed_before_are_not_sent_again() -> None:
    one = Sending(DIGESTS[:16])
    one.answer(17)
    assert one.confirm_all() == [16, 17, 18, 19]
    one.answer(21)
    assert one.outcomes == [WHOLE]


def test_a_payload_that_is_there_already_is_announced_at_once() -> None:
    one = Sending(DIGESTS)
    one.answer(COUNT)
    assert (one.outcomes, one.sender.sent) == ([WHOLE], 0)


@pytest.mark.parametrize(
    ("digests", "depth"), [(DIGESTS[:16], 15), ([], 1)], ids=["chunks are gone", "of a former try"]
)
def test_a_queue_that_does_not_hold_what_it_should_is_made_anew(digests: list[bytes], depth: int) -> None:
    one = Sending(digests)
    one.answer(depth)
    assert (one.asks(), one.noted) == (["delete"], [0])
    assert one.answer(depth) == one.queue.name
    one.answer(0)
    assert one.confirm_all() == list(range(COUNT))


def test_a_queue_of_somebody_with_other_settings_is_made_anew() -> None:
    one = Sending()
    one.answer(TopologyConflict("x-expires differs"))
    assert one.asks() == ["delete"]


def test_chunks_that_the_queue_loses_are_sent_again_and_at_last_given_up() -> None:
    one = Sending()
    one.answer(0)
    for _ in range(MOST_TRIES - 1):
        assert one.confirm_all() == list(range(COUNT))
        one.answer(COUNT - 1)
        one.answer(0)  # deleted
        one.answer(0)  # declared
    one.confirm_all()
    one.answer(COUNT - 1)
    (error,) = one.outcomes
    assert isinstance(error, PublishError)
    assert "lost chunks 3 times" in str(error)


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), Unroutable("no queue")])
def test_an_error_ends_it_and_later_answers_change_nothing(error: Exception) -> None:
    one = Sending()
    one.answer(0)
    one.answer(error)
    assert one.outcomes == [error]
    one.confirm_all()
    assert (one.outcomes, one.wire.asked) == ([error], [])


def test_a_disk_that_cannot_be_read_ends_it() -> None:
    error = OSError("no such device")

    def read(_start: int, _length: int) -> bytes:
        raise error

    one = Sending(read=read)
    one.answer(0)
    assert (one.outcomes, one.wire.asked) == ([error], [])


def test_one_that_was_cancelled_sends_nothing_more_and_says_nothing() -> None:
    one = Sending()
    one.answer(0)
    one.sender.cancel()
    one.confirm_all()
    assert (one.outcomes, one.wire.asked, one.sender.sent) == ([], [], WINDOW)


def test_the_queue_is_not_declared_again_after_its_payload_is_out() -> None:
    """A process sends thousands of payloads. A reconnect must not bring all their queues back."""
    one = Sending(DIGESTS)
    assert one.wire.forgotten == []
    one.answer(COUNT)
    assert one.wire.forgotten == [one.queue.name]
