"""Runs that explode and end before their numbers become infinite.

Rule: a run has diverged if a metric of `SMALL` is, in every evaluation of the last tenth of its virtual time (at least
the last one), above a thousand times its value at the start, and above 10. It diverged at the first evaluation after
which the metric stays there. The 10 is for starts at or near 0, such as a model that was trained before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedmq.studies.sweep.intervals import number_text

FACTOR, FLOOR = 1000.0, 10.0
LAST_PART = 0.1
"""Part of a run's virtual time in which the metric must be beyond the limit throughout."""
SMALL = frozenset({"loss", "distance", "mse", "mae", "rmse", "mean_squared_error", "mean_absolute_error"})
"""Metrics that are known to be small if all is well. A metric that is not known never makes a run a diverged one."""


class Explosion(NamedTuple):
    """The moment (virtual s) at which a run exploded, and the reason in words."""

    at_s: float
    why: str


def explosion_of(evaluations: Sequence[Mapping[str, Any]], time_s: float) -> Explosion | None:
    """Return the first explosion of a run that took `time_s`; None if no metric exploded."""
    found = [
        explosion
        for metric in sorted({name for e in evaluations for name in e["metrics"]})
        if metric in SMALL or metric.endswith("_loss")
        if (explosion := _of_metric(metric, evaluations, time_s)) is not None
    ]
    return min(found, default=None)


def _of_metric(metric: str, evaluations: Sequence[Mapping[str, Any]], time_s: float) -> Explosion | None:
    rows = [(e["time_s"], e["metrics"][metric]) for e in evaluations if metric in e["metrics"]]
    start = rows[0][1]
    if not math.isfinite(start):
        return None
    limit = max(FACTOR * abs(start), FLOOR)
    beyond = 0
    while beyond < len(rows) and rows[-1 - beyond][1] > limit:
        beyond += 1
    late = sum(at >= (1 - LAST_PART) * time_s for at, _ in rows)
    if beyond < max(late, 1):
        return None
    return Explosion(
        rows[-beyond][0], f"{metric} was {number_text(start)} at the start and stayed above {number_text(limit)}"
    )


__all__ = ["Explosion", "explosion_of"]
