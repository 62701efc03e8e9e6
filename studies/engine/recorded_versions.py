"""The versions of a recorded run, if they do not follow from its updates alone. The ledger says when each was made and,
with arrival groups, of which updates. The classes here take the places of what decides that in the core.

A synchronous round may have ended at its deadline, with fewer updates than its cohort has. Tasks that nobody answered
in time are not in a replay, because they gave no accepted update. A buffer may have made a version by its timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmq.coordinator.audit.replay import groups_of, version_follows
from fedmq.coordinator.decisions.commands import Command
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import Event
from fedmq.coordinator.decisions.failures import Drop
from fedmq.coordinator.decisions.participants.arrival_groups import ArrivalGroups, Closed
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.coordinator.decisions.updates.claims import Claims
from fedmq.coordinator.decisions.versions.buffer_timer import BufferTimer
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.rounds import Rounds
from fedmq.coordinator.state.ledger.rows import UpdateRow, VersionRow
from fedmq.coordinator.strategies.math.client_weights import ClientWeights
from fedmq.coordinator.strategies.protocol import BufferTimeout, Cohort, State, Strategy, arrivals, buffer_timeout
from fedmq.schemas.messages import Update


class RecordedVersions:
    """The progress of a replay, and the time of its next version."""

    def __init__(self, strategy: Strategy[Any], rows: Sequence[UpdateRow], versions: Sequence[VersionRow]) -> None:
        self._strategy, self._rows, self._versions = strategy, rows, versions
        self.accepted = self.version = 0

    def next_due(self) -> float | None:
        """Return the run time (s) at which the next version was made; None if the next update comes before it."""
        if not self.accepted or not version_follows(self._strategy, self._rows, self.accepted, self.version):
            return None
        return self._versions[self.version].run_s

    def is_due(self, now: float) -> bool:
        """Return True if the next version was made by now."""
        due_s = self.next_due()
        return due_s is not None and due_s <= now


class RecordedGroups(ArrivalGroups):
    """Arrival groups as recorded. Nobody is assigned to a group and nobody waits: tasks go out when they went out."""

    def __init__(self, strategy: Strategy[Any], rows: Sequence[UpdateRow], record: RecordedVersions) -> None:
        shape = arrivals(strategy)
        assert shape is not None, "only for strategies that have groups"
        super().__init__(shape, lambda _: None)
        self._rows, self._record = rows, record
        self._group_of = groups_of(rows)
        self._orders: dict[int | None, dict[str, int]] = {}
        for row in rows:
            self._orders.setdefault(row.version, {})[row.update_id] = row.accepted_order

    def steps(self, task_id: str) -> int:  # noqa: ARG002 - nothing is trained
        return 1

    def assign(self, p: Participant, task_id: str, now: float) -> None:
        pass

    def leave(self, task_id: str, *, open_still: bool) -> None:
        pass

    def arrive(self, p: Participant, task: HeldTask, update_id: str, order: int, now: float) -> int | None:  # noqa: ARG002
        self._record.accepted = order
        return self._rows[order - 1].arrival_group

    def close(self, now: float) -> Closed | None:
        if not self._record.is_due(now):
            return None
        self._record.version += 1
        version = self._record.version
        return Closed(self._group_of[version], self._orders[version], [])

    def next_due(self) -> float | None:
        return self._record.next_due()


class RecordedRounds(Rounds):
    """Rounds as recorded: the same participants are asked at the same moments.

    No deadline passes, apart from those that made a version.
    """

    def __init__(self, cohort: Cohort, desk: TaskDesk, model: Model, record: RecordedVersions) -> None:
        super().__init__(cohort, desk, model)
        self._record = record

    def tasks_wanted(self) -> int:
        free = self._desk.roster.free
        if free and self.opened_s is None:
            self._begin_deadline()
        return free

    def on_accepted(self, p: Participant) -> None:
        self._record.accepted += 1
        super().on_accepted(p)

    def deadline_s(self) -> float | None:
        return self._record.next_due()

    def pass_time(self) -> None:
        pass

    def on_version(self) -> None:
        self._record.version += 1
        super().on_version()


class RecordedTimer(BufferTimer):
    """The timer of a buffer as recorded: a buffer that is not full makes its version when it did in the run."""

    def __init__(self, timeout: BufferTimeout, record: RecordedVersions) -> None:
        super().__init__(timeout)
        self._record = record

    def on_accepted(self, now: float) -> None:
        self._record.accepted += 1
        super().on_accepted(now)

    def due_s(self, count: int) -> float | None:  # noqa: ARG002 - the record knows how many were enough
        return self._record.next_due()

    def close(self) -> None:
        self._record.version += 1
        super().close()


class _ReadyAsRecorded:
    """A synchronous strategy that is ready when it was in the run."""

    def __init__(self, strategy: Strategy[Any], record: RecordedVersions) -> None:
        self._strategy, self._record = strategy, record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def ready(self, state: State, now: float) -> bool:  # noqa: ARG002 - a strategy's signature
        return self._record.is_due(now)


class _RecordedWeights(ClientWeights):
    """The client weights in the ledger's rows. They cannot be computed again: the ledger does not record which
    participants were known at the time."""

    def __init__(self, rows: Sequence[UpdateRow]) -> None:
        super().__init__("equal")
        self._given = iter(rows)

    def weight(self, *_: object) -> float:
        return next(self._given).client_weight


class _RecordedClaims(Claims):
    """The numbers in the ledger, as they were clamped."""

    def within_bounds(self, p: Participant, task: HeldTask, update: Update) -> tuple[Update, str]:  # noqa: ARG002
        return update, ""


class RecordedCore(Core):
    """A core that can follow the record of a run."""

    _to_begin_anew: Sequence[tuple[float, Drop]] = ()
    _record: RecordedVersions | None = None

    def step(self, event: Event, now: float) -> list[Command]:
        self.begin_anew_by(now)
        return super().step(event, now)

    def begin_anew_by(self, now: float) -> None:
        """Begin the method anew if the run did so by now, at this update and version (decisions.set_backs)."""
        while self._to_begin_anew:
            at_s, drop = self._to_begin_anew[0]
            if at_s > now or (drop.accepted, drop.version) != (self._buffer.accepted, self._desk.version):
                return
            self._to_begin_anew = self._to_begin_anew[1:]
            self._buffer.clear(drop)
            if self._record is not None:  # a buffer that was cleared made no version
                self._record.version = self._desk.version

    def follow(
        self, rows: Sequence[UpdateRow], versions: Sequence[VersionRow], anew: Sequence[tuple[float, Drop]] = ()
    ) -> RecordedVersions | None:
        """Take the client weights from the record, and the versions of rounds, arrival groups or a buffer's
        timeout.

        `anew` says when, in run time, and where the method began anew. Return None if the strategy has none of
        them: its versions follow from its updates.
        """
        self._desk.client_weights = _RecordedWeights(rows)
        self._verdicts.claims = _RecordedClaims(self._desk)
        self._to_begin_anew = anew
        strategy = self._buffer.strategy
        record = RecordedVersions(strategy, rows, versions)
        if arrivals(strategy) is not None:
            self._buffer.groups = self._desk.groups = RecordedGroups(strategy, rows, record)
        elif strategy.cohort is not None:
            rounds = RecordedRounds(strategy.cohort, self._desk, self._model, record)
            self._buffer.rounds = self._ending.rounds = rounds
            self._buffer.strategy = _ReadyAsRecorded(strategy, record)
        elif (timeout := buffer_timeout(strategy)) is not None:
            self._buffer.timer = RecordedTimer(timeout, record)
        else:
            return None
        self._record = record
        return record
