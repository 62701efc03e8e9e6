"""Measures of finished cells: final values, the cost of a target, and the shares of weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.coordinator.settings import TargetMetric, is_better_low
from fedmq.studies.sweep.cell import CellResult

Floats = npt.NDArray[np.float64]
FINAL_PART = 0.1
"""Part of a run's virtual time that final values are means over. Single evaluations of an asynchronous run jitter."""
FAILED = frozenset({"diverged", "stuck"})
"""Ends of runs that have no final value to compare."""
COSTS = ("time_s", "updates", "bytes_up", "bytes_down")


def is_better_high(metric: str) -> bool:
    """Return True for metrics that should be high, by the rule of a target without a mode."""
    return not is_better_low(metric)


def metrics_of(results: Iterable[CellResult]) -> list[str]:
    """Return all metrics that were measured: accuracy first, then the distance to a known optimum, the loss, others by
    name."""
    found = {name for r in results for e in r.evaluations for name in e["metrics"]}
    order = ("accuracy", "distance", "loss")
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def tuned_metric(results: Iterable[CellResult]) -> str | None:
    """Return the metric by which step sizes are chosen.

    It is the distance to a known optimum, else the loss, else the first of `metrics_of`. A few hundred examples have
    as many accuracies, and luck moves a trial by more of them than good trials differ by. The loss says more, and an
    accuracy hardly shows steps that are too large (docs/decisions/0024).
    """
    measured = metrics_of(results)
    return next((name for name in ("distance", "loss") if name in measured), next(iter(measured), None))


def series(result: CellResult, axis: str, metric: str) -> tuple[Floats, Floats]:
    """Return the metric's finite values as (x, y), over time_s, updates or bytes_up."""
    found = [(e[axis], e["metrics"][metric]) for e in result.evaluations if metric in e["metrics"]]
    kept = [(x, y) for x, y in found if math.isfinite(y)]
    return np.array([x for x, _ in kept], np.float64), np.array([y for _, y in kept], np.float64)


def final_value(result: CellResult, metric: str) -> float:
    """Return the mean over the evaluations of the last tenth of the run's virtual time, at least the last one.

    It is NaN if the run diverged or did not measure the metric.
    """
    if result.finished == "diverged":
        return math.nan
    times, values = series(result, "time_s", metric)
    if not len(values):
        return math.nan
    late = times >= (1 - FINAL_PART) * result.time_s
    return float(values[late].mean() if late.any() else values[-1])


def common_target(cells: Sequence[CellResult], metrics: Sequence[str]) -> TargetMetric | None:
    """Return a value of the first of `metrics` that no cell had at its start and every finished cell holds at its end.

    It lies 95 % of the way from the best start to the worst of the cells' final values (`final_value`), so that no
    cell's lucky evaluation decides. Cells that diverged or were stuck have no say. None if there is no such value.
    """
    name = next(iter(metrics), None)
    if name is None:
        return None
    sign = 1.0 if is_better_high(name) else -1.0
    runs = [(sign * y[0], sign * final_value(r, name)) for r in cells if r.finished not in FAILED
            for y in [series(r, "time_s", name)[1]] if len(y)]  # fmt: skip
    if not runs:
        return None
    start, held = max(float(first) for first, _ in runs), min(float(last) for _, last in runs)
    value = _rounded_towards(start, start + 0.95 * (held - start))
    if held <= start or not start < value <= held:
        return None
    return TargetMetric(name=name, value=sign * value, mode="max" if sign > 0 else "min")


def met_at_start(cells: Iterable[CellResult], target: TargetMetric) -> bool:
    """Return True if any cell's first evaluation is as good as the target. Such a target measures nothing."""
    firsts = [y[0] for r in cells if len(y := series(r, "time_s", target.name)[1])]
    return any(y >= target.value if target.mode == "max" else y <= target.value for y in firsts)


def cost_of(result: CellResult, target: TargetMetric) -> dict[str, float] | None:
    """Return the costs of the run at the evaluation at which it reached the target (`reached_at`); None if it did
    not."""
    found = reached_at(result, target)
    return None if found is None else {key: float(found[key]) for key in COSTS}


