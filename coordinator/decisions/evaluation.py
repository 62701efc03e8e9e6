"""Central evaluation: when the model is evaluated, and whether a result reaches a goal that ends the run.

These decisions are pure, like the core that uses them. An `Evaluator` does the work, off the coordinator's loop;
`fedmq.app.model_process` has the one that runs the app.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fedmq.coordinator.decisions.events import SUPERSEDED, EvaluationArrived
from fedmq.coordinator.decisions.requirements import not_numbers, unmeasured
from fedmq.coordinator.settings import Patience, RunSettings, TargetMetric
from fedmq.schemas.parameters import Parameters


def _better(value: float, than: float, mode: Literal["max", "min"]) -> bool:
    return value > than if mode == "max" else value < than


def target_reached(target: TargetMetric, metrics: Mapping[str, float]) -> bool:
    """Return True if the metrics reach the target's value or a better one. A missing metric or NaN does not."""
    value = metrics.get(target.name, math.nan)
    return value == target.value or _better(value, target.value, target.mode)


@dataclass(frozen=True, slots=True)
class PatienceState:
    """The best value so far, and the number of evaluations since then."""

    best: float | None = None
    since: int = 0

    def after(self, patience: Patience, metrics: Mapping[str, float]) -> PatienceState:
        """Return the state after one more evaluation. A missing metric or NaN is no improvement."""
        value = metrics.get(patience.name, math.nan)
        step = patience.min_delta if patience.mode == "max" else -patience.min_delta
        if not math.isnan(value) and (self.best is None or _better(value, self.best + step, patience.mode)):
            return PatienceState(value, 0)
        return PatienceState(self.best, self.since + 1)

    def exhausted(self, patience: Patience) -> bool:
        return self.since >= patience.evaluations


MOST_FAILED = 3
"""Evaluations that fail, or give NaN, until a goal is taken to be never measured, if none has succeeded before."""


class Evaluations:
    """The schedule of evaluations: one at a time, of the newest version, begun `evaluate_interval_s` or more apart.

    With `evaluate_every_updates` = n there is one each time that n, 2n, 3n ... updates are accepted, if there is a
    version that was not evaluated yet. So runs of all strategies are measured at the same numbers of updates.
    """

    def __init__(self, settings: RunSettings, enabled: bool) -> None:
        self._interval_s, self._every = settings.evaluate_interval_s, settings.evaluate_every_updates
        self._stop = settings.stop
        self._target, self._patience = settings.stop.target, settings.stop.patience
        self._enabled = enabled
        self._running: int | None = None
        self._done: int | None = None
        self._begun_s: float | None = None
        self._begun_updates = 0
        self._patience_state = PatienceState()
        self._measured = False
        """True once an evaluation has measured what the goals name, since this coordinator's start."""
        self._failed = 0
        self.mistake: str | None = None
        """Text that says that the run's goals are never measured; None while they may be."""

    def complete(self, version: int) -> bool:
        """Return True if nothing is left to evaluate at this version."""
        return not self._enabled or self._done == version

    def due_s(self, version: int, accepted: int, *, last: bool = False) -> float | None:
        """Return the earliest run time (seconds) to evaluate this version; None if it must not be evaluated now.

        `accepted` is the number of updates accepted so far. The last version of a run is evaluated whatever it is.
        """
        if self.complete(version) or self._running is not None:
            return None
        if self._begun_s is None:
            return 0.0
        if self._every is not None and not last and accepted // self._every <= self._begun_updates // self._every:
            return None
        return self._begun_s + self._interval_s

    def begin(self, version: int, now: float, accepted: int) -> None:
        self._running, self._begun_s, self._begun_updates = version, now, accepted

    def forget_running(self) -> None:
        """Forget the evaluation that runs, so that it is begun again: its answer died with the last coordinator."""
        if self._running is not None:
            self._running = self._begun_s = None

    def on_result(self, event: EvaluationArrived, *, stopping: bool) -> str | None:
        """Handle a result; return the name of the goal that it reaches, or None. A failed evaluation reaches none.

        If it does not measure what a goal names, there is a `mistake`, and its version counts as not evaluated. So a
        coordinator with other goals, which goes on with the run, evaluates it again. A run that is `stopping` needs no
        goal any more.
        """
        if event.version != self._running:
            return None
        self.mistake = None if stopping else self._never_measured(event)
        if self.mistake is not None:
            return None
        self._running, self._done = None, event.version
        goal = None
        if self._patience is not None and event.metrics:
            self._patience_state = self._patience_state.after(self._patience, event.metrics)
            goal = "patience" if self._patience_state.exhausted(self._patience) else None
        if self._target is not None and target_reached(self._target, event.metrics):
            goal = "target"
        return goal

    def _never_measured(self, event: EvaluationArrived) -> str | None:
        if self._measured or (self._target is None and self._patience is None):
            return None
        if event.detail:
            self._failed += not event.detail.startswith(SUPERSEDED)
            if self._failed < MOST_FAILED:
                return None
            return f"run.stop: no goal is ever measured, because all evaluations fail: {event.detail}"
        lacking = unmeasured(self._stop, event.metrics)
        if not lacking and (names := not_numbers(self._stop, event.metrics)):
            self._failed += 1
            if self._failed < MOST_FAILED:
                return None
            return f"run.stop: no goal is ever measured, because all evaluations give nan for {', '.join(names)}"
        self._measured = not lacking
        return "; ".join(lacking) or None

    def scalars(self) -> dict[str, Any]:
        """Return the values that the checkpoint stores."""
        updates = {} if self._every is None else {"begun_updates": self._begun_updates}
        return {
            **updates,
            "running": self._running,
            "done": self._done,
            "begun_s": self._begun_s,
            "patience": [self._patience_state.best, self._patience_state.since],
        }

    def load(self, scalars: Mapping[str, Any]) -> None:
        self._running, self._done, self._begun_s = scalars["running"], scalars["done"], scalars["begun_s"]
        self._begun_updates = scalars.get("begun_updates", 0)
        best, since = scalars["patience"]
        self._patience_state = PatienceState(best, since)


class Evaluator(Protocol):
    """Evaluates model versions. Its maker owns and closes it; the service only submits."""

    def submit(self, version: int, parameters: Parameters, on_result: Callable[[EvaluationArrived], None]) -> None:
        """Evaluate this version soon, without blocking the caller.

        `on_result` is called once, from any thread. The result has no metrics but a `detail` if the evaluation failed,
        or if a newer version took its place.
        """
