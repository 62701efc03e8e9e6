"""The end of a run (core.py, rule 13).

At a limit or goal the run stops and accepts no more updates. Its last version is evaluated. Then it is finished.

If the first evaluation does not measure what a goal names, the run has a mistake. It would never reach the goal, or
would run out of patience without a reason. Its owner leaves it at once, and it can go on with other goals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmq.coordinator.decisions.commands import Evaluate, Finish
from fedmq.coordinator.decisions.evaluation import Evaluations
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.versions.rounds import Rounds
from fedmq.coordinator.settings import RunSettings, StopSettings


def limit_reached(stop: StopSettings, *, version: int, accepted: int, now: float, in_round: bool = False) -> str | None:
    """Return the name of the limit that the run has reached; None if it has reached none.

    `max_updates` does not cut a synchronous round short: the round's updates would be lost to the model.
    """
    if stop.max_versions is not None and version >= stop.max_versions:
        return "max_versions"
    if stop.max_updates is not None and accepted >= stop.max_updates and not in_round:
        return "max_updates"
    if stop.max_time_s is not None and now >= stop.max_time_s:
        return "max_time_s"
    return None


class Ending:
    """The state of the ending. Only the core uses it; it shares the task desk's time, version and commands."""

    def __init__(self, settings: RunSettings, desk: TaskDesk, rounds: Rounds | None, *, evaluates: bool) -> None:
        self._limits = settings.stop
        self._desk = desk
        self.rounds = rounds
        self.evaluations = Evaluations(settings, evaluates)
        self.stopping: str | None = None
        """Name of the limit or goal that was reached; None while the run goes on."""
        self.finished: str | None = None
        """The value of `stopping` once Finish was emitted; None before that."""

    def stop(self, reason: str) -> None:
        """Stop the run and withdraw all tasks. A second reason changes nothing."""
        if self.stopping is None:
            self.stopping = reason
            if self.rounds is not None:
                self.rounds.opened_s = None
            for task in self._desk.tasks.open():
                self._desk.withdraw(task, f"the run is over: {reason}")

    def check(self, accepted: int) -> None:
        """Stop the run if `accepted` updates, or another count, reach a limit; finish it if nothing is left to do."""
        desk = self._desk
        if self.stopping is None:
            limit = limit_reached(
                self._limits,
                version=desk.version,
                accepted=accepted,
                now=desk.now,
                in_round=self.rounds is not None and self.rounds.opened_s is not None,
            )
            if limit is not None:
                self.stop(limit)
        if self.stopping is not None and self.evaluations.complete(desk.version):
            self.finished = self.stopping
            desk.commands.append(Finish(self.stopping))

    def evaluate_if_due(self, accepted: int) -> None:
        desk, stopping = self._desk, self.stopping is not None
        due_s = self.evaluations.due_s(desk.version, accepted, last=stopping)
        if due_s is not None and (stopping or desk.now >= due_s):
            self.evaluations.begin(desk.version, desk.now, accepted)
            desk.commands.append(Evaluate(desk.version))

    def on_evaluation(self, event: EvaluationArrived) -> None:
        """Handle a result, which may reach a goal."""
        goal = self.evaluations.on_result(event, stopping=self.stopping is not None)
        if goal is not None:
            self.stop(goal)

    @property
    def mistake(self) -> str | None:
        """Text that says that a goal is never measured; None if it may be."""
        return self.evaluations.mistake

    def scalars(self) -> dict[str, Any]:
        """Return the values that the checkpoint stores."""
        return {"evaluations": self.evaluations.scalars(), "stopping": self.stopping, "finished": self.finished}

    def load(self, scalars: Mapping[str, Any]) -> None:
        self.evaluations.load(scalars["evaluations"])
        self.stopping, self.finished = scalars["stopping"], scalars["finished"]
