"""The choice of the tasks that refer to a model: exact small cases, with a stream that does what a test says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.service.outgoing.model_stream import Published, stream_bytes
from fedmq.coordinator.service.outgoing.references import RETRY_S, Key, References
from fedmq.schemas.chunks import Pieces
from fedmq.schemas.codec import decode
from fedmq.schemas.errors import PublishError
from fedmq.schemas.messages import ChunkedPayload, Model, TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest

MODEL = Parameters({"w": np.arange(1024, dtype=np.float32)})
BYTES = MODEL.num_bytes


class Stream:
    """A stream that takes a model over when a test says so."""

    def __init__(self) -> None:
        self.models: list[tuple[bytes, str]] = []
        self._on_done: Callable[[Published | BaseException], None] | None = None

    @property
    def busy(self) -> bool:
        return self._on_done is not None

    def publish(self, pieces: Pieces, digest: str, on_done: Callable[[Published | BaseException], None]) -> None:
        self.models.append((pieces.read(0, pieces.num_bytes), digest))
        self._on_done = on_done

    def answer(self, error: BaseException | None = None) -> None:
        on_done, self._on_done = self._on_done, None
        assert on_done is not None
        body, digest = self.models[-1]
        name = f"m{len(self.models)}"
        payload = ChunkedPayload(payload_id=name, num_bytes=len(body), chunk_bytes=2**20, count=1, digest="0" * 64)
        on_done(Published(payload, 10 * len(self.models), digest) if error is None else error)


class Desk:
    """A `References` with its stream and its clock, and the tasks that wait."""

    def __init__(self, *, concurrency: int = 1, keep: int = 8, reads: Callable[[str], bool] = lambda _: True) -> None:
        self.now = 0.0
        self.stream = Stream()
        self.published: list[tuple[int, int]] = []
        self.references = References(
            self.stream,  # type: ignore[arg-type]
            run_id="r1",
            least_bytes=BYTES,
            keep=keep,
            concurrency=concurrency,
            reads=reads,
            on_published=lambda version, num_bytes: self.published.append((version, num_bytes)),
            clock=lambda: self.now,
        )

    def wants(self, name: str, version: int = 0, waiting: int = 1, held: int = -1, num_bytes: int = BYTES) -> bool:
        key = (version, "", held, "away")
        return self.references.wants(task(name, version), num_bytes, key, [key] * waiting)

    def send(self, name: str, version: int = 0) -> str | None:
        """Send a task as the publisher does. Return the payload that it refers to."""
        key = (version, "", -1, "away")
        model = None
        if self.references.wants(task(name, version), BYTES, key, [key]):
            if self.references.model(key) is None:
                self.references.publish(key, MODEL, lambda: None)
                self.stream.answer()
            model = self.references.model(key)
        self.references.sent(task(name, version), key, model)
        return None if model is None else model.payload.payload_id


def task(name: str, version: int) -> IssueTask:
    return IssueTask(f"t-{name}", 1, name, version, TrainingConfig(), 60.0)


def test_the_fourth_task_of_a_version_refers_to_a_model_and_so_do_the_next_ones() -> None:
    desk = Desk()
    assert [desk.send(f"p{n}") for n in range(6)] == [None, None, None, "m1", "m1", "m1"]
    body, digest = desk.stream.models[0]
    decoded = decode(body)
    assert decoded.message == Model(run_id="r1", base_version=0, digest=tensors_digest(MODEL).hex())
    assert digest == tensors_digest(MODEL).hex()
    assert desk.published == [(0, len(body))]


def test_four_tasks_that_wait_together_refer_at_once() -> None:
    desk = Desk()
    assert not desk.wants("p0", waiting=3)
    assert desk.wants("p0", waiting=4)


def test_what_the_version_before_had_decides() -> None:
    desk = Desk()
    for version, names in ((0, "abc"), (1, "abcd"), (2, "ab"), (3, "a")):
        found = [desk.send(name, version) for name in names]
        expected = {0: [None] * 3, 1: [None] * 3 + ["m1"], 2: ["m2"] * 2, 3: [None]}[version]
        assert found == expected, version


def test_the_concurrency_tells_of_the_first_version() -> None:
    assert not Desk(concurrency=3).wants("p0")
    assert Desk(concurrency=4).wants("p0")


def test_steps_of_a_hidden_state_are_counted_for_themselves() -> None:
    desk = Desk(concurrency=16)
    assert not desk.wants("p0", version=5, held=4, waiting=3)
    assert desk.wants("p0", version=5, held=4, waiting=4)


def test_a_small_model_and_a_participant_with_an_older_fedmq_get_whole_tasks() -> None:
    desk = Desk(concurrency=16, reads=lambda name: name != "old")
    assert not desk.wants("p0", num_bytes=BYTES - 1)
    assert not desk.wants("old", waiting=9)


def test_a_participant_that_lost_a_model_gets_one_whole_task_then_two_then_four() -> None:
    desk = Desk(concurrency=16)
    found = []
    for _ in range(3):
        while (payload := desk.send("p0")) is None:
            found.append("whole")
        found.append(payload)
        desk.references.lost("p0")
    assert found == ["m1", "whole", "m2", "whole", "whole", "m3"]
    assert not desk.wants("p0")
    assert desk.wants("p1"), "the others go on with references"


def test_an_update_ends_the_count_of_losses() -> None:
    desk = Desk(concurrency=16)
    for _ in range(3):
        assert desk.send("p0") is not None
        desk.references.lost("p0")
        assert desk.send("p0") is None
        assert desk.send("p0") is not None
        desk.references.found("p0")


def test_a_decline_without_a_reference_changes_nothing() -> None:
    desk = Desk(concurrency=16)
    desk.send("p1")
    desk.references.lost("p0")
    assert desk.wants("p0")
    assert desk.send("p1") == "m1"


def test_models_are_published_again_after_a_lost_connection_and_when_they_may_leave_the_stream() -> None:
    desk = Desk(concurrency=16, keep=4)
    assert desk.send("a", 1) == "m1"
    desk.references.doubt()
    assert desk.send("a", 1) == "m2"
    for version in (2, 3):
        for name in "abcd":
            desk.send(name, version)
    keys: list[Key] = [(version, "", -1, "away") for version in (1, 2, 3)]
    assert [desk.references.model(key) is not None for key in keys] == [False, True, True]


def test_after_a_failed_publication_tasks_are_whole_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(concurrency=16)
    told: list[str] = []
    desk.references.publish((0, "", -1, "away"), MODEL, lambda: told.append("then"))
    assert desk.references.publishing == 0
    desk.stream.answer(PublishError("nack"))
    assert (told, desk.references.publishing) == (["then"], None)
    assert not desk.wants("p0")
    assert "event=model_not_published" in caplog.text
    desk.now = RETRY_S
    assert desk.wants("p0")
    desk.references.publish((0, "", -1, "away"), MODEL, lambda: None)
    desk.stream.answer(PublishError("nack"))
    desk.now = 3 * RETRY_S - 1
    assert not desk.wants("p0"), "the second time it waits for twice as long"
    desk.now = 3 * RETRY_S
    assert desk.wants("p0")


def test_the_stream_keeps_whole_models_in_segments_of_their_size() -> None:
    assert stream_bytes(5_000_000, 8) == (8 * 2**23, 2**23)
    assert stream_bytes(5_100_000, 8) == (8 * 2**23, 2**23)
    assert stream_bytes(10, 2) == (2 * 2**21, 2**21)
    assert stream_bytes(2**32, 4) == (4 * 2**33, 500_000_000)
