"""Rounds of a synchronous strategy: the cohort barrier of the core (core.py, rule 9)."""

from __future__ import annotations

import math

from fedmq.coordinator.decisions.model import Model
from fedmq.coordinator.decisions.participants import Participant
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.strategies.protocol import Cohort


class Rounds:
    """One is open at a time, from the first tasks that it asks for until it makes its version."""

    def __init__(self, cohort: Cohort, desk: TaskDesk, model: Model) -> None:
        self._cohort, self._desk, self._model = cohort, desk, model
        self.opened_s: float | None = None
        """When the open one began, or went on because too few had answered; None where none is open."""

    def tasks_wanted(self) -> int:
        """How many more are to go out now. Opens a round where none is and enough participants are free."""
        if self.opened_s is None:
            if self._desk.roster.free < max(1, self._cohort.min_updates):
                return 0
            self._desk.client_weights.pin()
            self._begin_deadline()
        asked = math.ceil(self._cohort.size * self._cohort.over_selection - 1e-9)  # 10·1.1 is 11, not 12
        return asked - self._model.state.count - self._desk.tasks.out

    def on_accepted(self, p: Participant) -> None:
        """Its update was accepted: it gives no other to this round. The caller settles."""
        self._desk.roster.mark_answered(p, self._desk.version)
        for other in [*p.lapsed, *([p.out] if p.out else [])]:
            self._desk.withdraw(other, "its participant has answered this round")

    def deadline_s(self) -> float | None:
        """Of the open one."""
        return None if self.opened_s is None else self.opened_s + self._cohort.deadline_s

    def pass_time(self) -> None:
        """A deadline that passed with too few updates: lapse what is out, and begin it again."""
        deadline_s = self.deadline_s()
        if deadline_s is not None and self._desk.now >= deadline_s:
            for task in self._desk.tasks.open():
                if task.state == "out":
                    self._desk.lapse(task, "round deadline")
            self._begin_deadline()

    def on_version(self) -> None:
        """It made the version that is now the newest."""
        self.opened_s = None
        for task in self._desk.tasks.open():
            self._desk.withdraw(task, f"the round ended with version {self._desk.version}")
        self._desk.roster.free_answered(self._desk.now, self._desk.version)

    def _begin_deadline(self) -> None:
        self.opened_s = self._desk.now
        self._model.open_round(self._desk.now)
