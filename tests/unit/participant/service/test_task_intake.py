"""The fate of the queue that brings a task's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.participant.service.task_intake import TaskIntake
from fedmq.participant.spool.spool import Spool
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
