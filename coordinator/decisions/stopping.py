"""When a run is over: pure functions of counters and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedmq.coordinator.settings import Patience, StopSettings, TargetMetric


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


def _better(value: float, than: float, mode: Literal["max", "min"]) -> bool:
    return value > than if mode == "max" else value < than


def target_reached(target: TargetMetric, metrics: Mapping[str, float]) -> bool:
    """Whether an evaluation has the target's value or a better one. A metric that is missing or NaN has not."""
    value = metrics.get(target.name, math.nan)
    return value == target.value or _better(value, target.value, target.mode)


@dataclass(frozen=True, slots=True)
class PatienceState:
    """The best value so far, and how many evaluations have passed since."""

    best: float | None = None
    since: int = 0

    def after(self, patience: Patience, metrics: Mapping[str, float]) -> PatienceState:
        """The state after one more evaluation. A metric that is missing or NaN is no improvement."""
        value = metrics.get(patience.name, math.nan)
        step = patience.min_delta if patience.mode == "max" else -patience.min_delta
        if not math.isnan(value) and (self.best is None or _better(value, self.best + step, patience.mode)):
            return PatienceState(value, 0)
        return PatienceState(self.best, self.since + 1)

    def exhausted(self, patience: Patience) -> bool:
        return self.since >= patience.evaluations