def reached_at(result: CellResult, target: TargetMetric) -> Mapping[str, Any] | None:
    """Return the evaluation at which the run reached the target; None if it did not.

    1. It is the first evaluation that meets the target and from which on the metric holds it on average: the mean over
       the next tenth of the run's virtual time meets it too. A single lucky evaluation of a metric that jitters does
       not count. The moving mean looks ahead, so a metric that only improves is not called late.
    2. In the last tenth of the run, the mean is over all of it, as in `final_value`.
    3. A run that its own target ended, with an evaluation that meets this one, reached it there.
    """
    rows = [(e, e["metrics"][target.name]) for e in result.evaluations if target.name in e["metrics"]]
    rows = [(e, value) for e, value in rows if math.isfinite(value)]
    values, times = np.array([y for _, y in rows]), np.array([float(e["time_s"]) for e, _ in rows])
    window_s, last_s = FINAL_PART * result.time_s, (1 - FINAL_PART) * result.time_s
    for i in np.flatnonzero([_meets(y, target) for y in values]):
        begin = min(i, np.searchsorted(times, last_s))  # the last tenth is one window
        end = np.searchsorted(times, times[i] + window_s, side="right")
        if _meets(float(values[begin:end].mean()), target) or (result.finished == "target" and i == len(rows) - 1):
            return rows[i][0]
    return None


def _meets(value: float, target: TargetMetric) -> bool:
    """Return True if a value is as good as the target, but for the last bits of a mean."""
    slack = 1e-12 * abs(target.value)
    return value >= target.value - slack if target.mode == "max" else value <= target.value + slack


def favour(result: CellResult) -> Floats:
    """Return each participant's effective share of weight over its intended share: 1 is as intended."""
    effective, intended = np.array(result.weight), np.array(result.intended)
    total = effective.sum()
    if total <= 0:
        return np.zeros_like(effective)
    return np.asarray(effective / total / (intended / intended.sum()))


def misplaced_share(result: CellResult) -> float:
    """Return the total variation between effective and intended shares.

    It is the part of all weight that went to other participants than intended.
    """
    effective, intended = np.array(result.weight), np.array(result.intended)
    if effective.sum() <= 0:
        return math.nan
    return float(0.5 * np.abs(effective / effective.sum() - intended / intended.sum()).sum())


def chance_share(result: CellResult) -> float:
    """Return the mean of `misplaced_share` by luck alone.

    It assumes as many updates, all of one weight, from participants that are drawn one by one with their intended
    shares.
    """
    intended, count = np.array(result.intended), result.updates
    if not count:
        return math.nan
    shares, times = np.unique(intended / intended.sum(), return_counts=True)
    return 0.5 * math.fsum(n * _mean_deviation(count, float(p)) / count for p, n in zip(shares, times, strict=True))


def _mean_deviation(n: int, p: float) -> float:
    """Return E|X - np| of a binomial X: 2·k·(1 - p)·C(n, k)·p^k·(1 - p)^(n - k) with k = ⌊np⌋ + 1 (de Moivre)."""
    k = math.floor(n * p) + 1
    if not 0 < p < 1 or k > n:
        return 0.0
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return 2 * k * (1 - p) * math.exp(log)


def on_one_grid(found: Sequence[tuple[Floats, Floats]], points: int) -> tuple[Floats, Floats]:
    """Return all series at the same places, up to the end of the shortest. A value holds until the next one."""
    found = [(x, y) for x, y in found if len(x)]
    if not found:
        return np.empty(0), np.empty((0, 0))
    grid = np.linspace(max(x[0] for x, _ in found), min(x[-1] for x, _ in found), points)
    return grid, np.array([y[np.maximum(np.searchsorted(x, grid, side="right") - 1, 0)] for x, y in found])


def _rounded_towards(start: float, value: float) -> float:
    """Round to the fewest digits, at least two, that keep the value in the last tenth of the way from the start."""
    for digits in range(2, 9):
        scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value)))) if value else 1.0
        rounded = math.floor(value * scale) / scale
        if rounded > start + 0.9 * (value - start):
            return rounded
    return value
