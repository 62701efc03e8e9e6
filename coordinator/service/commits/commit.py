"""The group commit: the one place where the coordinator makes anything durable.

Order: the checkpoint files (if arrays changed), the SQLite transaction, then the caller's acks and publishes. A kill
before the transaction leaves the old state, and the broker redelivers. A kill after it leaves duplicates, which the
ledger recognises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedmq.broker_config.faults import fault
from fedmq.coordinator.audit.replay import checkpoint_meta
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.records import Snapshot
from fedmq.coordinator.service.commits.effects import Pending
from fedmq.coordinator.settings import CommitSettings
from fedmq.coordinator.state.archive import Archive
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles, file_name
from fedmq.coordinator.state.ledger.rows import CheckpointRow
from fedmq.coordinator.state.ledger.writer import Ledger, in_doubt
from fedmq.schemas.errors import Deposed
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.parameters import Parameters

log = EventLog(__name__)

REST_FACTOR = 3.0
"""Commit durations that a coordinator rests between commits, unless its window is full: commits take at most a quarter
of its time."""
MOST_REST_S = 60.0
"""Longest rest. A commit that stood still, with its disk or its process, must not make everybody wait three times as
long."""
CONTROL_WINDOW = 128
"""Most hellos and declines in one commit."""
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 30.0


@dataclass(slots=True)
class Pace:
    """The times of the commits."""

    settings: CommitSettings
    window: int
    """Number of updates that the broker hands out unsettled."""
    poison_budget_bytes: int
    """Most bytes of poison that are kept for the dead-letter queue."""
    ended_s: float = float("-inf")
    took_s: float = 0.0
    retry_s: float = 0.0
    """Wait before the next try, in seconds; nonzero after a failure."""

    def due_s(self, pending: Pending, idle: bool) -> float:
        """Return the run time at which `pending` is to be committed. `idle`: nothing else is left to do."""
        if self.retry_s:
            return self.ended_s + self.retry_s
        # Less than the whole window: the rest of it keeps coming in while the commit is written.
        full = pending.num_updates >= min(self.settings.commit_every_updates, self.window - self.window // 3)
        if full or pending.num_control >= CONTROL_WINDOW or pending.poison_bytes > self.poison_budget_bytes:
            return float("-inf")
        rested_s = self.ended_s + min(REST_FACTOR * self.took_s, MOST_REST_S)
        if idle and pending.urgent:
            return max(pending.since_s, rested_s)
        # To write a large model takes longer than the interval, and there is other work than commits.
        return max(pending.since_s + self.settings.commit_interval_s, rested_s)

    def succeeded(self, began_s: float, ended_s: float) -> None:
        """Note that a commit went through."""
        self.ended_s, self.took_s, self.retry_s = ended_s, ended_s - began_s, 0.0

    def failed(self, ended_s: float) -> None:
        """Note that a commit failed. Each failure in a row doubles the wait for the next try."""
        self.ended_s = ended_s
        self.retry_s = min(RETRY_MOST_S, 2 * self.retry_s or RETRY_FIRST_S)


class Committer:
    """Writes checkpoints and the ledger of one run, in the ledger's epoch.

    A checkpoint's name has its epoch. Therefore a coordinator that was paused and deposed writes over no file of its
    successor. At its start a coordinator removes what older epochs left, and nothing newer, because its view of the
    ledger may be out of date by then.

    A transaction that was refused because it could not be synced may still be in the ledger after a crash
    (`ledger.in_doubt`). Therefore the checkpoint that it names is neither written over nor removed until a later one
    is committed: the next try uses it again, or writes under another name.
    """

    def __init__(self, files: CheckpointFiles, ledger: Ledger, keep: int, archive: Archive | None = None) -> None:
        """`archive` is open."""
        self._files = files
        self._archive = archive
        self._ledger = ledger
        self._keep = keep
        rows = ledger.checkpoints()
        self._state = rows[0]
        self._doubted: list[CheckpointRow] = []
        """Checkpoints of transactions that may be in the ledger after a crash."""
        self._kept = [row.file for row in reversed(rows)]
        left_over = files.left_over(self._kept, ledger.epoch)
        cut_short = [name for name in left_over if name > self._state.file]  # the others were superseded
        if cut_short:
            log.warning(
                "commit_cut_short", removed=",".join(cut_short), goes_on_from=self._state.file,
                detail="it never reached the ledger; the broker delivers its updates again",
            )  # fmt: skip
        files.remove(left_over)
        for name in self._kept[:-1]:
            files.supersede_copy(name)

    @staticmethod
    def first_checkpoint(files: CheckpointFiles, epoch: int, snapshot: Snapshot) -> CheckpointRow:
        """Write version 0 of a new run."""
        return _write(files, 0, 0, 0, snapshot, epoch=epoch)

    @property
    def state(self) -> CheckpointRow:
        """The newest checkpoint that is committed."""
        return self._state

    def keep_payload(self, order: int, payload: Parameters) -> None:
        """Give an accepted update to the archive, if there is one."""
        if self._archive is not None:
            self._archive.keep(order, payload)

    def keep_version(self, version: int, tensors: Parameters) -> None:
        """Give a distilled version to the archive, if there is one."""
        if self._archive is not None:
            self._archive.keep_version(version, tensors)

    def commit(self, core: Core, pending: Pending, clock: Callable[[], float]) -> None:
        """Make `pending` and the core's state durable.

        Raises OSError if the disk refuses: nothing was committed, and `pending` can be committed later. Raises Deposed
        if another coordinator has taken over: nothing was committed, and nothing will be. Raises StrategyFailed if the
        state is not finite: nothing was committed, and this core's state never will be.
        """
        pending.group.finished = core.finished
        if pending.arrays_changed:
            core.check_finite()
        changes = core.changes()
        for participant_id in changes.forgotten:
            pending.group.participants.pop(participant_id, None)
        pending.group.forgotten |= changes.forgotten
        pending.group.participants.update(changes.participants)
        pending.group.tasks.update(changes.tasks)
        pending.group.memories.update(changes.memories)
        snapshot = core.snapshot()
        state = self._state
        if pending.arrays_changed:
            state = self._written(core.version, state.accepted + len(pending.group.accepted), snapshot)
            fault("after-checkpoint")
        else:
            state = CheckpointRow(
                state.seq, state.file, state.digest, core.version, state.accepted, scalars=snapshot.scalars
            )
        if self._archive is not None:
            pending.group.archived = self._archive.sync()
        fault("before-ledger")
        try:
            self._ledger.commit(pending.group, state, clock(), time.time(), keep=self._keep)
        except Deposed:
            if state.seq != self._state.seq:
                self._files.remove([state.file])
            raise
        except OSError as error:
            if state.seq != self._state.seq and in_doubt(error):
                self._doubted = [row for row in self._doubted if row.file != state.file] + [state]
            raise
        fault("after-ledger")
        if state.seq != self._state.seq:
            self._files.supersede_copy(self._state.file)
            self._kept.append(state.file)
            gone, self._kept = self._kept[: -self._keep], self._kept[-self._keep :]
            self._files.remove(gone + [row.file for row in self._doubted if row.file != state.file])
            self._doubted.clear()
        self._state = state
        if self._archive is not None:
            self._archive.committed(snapshot, state.accepted, state.version)

    def _written(self, version: int, accepted: int, snapshot: Snapshot) -> CheckpointRow:
        """Return the checkpoint of this state. States of equal counts and drops have equal arrays."""
        if self._doubted:
            last, drops = self._doubted[-1], snapshot.scalars.get("drops", ())
            if (last.version, last.accepted, list(last.scalars.get("drops", ()))) == (version, accepted, list(drops)):
                return replace(last, scalars=snapshot.scalars)
        seq, epoch, again = self._state.seq + 1, self._ledger.epoch, len(self._doubted)
        return _write(self._files, seq, version, accepted, snapshot, epoch=epoch, again=again)


def _write(
    files: CheckpointFiles, seq: int, version: int, accepted: int, snapshot: Snapshot, *, epoch: int, again: int = 0
) -> CheckpointRow:
    fault("before-checkpoint")
    name = file_name(seq, epoch, again)
    digest = files.write(name, snapshot.arrays, checkpoint_meta(accepted, version))
    return CheckpointRow(seq, name, digest, version, accepted, snapshot.scalars)
