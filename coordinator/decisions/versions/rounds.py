"""Rounds of a synchronous strategy: the core's cohort barrier (core.py, rule 9)."""

from __future__ import annotations

import math

from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.strategies.protocol import Cohort


def asked(cohort: Cohort) -> int:
    """Return the number of participants that a round asks."""
    return math.ceil(cohort.size * cohort.over_selection - 1e-9)  # 10·1.1 is 11, not 12


class Rounds:
    """The open round, if there is one. A round is open from its first tasks until it makes its version."""

    def __init__(self, cohort: Cohort, desk: TaskDesk, model: Model) -> None:
        self._cohort, self._desk, self._model = cohort, desk, model
        self.opened_s: float | None = None
        """Run time at which the open round's deadline began (seconds); None if no round is open."""

    def tasks_wanted(self) -> int:
        """Return the number of tasks that must go out now. Opens a round if none is open and enough are free."""
        if self.opened_s is None:
            if self._desk.roster.free < max(1, self._cohort.min_updates):
                return 0
            self._desk.client_weights.pin()
            self._begin_deadline()
        return asked(self._cohort) - self._model.state.count - self._desk.tasks.out

    def on_accepted(self, p: Participant) -> None:
        """Note an accepted update: its participant gives no other to this round. The caller settles the participant."""
        self._desk.roster.mark_answered(p, self._desk.version)
        for other in [*p.lapsed, *([p.out] if p.out else [])]:
            self._desk.withdraw(other, "its participant has answered this round")

    def deadline_s(self) -> float | None:
        """Run time at which the open round's deadline ends (seconds); None if no round is open."""
        return None if self.opened_s is None else self.opened_s + self._cohort.deadline_s

    def pass_time(self) -> None:
        """Let the tasks that are out lapse, and begin the deadline again, if it passed with too few updates."""
        deadline_s = self.deadline_s()
        if deadline_s is not None and self._desk.now >= deadline_s:
            for task in self._desk.tasks.open():
                if task.state == "out":
                    # A slow participant may be honest. One that never gave an update is not asked in every round.
                    self._desk.lapse(task, "round deadline", silent=not self._desk.owner(task).accepted)
            self._begin_deadline()

    def on_version(self) -> None:
        """Close the round: it made the version that is now the newest."""
        self.opened_s = None
        for task in self._desk.tasks.open():
            self._desk.withdraw(task, f"the round ended with version {self._desk.version}")
        self._desk.roster.free_answered(self._desk.now, self._desk.version)

    def on_dropped(self) -> None:
        """Ask the participants of the open round again: the updates that they gave are out of the model."""
        self._desk.roster.ask_again(self._desk.now, self._desk.version)
        if self.opened_s is not None:
            self._begin_deadline()

    def _begin_deadline(self) -> None:
        self.opened_s = self._desk.now
        self._model.open_round(self._desk.now)
