"""How a run ends: at a limit or goal no update is taken any more, the last version is evaluated, then it is finished
(core.py, rule 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmq.coordinator.decisions.commands import Evaluate, Finish
from fedmq.coordinator.decisions.evaluation import Evaluations
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.decisions.rounds import Rounds
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.settings import RunSettings, StopSettings


def limit_reached(stop: StopSettings, *, version: int, accepted: int, now: float, in_round: bool = False) -> str | None:
    """The limit that the run has reached, by the name of its setting; None while there is none.

    A synchronous round is not cut short by `max_updates`: its updates would be lost to the model.
    """
    if stop.max_versions is not None and version >= stop.max_versions:
        return "max_versions"
    if stop.max_updates is not None and accepted >= stop.max_updates and not in_round:
        return "max_updates"
    if stop.max_time_s is not None and now >= stop.max_time_s:
        return "max_time_s"
    return None


class Ending:
    """Used by the core alone, as the desk, whose time, version and commands it uses."""

    def __init__(self, settings: RunSettings, desk: TaskDesk, rounds: Rounds | None, *, evaluates: bool) -> None:
        self._limits = settings.stop
        self._desk, self._rounds = desk, rounds
        self.evaluations = Evaluations(settings, evaluates)
        self.stopping: str | None = None
        """The limit or goal that is reached, by the name of its setting."""
        self.finished: str | None = None
        """`stopping`, once Finish was emitted."""

    def stop(self, reason: str) -> None:
        """All tasks are withdrawn; a second reason changes nothing."""
        if self.stopping is None:
            self.stopping = reason
            if self._rounds is not None:
                self._rounds.opened_s = None
            for task in self._desk.tasks.open():
                self._desk.withdraw(task, f"the run is over: {reason}")

    def check(self, accepted: int) -> None:
        """Whether a limit is reached, with so many updates accepted, and whether nothing is left to do."""
        desk = self._desk
        if self.stopping is None:
            limit = limit_reached(
                self._limits,
                version=desk.version,
                accepted=accepted,
                now=desk.now,
                in_round=self._rounds is not None and self._rounds.opened_s is not None,
            )
            if limit is not None:
                self.stop(limit)
        if self.stopping is not None and self.evaluations.complete(desk.version):
            self.finished = self.stopping
            desk.commands.append(Finish(self.stopping))

    def evaluate_if_due(self) -> None:
        desk = self._desk
        due_s = self.evaluations.due_s(desk.version)
        if due_s is not None and (self.stopping is not None or desk.now >= due_s):
            self.evaluations.begin(desk.version, desk.now)
            desk.commands.append(Evaluate(desk.version))

    def on_evaluation(self, event: EvaluationArrived) -> None:
        """A result, which may reach a goal."""
        goal = self.evaluations.on_result(event)
        if goal is not None:
            self.stop(goal)

    def scalars(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"evaluations": self.evaluations.scalars(), "stopping": self.stopping, "finished": self.finished}

    def load(self, scalars: Mapping[str, Any]) -> None:
        self.evaluations.load(scalars["evaluations"])
        self.stopping, self.finished = scalars["stopping"], scalars["finished"]
