"""The one thread that calls the trainer: tasks in, encoded updates or failures out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fedmq.participant.decisions.events import TrainingFailed
from fedmq.participant.memory import Memory
from fedmq.participant.trainer import keeps
from fedmq.participant.training.task_work import TaskFailed, do_task
from fedmq.schemas.codec import encode_in_pieces
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Task, Update
from fedmq.schemas.parameters import Parameters

log = EventLog(__name__)

JOIN_S = 5.0
"""Time that a trainer has to stop after it was asked to."""


_Job = tuple[Task, Parameters, Memory | None, Frozen | None, Path | None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished update, and its encoded message body in pieces."""

    update: Update
    pieces: Sequence[bytes | memoryview]
    next_memory: Memory | None = None
    """The method's memory once the update is accepted; None if the method has none."""


class TrainingThread:
    """The training thread. It gives its results to `put`, which must not block.

    It is a daemon thread, so a trainer that never returns does not keep the process alive.
    """

    def __init__(
        self,
        trainer: Any,
        name: str,
        max_payload_bytes: int,
        put: Callable[[Trained | TrainingFailed], None],
        own_codec: Codec | None = None,
    ) -> None:
        self._trainer = trainer
        self._own_codec = own_codec
        self._max_payload_bytes = max_payload_bytes
        self._put = put
        self._cancelled = threading.Event()
        """Set if the training that runs was asked to end."""
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def open(self) -> None:
        self._thread.start()

    @property
    def trainer_keeps(self) -> bool:
        """True if the trainer wants a folder of its own (`participant.trainer`)."""
        return keeps(self._trainer)

    def start(
        self,
        task: Task,
        tensors: Parameters,
        memory: Memory | None,
        frozen: Frozen | None = None,
        own_folder: Path | None = None,
    ) -> None:
        """Train this task next, with the method's memory of its run, with the model's frozen part, and with the
        trainer's own folder for the run."""
        self._jobs.put((task, tensors, memory, frozen, own_folder))

    def cancel(self) -> None:
        """Ask a running training to end, if the trainer can."""
        self._cancelled.set()
        cancel = getattr(self._trainer, "cancel", None)
        if callable(cancel):
            cancel()

    def close(self) -> None:
        """End the thread. A training that goes on all the same is left behind after JOIN_S."""
        if not self._thread.is_alive():
            return
        self._jobs.put(None)
        self.cancel()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            log.warning("training_left_behind", thread=self._thread.name, why="no cancel(), or not heeded")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._put(self._trained(*job))
            del job

    def _trained(
        self, task: Task, tensors: Parameters, memory: Memory | None, frozen: Frozen | None, own_folder: Path | None
    ) -> Trained | TrainingFailed:
        self._cancelled.clear()
        try:
            done = do_task(
                self._trainer,
                task,
                tensors,
                time.monotonic,
                memory,
                was_cancelled=self._cancelled.is_set,
                own_codec=self._own_codec,
                frozen=frozen,
                own_folder=own_folder,
            )
            pieces = encode_in_pieces(done.update, done.payload)
        except TaskFailed as failed:
            return TrainingFailed(task.task_id, failed.reason, failed.detail, failed.fatal)
        num_bytes = sum(len(piece) for piece in pieces)
        if num_bytes > self._max_payload_bytes:
            detail = (
                f"the update has {num_bytes} bytes, max_payload_bytes is {self._max_payload_bytes}: "
                "raise it in [broker] on both sides"
            )
            return TrainingFailed(task.task_id, "unsupported", detail)
        return Trained(done.update, pieces, done.next_memory)
