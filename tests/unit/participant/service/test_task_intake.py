"""The fate of the queue that brings a task's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmq.participant.decisions import events as ev
from fedmq.participant.service.task_intake import TaskIntake
from fedmq.participant.spool.spool import Spool
from fedmq.schemas import chunks
from fedmq.schemas.codec import encode
from fedmq.schemas.messages import ChunkedPayload, Model, ModelReference, Task
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest
from tests.unit.participant.service.contexts import make_context
from tests.unit.participant.service.test_download import TASK, Queues

assert TASK.chunks is not None
COPY = TASK.model_copy(update={"chunks": TASK.chunks.model_copy(update={"payload_id": "two"})})


@pytest.fixture
def queues() -> Queues:
    return Queues()


@pytest.fixture
def intake(tmp_path: Path, queues: Queues) -> Iterator[TaskIntake]:
    spool = Spool(tmp_path, "p")
    yield TaskIntake(make_context(queues, spool, "p", put=lambda _item: None), None)  # type: ignore[arg-type]
    spool.close()


def test_the_queue_of_a_task_that_is_not_wanted_goes(intake: TaskIntake, queues: Queues) -> None:
    intake.decided(TASK, goes_back=False)
    assert queues.deleted == 1


def test_the_queue_of_a_task_that_goes_back_stays_for_the_next_process(intake: TaskIntake, queues: Queues) -> None:
    intake.decided(TASK, goes_back=True)
    intake.spool(TASK, 1, b"")
    intake.decided(COPY, goes_back=True)
    assert queues.deleted == 0


def test_the_queue_that_is_being_read_stays_and_that_of_a_copy_goes(intake: TaskIntake, queues: Queues) -> None:
    intake.spool(TASK, 1, b"")
    intake.decided(TASK, goes_back=False)
    assert queues.deleted == 0
    intake.decided(COPY, goes_back=False)
    assert queues.deleted == 1


# Tasks that refer to a model


TENSORS = Parameters({"w": np.arange(400, dtype=np.float32)})
DIGEST = tensors_digest(TENSORS).hex()
MODEL = Model(run_id=TASK.run_id, base_version=TASK.base_version, digest=DIGEST)


def referring(body: bytes, digest: str = DIGEST) -> Task:
    """Return a task that refers to this encoded model, which is the whole of its chunks."""
    payload = ChunkedPayload(
        payload_id="m", num_bytes=len(body), chunk_bytes=2**20, count=1,
        digest=chunks.digest_of_all([chunks.digest_of(body)]),
    )  # fmt: skip
    return TASK.model_copy(update={"chunks": payload, "reference": ModelReference(offset=7, digest=digest)})


def spooled(tmp_path: Path, task: Task, body: bytes) -> list[ev.Event]:
    """Spool a task whose chunks are on the disk already."""
    events: list[ev.Event] = []
    spool = Spool(tmp_path, "p")
    assert task.chunks is not None
    spool.payload.open(task.chunks)
    spool.payload.write(0, body)
    spool.payload.sync({0: chunks.digest_of(body)})
    context = make_context(Queues(), spool, "p", put=events.append)
    TaskIntake(context, None).spool(task, 1, encode(task))  # type: ignore[arg-type]
    spool.close()
    return events


def test_a_task_whose_model_is_as_it_says_is_spooled(tmp_path: Path) -> None:
    body = encode(MODEL, TENSORS)
    task = referring(body)
    assert spooled(tmp_path, task, body) == [ev.TaskSpooled(task.task_id, 1, None)]


@pytest.mark.parametrize(
    ("model", "tensors", "digest"),
    [
        (MODEL.model_copy(update={"base_version": TASK.base_version + 1}), TENSORS, DIGEST),
        (MODEL.model_copy(update={"run_id": "another"}), TENSORS, DIGEST),
        (MODEL, Parameters({"w": np.ones(400, np.float32)}), DIGEST),
        (MODEL, TENSORS, "0" * 64),
        (TASK.model_copy(update={"chunks": None}), TENSORS, DIGEST),
    ],
    ids=["version", "run", "tensors", "digest", "kind"],
)
def test_chunks_that_are_another_model_than_the_task_says_are_declined(
    tmp_path: Path, model: Model | Task, tensors: Parameters, digest: str
) -> None:
    body = encode(model, tensors)
    (failed,) = spooled(tmp_path, referring(body, digest), body)
    assert isinstance(failed, ev.SpoolFailed)
    assert failed.reason == "unreadable"
    assert "another model than version" in failed.detail


def test_the_stream_of_a_task_that_is_not_wanted_stays(intake: TaskIntake, queues: Queues) -> None:
    intake.decided(referring(b"body" * 300), goes_back=False)
    assert queues.deleted == 0
