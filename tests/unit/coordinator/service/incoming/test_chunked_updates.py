"""Events and orders that a manifest and its chunks lead to."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmq.coordinator.decisions.events import PoisonArrived, UpdateArrived
from fedmq.coordinator.service.incoming.chunked_updates import (
    ChunkedUpdates,
    DeletePayload,
    PayloadDropped,
    SendAgain,
    Superseded,
)
from fedmq.coordinator.service.incoming.payloads import Broken, Manifest, Whole
from fedmq.coordinator.service.incoming.update_reader import NO_PAYLOAD
from fedmq.schemas.codec import Limits, encode
from fedmq.schemas.errors import LimitExceeded
from fedmq.schemas.messages import ChunkedPayload, Update, update_id
from fedmq.schemas.parameters import Parameters

PAYLOAD = Parameters({"w": np.arange(4, dtype=np.float32)})


def update(name: str = "a", chunks: bool = True) -> Update:
    manifest = ChunkedPayload(payload_id="one", num_bytes=1024, chunk_bytes=1024, count=1, digest="0" * 64)
    return Update(
        update_id=update_id("r", f"t-{name}", name), task_id=f"t-{name}", run_id="r", participant_id=name,
        base_version=0, payload="delta", num_examples=1, num_steps=1, train_s=0.0, chunks=manifest if chunks else None,
    )  # fmt: skip


def manifest(handle: int, name: str = "a") -> Manifest:
    sent = update(name)
    assert sent.chunks is not None
    return Manifest(handle, sent, sent.chunks)


class FakeIntake:
    """An intake that answers as the test says. `waiting` has the manifests that it was offered, by update_id."""

    def __init__(self) -> None:
        self.waiting: dict[str, Manifest] = {}
        self.reading: Manifest | None = None
        self.refusal: LimitExceeded | None = None
        self.outcome: Whole | Broken | None = None
        self.forgotten: list[str] = []

    @property
    def idle(self) -> bool:
        return not self.waiting and self.reading is None

    def check(self, _chunks: ChunkedPayload) -> None:
        if self.refusal is not None:
            raise self.refusal

    def offer(self, taken: Manifest) -> int | None:
        former = self.waiting.get(taken.update.update_id)
        self.waiting[taken.update.update_id] = taken
        return None if former is None else former.handle

    def waiting_of(self, participant_id: str) -> list[Manifest]:
        return [one for one in self.waiting.values() if one.update.participant_id == participant_id]

    def withdraw(self, over: Manifest) -> None:
        del self.waiting[over.update.update_id]

    def next(self, _now: float) -> Manifest | None:
        return self.waiting.pop(next(iter(self.waiting))) if self.waiting and self.reading is None else None

    def begin(self, begun: Manifest, _now: float) -> Broken | None:
        self.reading = begun
        return self._answer()

    def tick(self, _now: float) -> Broken | None:
        return None

    def on_chunk(self, _chunk: object, _now: float) -> Whole | Broken | None:
        return self._answer()

    def abandon(self) -> None:
        self.reading = None

    def clear(self) -> list[Manifest]:
        left = [*([self.reading] if self.reading else []), *self.waiting.values()]
        self.reading = None
        self.waiting.clear()
        return left

    def forget(self, uid: str) -> None:
        self.forgotten.append(uid)

    def queue_of(self, _run_id: str, task_id: str, _participant_id: str) -> str:
        return f"queue of {task_id}"

    def _answer(self) -> Any:
        if self.outcome is not None:
            self.reading = None
        return self.outcome


class Desk:
    """ChunkedUpdates over an intake, a core and a transport that do what the test says."""

    def __init__(self) -> None:
        self.intake = FakeIntake()
        self.awaited = True
        self.over: set[str] = set()
        self.deleted: list[tuple[str, Future[None]]] = []
        self.inbox: list[PayloadDropped] = []
        self.chunked = ChunkedUpdates(
            self.intake, self, self, Limits(), put=self.inbox.append, owned=True,  # type: ignore[arg-type]
        )  # fmt: skip

    def awaits(self, update: Update) -> bool:
        return self.awaited and update.task_id not in self.over

    def delete_queue(self, name: str) -> Future[None]:
        self.deleted.append((name, Future()))
        return self.deleted[-1][1]

    def offer(self, handle: int, name: str = "a") -> Any:
        return self.chunked.on_manifest(UpdateArrived(handle, update(name), NO_PAYLOAD))

    def begin(self, handle: int = 1) -> None:
        assert self.offer(handle) == []
        assert self.chunked.work(0.0, has_room=True) == []

    def chunk(self, outcome: Whole | Broken | None) -> Any:
        self.intake.outcome = outcome
        return self.chunked.on_news(object(), 1.0)  # type: ignore[arg-type]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_an_update_that_is_not_awaited_is_judged_without_its_payload(desk: Desk) -> None:
    desk.awaited = False
    assert desk.offer(1) == [UpdateArrived(1, update(), NO_PAYLOAD)]
    assert desk.chunked.idle


def test_a_manifest_that_cannot_be_the_models_is_poison_and_its_chunks_go(desk: Desk) -> None:
    desk.intake.refusal = LimitExceeded("too much")
    assert desk.offer(1) == [DeletePayload(update()), PoisonArrived(1, "oversized", "too much", "t-a")]


def test_a_later_copy_of_a_manifest_stands_for_the_former(desk: Desk) -> None:
    assert desk.offer(1) == []
    assert desk.offer(2) == [Superseded(1)]


def test_a_payload_that_is_whole_comes_to_its_event_once(desk: Desk) -> None:
    desk.begin()
    body = memoryview(bytearray(encode(update(chunks=False), PAYLOAD)))
    (event,) = desk.chunk(Whole(replace(manifest(1), num_bytes=300), body))
    assert (event.delivery, event.update, event.owned) == (1, update(), True)
    sizes = (300 + update().chunks.num_bytes, PAYLOAD.num_bytes)
    assert event.carried == sizes, "manifest and chunks, and the floats"
    np.testing.assert_array_equal(event.payload["w"], PAYLOAD["w"])
    assert desk.intake.forgotten == [update().update_id]


def test_chunks_of_another_update_than_their_manifest_are_poison(desk: Desk) -> None:
    desk.begin()
    body = memoryview(bytearray(encode(update("b", chunks=False), PAYLOAD)))
    deletion, poison = desk.chunk(Whole(manifest(1), body))
    assert deletion == DeletePayload(update())
    assert (poison.delivery, poison.reason, poison.task_id) == (1, "malformed", "t-a")


def test_a_broken_payload_is_sent_again_once_its_queue_is_deleted(desk: Desk) -> None:
    desk.begin()
    assert desk.chunk(Broken(manifest(1), "chunks are missing", final=False)) == []
    assert desk.offer(2) == [Superseded(1)], "the manifest came again meanwhile"
    ((name, deleted),) = desk.deleted
    assert (name, desk.inbox) == ("queue of t-a", [])
    deleted.set_result(None)
    (news,) = desk.inbox
    assert desk.chunked.on_news(news, 2.0) == [SendAgain(2, update(), "chunks are missing")]
    assert desk.chunked.on_news(news, 3.0) == [], "only once"


def test_the_last_try_of_a_broken_payload_is_poison(desk: Desk) -> None:
    desk.begin()
    assert desk.chunk(Broken(manifest(1), "damaged", final=True)) == [PoisonArrived(1, "malformed", "damaged", "t-a")]
    assert [name for name, _ in desk.deleted] == ["queue of t-a"]
    desk.deleted[0][1].set_result(None)
    assert desk.inbox == []


def test_no_payload_is_begun_without_room(desk: Desk) -> None:
    desk.offer(1)
    assert desk.chunked.work(0.0, has_room=False) is None
    assert desk.chunked.work(0.0, has_room=True) == []
    assert desk.chunked.work(0.0, has_room=True) is None, "one is read already"


def test_a_payload_that_is_no_longer_awaited_is_abandoned(desk: Desk) -> None:
    desk.begin()
    desk.awaited = False
    assert desk.chunked.work(0.0, has_room=False) == [UpdateArrived(1, update(), NO_PAYLOAD)]
    assert desk.chunked.idle


def test_all_that_is_not_at_its_end_is_given_up_in_order(desk: Desk) -> None:
    desk.begin(1)
    desk.chunk(Broken(manifest(1), "damaged", final=False))
    desk.intake.outcome = None
    desk.offer(2, "b")
    desk.chunked.work(0.0, has_room=True)
    desk.offer(3, "c")
    assert desk.chunked.clear() == [1, 2, 3]
    desk.deleted[0][1].set_result(None)
    assert desk.chunked.on_news(desk.inbox[0], 1.0) == [], "its manifest comes again"


def test_a_manifest_whose_task_is_over_waits_no_longer_than_to_its_participant_s_next_one(desk: Desk) -> None:
    """A participant has one task and a few lapsed ones, so no more manifests of it wait."""

    def offer(handle: int, task_id: str) -> Any:
        sent = update("a").model_copy(update={"task_id": task_id, "update_id": update_id("r", task_id, "a")})
        return desk.chunked.on_manifest(UpdateArrived(handle, sent, NO_PAYLOAD))

    assert offer(1, "one") == []
    assert offer(2, "two") == []
    desk.over = {"one"}
    (ended,) = offer(3, "three")
    assert isinstance(ended, UpdateArrived)
    assert (ended.delivery, ended.update.task_id) == (1, "one")
    assert [one.handle for one in desk.intake.waiting.values()] == [2, 3]
