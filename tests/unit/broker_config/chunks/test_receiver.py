"""The chunk receiver by itself. Each role's use of it has its own tests (test_intake, test_download)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmq.broker_config.chunks.receiver import MORE_UNWANTED, PATIENCE_S, SPARE, ChunkArrived, ChunkReceiver, Lost
from fedmq.broker_config.transport import Delivery
from fedmq.schemas import chunks
from fedmq.schemas.errors import BrokerError, BrokerUnavailable
from fedmq.schemas.messages import ChunkedPayload

PARTS = [bytes([number]) * 1024 for number in range(3)]
DIGESTS = [chunks.digest_of(part) for part in PARTS]
PAYLOAD = ChunkedPayload(
    payload_id="one", num_bytes=3072, chunk_bytes=1024, count=3, digest=chunks.digest_of_all(DIGESTS)
)


class Queue:
    """A stand-in for a transport with one queue."""

    def __init__(self) -> None:
        self.ready: int | Exception = 3
        self.consumer: Callable[[Delivery], None] | None = None
        self.did: list[str] = []

    def depth(self, queue: str) -> int:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready

    def consume(
        self, queue: str, on_delivery: Callable[[Delivery], None], prefetch: int, offset: int | None = None
    ) -> None:
        self.consumer, self.window, self.offset = on_delivery, prefetch, offset

    def stop_consuming(self, queue: str) -> None:
        self.did.append("stop")

    def delete_queue(self, queue: str) -> None:
        self.did.append("delete")


class Kept:
    """A store that records its calls and passes bodies on."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.kept: list[int | None] = []

    def arrived(self, start: int, delivery: Delivery) -> Delivery:
        self.places.append(start)
        return delivery

    def bytes_of(self, start: int, length: int, delivery: Delivery) -> bytes | bytearray:
        return delivery.body

    def keep(self, index: int | None, digest: bytes, delivery: Delivery) -> None:
        self.kept.append(index)


class Case:
    """A receiver, its queue and store, and the chunks that its transport's thread has handed over."""

    def __init__(self) -> None:
        self.queue, self.store = Queue(), Kept()
        self.arrived: list[ChunkArrived] = []
        self.receiver = self.another()

    def another(self, sender: str | None = None, offset: int | None = None) -> ChunkReceiver:
        return ChunkReceiver(
            self.queue,  # type: ignore[arg-type]
            "q",
            PAYLOAD,
            self.store,
            put=self.arrived.append,
            prefetch=4,
            sender=sender,
            offset=offset,
        )

    def send(self, index: int, body: bytes | None = None, user: str | None = None, **label: Any) -> None:
        assert self.queue.consumer is not None
        headers = chunks.headers("one", index, DIGESTS[index]) | label
        self.queue.consumer(Delivery("q", body or PARTS[index], None, None, user, headers, False, 0, index))


def test_only_the_chunks_that_the_store_lacks_are_wanted() -> None:
    one = Case()
    assert one.receiver.begin(0.0, {0: DIGESTS[0], 2: DIGESTS[2]}) is None
    one.send(0)
    assert one.receiver.on_chunk(one.arrived[0], 1.0) is None
    one.send(1)
    assert one.receiver.on_chunk(one.arrived[1], 1.0) == "whole"
    assert (one.store.places, one.store.kept) == ([1024], [None, 1])
    assert one.arrived[0].delivery.body == b"", "a chunk that is not wanted takes no room in an inbox"


def test_a_payload_that_is_there_already_is_whole_without_its_queue() -> None:
    one = Case()
    one.queue.ready = BrokerError("no such queue")
    assert one.receiver.begin(0.0, dict(enumerate(DIGESTS))) == "whole"
    assert one.queue.consumer is None


@pytest.mark.parametrize("end", ["stop", "delete"])
def test_after_the_end_nothing_is_handed_over_or_kept_or_lost(end: str) -> None:
    one = Case()
    one.receiver.begin(0.0)
    one.send(0)
    getattr(one.receiver, end)()
    one.send(1)
    assert len(one.arrived) == 1
    assert one.receiver.on_chunk(one.arrived[0], 0.0) is None
    one.queue.ready = BrokerError("no such queue")
    assert one.receiver.look(2 * PATIENCE_S) is None
    assert (one.store.kept, one.queue.did) == ([], [end])


def test_a_chunk_of_an_earlier_receiver_changes_nothing() -> None:
    one = Case()
    one.receiver.begin(0.0)
    one.send(0)
    later = one.another()
    later.begin(0.0)
    assert later.on_chunk(one.arrived[0], 1.0) is None
    assert (later.missing, later.heard_s, one.store.kept) == (3, 0.0, [])


def test_patience_goes_on_from_an_earlier_silence_until_something_is_in_the_queue() -> None:
    one = Case()
    one.receiver.begin(50.0, silent_since_s=25.0)
    assert one.receiver.patience_ends_s == 25.0 + PATIENCE_S
    one.queue.ready = BrokerUnavailable("away")
    assert one.receiver.look(60.0) is None
    assert one.receiver.patience_ends_s == 60.0 + PATIENCE_S, "a broker that is away says nothing about the queue"
    one.queue.ready = 0
    assert one.receiver.look(61.0) is None
    assert one.receiver.silent_since_s == 60.0
    assert one.receiver.look(60.0 + PATIENCE_S) == Lost("3 of 3 chunks are missing")


