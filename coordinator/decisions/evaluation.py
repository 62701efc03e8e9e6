"""When the model is evaluated centrally, and what the results say about going on. Pure, as the core that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.decisions.stopping import PatienceState, target_reached
from fedmq.coordinator.settings import RunSettings


class Evaluations:
    """At most one at a time, of the newest version, and no two begin within `evaluate_interval_s`."""

    def __init__(self, settings: RunSettings, enabled: bool) -> None:
        self._interval_s = settings.evaluate_interval_s
        self._target, self._patience = settings.stop.target, settings.stop.patience
        self._enabled = enabled
        self._running: int | None = None
        self._done: int | None = None
        self._begun_s: float | None = None
        self._patience_state = PatienceState()

    def complete(self, version: int) -> bool:
        """Whether nothing is left to evaluate at this version."""
        return not self._enabled or self._done == version

    def due_s(self, version: int) -> float | None:
        """The earliest time at which this version may be evaluated; None while it may not."""
        if self.complete(version) or self._running is not None:
            return None
        return 0.0 if self._begun_s is None else self._begun_s + self._interval_s

    def begin(self, version: int, now: float) -> None:
        self._running, self._begun_s = version, now

    def lost(self) -> None:
        """The answer died with the last coordinator: evaluate again."""
        if self._running is not None:
            self._running = self._begun_s = None

    def take(self, event: EvaluationArrived) -> str | None:
        """A result; the goal that ends the run, by the name of its setting. A failed evaluation reaches none."""
        if event.version != self._running:
            return None
        self._running, self._done = None, event.version
        goal = None
        if self._patience is not None and event.metrics:
            self._patience_state = self._patience_state.after(self._patience, event.metrics)
            goal = "patience" if self._patience_state.exhausted(self._patience) else None
        if self._target is not None and target_reached(self._target, event.metrics):
            goal = "target"
        return goal

    def scalars(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "running": self._running,
            "done": self._done,
            "begun_s": self._begun_s,
            "patience": [self._patience_state.best, self._patience_state.since],
        }

    def load(self, scalars: Mapping[str, Any]) -> None:
        self._running, self._done, self._begun_s = scalars["running"], scalars["done"], scalars["begun_s"]
        best, since = scalars["patience"]
        self._patience_state = PatienceState(best, since)
