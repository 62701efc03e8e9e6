"""The task book: all open tasks. One that is out holds a slot; a lapsed one holds none, but its update is welcome."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from fedmq.coordinator.decisions.records import OPEN_STATES, ClosedState, TaskRecord, TaskState

_FEW = 1024
"""Leases of closed tasks that are not worth a search."""

_of_record = attrgetter(*TaskRecord.__dataclass_fields__)


@dataclass(slots=True, eq=False)
class HeldTask:
    """The live form of a TaskRecord, field by field."""

    task_id: str
    seq: int
    participant_id: str
    base_version: int
    issued_s: float
    lease_until_s: float
    state: TaskState = "out"
    detail: str = ""
    sent_s: float = 0.0
    repeats: int = 0

    def record(self) -> TaskRecord:
        return TaskRecord(*_of_record(self))


class TaskBook:
    """Open tasks by id, a heap of their leases, and a heap of the lapsed ones' base versions (lazy deletion)."""

    def __init__(self, max_staleness: int | None) -> None:
        self._max_staleness = max_staleness
        self._open: dict[str, HeldTask] = {}
        self._leases: list[tuple[float, int, HeldTask]] = []
        self._lapsed: list[tuple[int, int, HeldTask]] = []
        self._dirty: dict[str, HeldTask] = {}
        self.out = 0

    def get(self, task_id: str) -> HeldTask | None:
        """Return the open task of this id, if there is one."""
        return self._open.get(task_id)

    def just_closed(self, task_id: str) -> HeldTask | None:
        """Return the task if it closed since the last `changes`; the ledger does not have it as closed yet."""
        task = self._dirty.get(task_id)
        return task if task is not None and task.state not in OPEN_STATES else None

    def holds(self, task_id: str) -> bool:
        """Return True for a task that is open, or that closed since the last `changes`."""
        return self.get(task_id) is not None or self.just_closed(task_id) is not None

    def open(self) -> list[HeldTask]:
        """Return all open tasks in order of issue."""
        return sorted(self._open.values(), key=lambda task: task.seq)

    def add(self, task: HeldTask) -> None:
        """Add a task that goes out now."""
        self._enter(task)
        self._dirty[task.task_id] = task

    def load(self, record: TaskRecord) -> HeldTask:
        """Add an open task from the ledger."""
        task = HeldTask(*_of_record(record))
        self._enter(task)
        return task

    def _enter(self, task: HeldTask) -> None:
        self._open[task.task_id] = task
        if task.state == "out":
            self.out += 1
            if len(self._leases) > 2 * self.out + _FEW:  # most of these tasks are over
                self._leases = [entry for entry in self._leases if entry[2].state == "out"]
                heapq.heapify(self._leases)
            heapq.heappush(self._leases, (task.lease_until_s, task.seq, task))
        else:
            self._enter_lapsed(task)

    def _enter_lapsed(self, task: HeldTask) -> None:
        if self._max_staleness is not None:
            heapq.heappush(self._lapsed, (task.base_version, task.seq, task))

    def touch(self, task: HeldTask) -> None:
        """Note that an open task changed, so that its row is written again."""
        self._dirty[task.task_id] = task

    def lapse(self, task: HeldTask, detail: str) -> None:
        """Free the task's slot; its update stays welcome."""
        task.state, task.detail = "lapsed", detail
        self.out -= 1
        self._enter_lapsed(task)
        self.touch(task)

    def close(self, task: HeldTask, state: ClosedState, detail: str) -> None:
        """Close the task: its update is not welcome any more."""
        if task.state == "out":
            self.out -= 1
        task.state, task.detail = state, detail
        del self._open[task.task_id]
        self.touch(task)

    def leases_over(self, now: float) -> Iterable[HeldTask]:
        """Return the tasks out whose lease ended by `now`, in order of those ends."""
        return self._pop_leases(now) if self._leases and self._leases[0][0] <= now else ()

    def _pop_leases(self, now: float) -> Iterable[HeldTask]:
        while self._leases and self._leases[0][0] <= now:
            task = heapq.heappop(self._leases)[2]
            if task.state == "out":
                yield task

    def too_stale(self, version: int) -> Iterable[HeldTask]:
        """Yield the lapsed tasks whose update would be too stale by now."""
        if self._max_staleness is None:
            return
        while self._lapsed and version - self._lapsed[0][0] > self._max_staleness:
            task = heapq.heappop(self._lapsed)[2]
            if task.state == "lapsed":
                yield task

    def next_lease_end(self) -> float | None:
        while self._leases and self._leases[0][2].state != "out":
            heapq.heappop(self._leases)
        return self._leases[0][0] if self._leases else None

    def changes(self) -> dict[str, TaskRecord]:
        """Return the records that changed since the last call."""
        dirty, self._dirty = self._dirty, {}
        return {task_id: task.record() for task_id, task in dirty.items()}

    def forget_changes(self) -> None:
        """Drop the list of changed records."""
        self._dirty = {}
