"""The chunk receiver by itself. Each role's use of it has its own tests (test_intake, test_download)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedmq.broker_config.chunks.receiver import MORE_UNWANTED, PATIENCE_S, ChunkArrived, ChunkReceiver, Lost
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

    def consume(self, queue: str, on_delivery: Callable[[Delivery], None], prefetch: int) -> None:
        self.consumer = on_delivery

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

    def another(self, sender: str | None = None) -> ChunkReceiver:
        return ChunkReceiver(  # type: ignore[arg-type]
            self.queue, "q", PAYLOAD, self.store, put=self.arrived.append, prefetch=4, sender=sender
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