@pytest.mark.parametrize("user", ["mallory", "", None])
def test_a_chunk_of_another_user_is_dropped_and_damages_nothing(
    user: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    one = Case()
    receiver = one.another("alice")
    receiver.begin(0.0)
    lies: list[dict[str, Any]] = [{}, {"chunk": 99}, {"digest": "no digest"}, {"digest": "0" * 64}]
    for lie in lies:
        one.send(0, user=user, **lie)
    one.send(1, b"short", user=user)
    for chunk in one.arrived:
        assert chunk.delivery.body == b"", "it takes no room in an inbox"
        assert receiver.on_chunk(chunk, 5.0) is None
    assert (receiver.foreign, receiver.missing, receiver.heard_s) == (5, 3, 0.0)
    assert one.store.kept == [None] * 5, "each is acked, because it fills the window"
    assert one.store.places == []
    assert [message for message in caplog.messages if "event=foreign_chunk" in message] == caplog.messages[:1]
    one.arrived.clear()
    for index in range(3):
        one.send(index, user="alice")
    assert [receiver.on_chunk(chunk, 6.0) for chunk in one.arrived] == [None, None, "whole"]


def test_a_payload_that_nobody_but_a_stranger_sends_is_lost_in_its_time() -> None:
    one = Case()
    receiver = one.another("alice")
    receiver.begin(0.0)
    one.queue.ready = 0
    one.send(0, user="mallory")
    receiver.on_chunk(one.arrived[0], PATIENCE_S - 1)
    assert receiver.look(PATIENCE_S + 1) == Lost("3 of 3 chunks are missing")


def test_only_wanted_chunks_are_progress_and_a_lost_connection_brings_repeats_anew() -> None:
    one = Case()
    one.receiver.begin(0.0)
    one.send(0)
    assert one.receiver.on_chunk(one.arrived.pop(), 1.0) is None
    most = one.receiver.most_unwanted
    assert most == 2 * 3 + MORE_UNWANTED

    def repeat() -> object:
        one.send(0)
        return one.receiver.on_chunk(one.arrived.pop(), 9.0)

    assert {repeat() for _ in range(most)} == {None}
    assert one.receiver.heard_s == 1.0
    one.receiver.reconnected()
    assert {repeat() for _ in range(most)} == {None}
    lost = repeat()
    assert isinstance(lost, Lost)
    assert "at most 70 expected; 2 of 3 chunks are missing" in lost.detail


# Streams


def in_stream() -> Case:
    """Return a case whose payload is in a stream, after the mark at offset 100."""
    one = Case()
    one.receiver = one.another(offset=100)
    return one


def put(one: Case, offset: int, index: int = 0, payload_id: str = "other") -> None:
    assert one.queue.consumer is not None
    headers = chunks.headers(payload_id, index, DIGESTS[index])
    one.queue.consumer(Delivery("q", PARTS[index], None, None, None, headers, False, 0, offset, offset))


def test_reading_begins_where_the_first_missing_chunk_may_be_and_ends_without_deleting_the_stream() -> None:
    one = in_stream()
    assert one.receiver.begin(0.0, {0: DIGESTS[0]}) is None
    assert (one.queue.offset, one.queue.window) == (102, 3), "no window for the chunks of others"
    put(one, 102, 1, "one")
    put(one, 105, 2, "one")
    assert [one.receiver.on_chunk(chunk, 1.0) for chunk in one.arrived] == [None, "whole"]
    one.receiver.delete()
    assert one.queue.did == ["stop"]


def test_chunks_of_others_in_a_stream_are_passed_over_within_a_bound() -> None:
    one = in_stream()
    one.receiver.begin(0.0)
    for _ in range(3 + SPARE + 1):
        put(one, 101)
    found = [one.receiver.on_chunk(chunk, 0.0) for chunk in one.arrived]
    assert found[:-1] == [None] * (3 + SPARE)
    assert isinstance(found[-1], Lost)


def test_a_chunk_of_another_payload_behind_the_place_of_ours_says_that_it_is_gone() -> None:
    one = in_stream()
    one.receiver.begin(0.0)
    put(one, 100 + 3 + SPARE)
    put(one, 100 + 3 + SPARE + 1)
    assert one.receiver.on_chunk(one.arrived[0], 0.0) is None
    assert one.receiver.on_chunk(one.arrived[1], 0.0) == Lost("3 of 3 chunks are not in the stream any more")


@pytest.mark.parametrize("depth", [0, 7])
def test_the_depth_of_a_stream_says_nothing_and_silence_ends_in_time(depth: int) -> None:
    one = in_stream()
    one.queue.ready = depth
    one.receiver.begin(0.0)
    assert one.receiver.look(PATIENCE_S) is None
    assert isinstance(one.receiver.look(2 * PATIENCE_S + 1.0), Lost)
