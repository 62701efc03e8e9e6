"""The participants of a recorded run: how long each task was out, how often each dropped out, how much data each had.

Everything comes from the run's ledger. A task's duration is the time from its issue to the arrival of its update, by
the coordinator's clock: training, both transfers, waiting in queues, and whatever the device did in between. A task
that gave no update counts as a dropout of its participant: `declines` if the participant said so, `vanishes` if the
task lapsed and nothing came. Tasks that the coordinator withdrew, or that were out at the end, do not count.
Participants without an accepted update are left out, because nobody knows how long they take.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.trust import believed
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """A task that gave an accepted update. Times are run times (s)."""

    order: int
    """Order of its update among all accepted updates, from 1."""
    seq: int
    issued_s: float
    arrived_s: float
    train_s: float

    @property
    def duration_s(self) -> float:
        return self.arrived_s - self.issued_s


@dataclass(frozen=True, slots=True)
class History:
    """One participant of the run."""

    participant_id: str
    num_examples: int
    tasks: tuple[RecordedTask, ...]
    """Tasks in order of issue; at least one."""
    declines: float = 0.0
    """Part of its tasks that it declined, in [0, 1]."""
    vanishes: float = 0.0
    """Part of its tasks that lapsed for good, in [0, 1]."""

    def drawn(self, u: float) -> RecordedTask:
        """Return one of its tasks, each with the same probability, for a uniform u in [0, 1)."""
        return self.tasks[int(u * len(self.tasks))]


def histories(run: str) -> tuple[History, ...]:
    """Return all participants with an accepted update, in the order of their first hello.

    Raises LedgerError if there is no ledger, ConfigError if no update was accepted.
    """
    ledger = RunFolder(Path(run)).ledger
    wal = ledger.with_name(ledger.name + "-wal")
    changed = [path.lstat().st_mtime_ns if os.path.lexists(path) else 0 for path in (ledger, wal)]
    with believed(ledger):
        return _histories(run, *changed)


@lru_cache(maxsize=8)
def _histories(run: str, *_changed: int) -> tuple[History, ...]:
    with LedgerReader(RunFolder(Path(run)).ledger) as ledger, ledger.at_one_moment():
        rows = {row.task_id: row for row in ledger.updates()}
        records = [row.record for row in ledger.participants()]
        without_update = ledger.tasks_without_update()
        tasks: defaultdict[str, list[RecordedTask]] = defaultdict(list)
        for task in ledger.accepted_tasks():
            row = rows[task.task_id]
            tasks[task.participant_id].append(
                RecordedTask(row.accepted_order, task.seq, task.issued_s, row.run_s, row.train_s)
            )
    found = []
    for record in sorted(records, key=lambda r: r.seq):
        own = tasks.get(record.participant_id)
        if not own:
            continue
        counts = Counter(without_update.get(record.participant_id, {}))
        total = len(own) + counts["declined"] + counts["lapsed"]
        found.append(
            History(
                record.participant_id, record.num_examples, tuple(own), counts["declined"] / total,
                counts["lapsed"] / total,
            )
        )  # fmt: skip
    if not found:
        raise ConfigError(f"the run in {run} has accepted no update: there is nothing to take a population from")
    return tuple(found)


def digest(run: str) -> str:
    """Return a digest of everything that a study takes from the run."""
    return hashlib.sha256(repr(histories(run)).encode()).hexdigest()


def lanes(run: Sequence[History]) -> list[History]:
    """Return the participants for the recorded order, each with tasks that do not overlap.

    A participant that was given a task while a lapsed one was in training counts twice.
    """
    found: list[History] = []
    for history in run:
        open_lanes: list[list[RecordedTask]] = []
        for task in history.tasks:
            free = next((lane for lane in open_lanes if lane[-1].arrived_s <= task.issued_s), None)
            if free is None:
                open_lanes.append(free := [])
            free.append(task)
        found += [History(history.participant_id, history.num_examples, tuple(lane)) for lane in open_lanes]
    return found


def offers(run: Sequence[History]) -> list[tuple[int, RecordedTask]]:
    """Return (lane, task) pairs in the order in which the tasks went out."""
    pairs = [(lane, task) for lane, history in enumerate(run) for task in history.tasks]
    return sorted(pairs, key=lambda pair: (pair[1].issued_s, pair[1].seq))
