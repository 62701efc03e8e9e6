"""What is read off finished cells: final values, the cost of a target, and who had how much of a say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.sweep.cell import CellResult

Floats = npt.NDArray[np.float64]
FINAL_PART = 0.1
"""Of a run's virtual time: single evaluations of an asynchronous run jitter."""
COSTS = ("time_s", "updates", "bytes_up", "bytes_down")


def is_better_high(metric: str) -> bool:
    """Accuracies and their like are to be high; losses and distances low."""
    return "accuracy" in metric or metric in {"auc", "f1", "precision", "recall"}


def metrics_of(results: Iterable[CellResult]) -> list[str]:
    """All that was measured: the accuracy first, then the distance to a known optimum, the loss, others by name."""
    found = {name for r in results for e in r.evaluations for name in e["metrics"]}
    order = ("accuracy", "distance", "loss")
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def tuned_metric(results: Iterable[CellResult]) -> str | None:
    """What step sizes are chosen by: the distance to a known optimum, else the loss, else the first of `metrics_of`.
    A few hundred examples have as many accuracies, and a trial is lucky by more of them than good ones differ by; the
    loss tells more, and an accuracy does not mind steps that are too large (docs/decisions/0024)."""
    measured = metrics_of(results)
    return next((name for name in ("distance", "loss") if name in measured), next(iter(measured), None))


def series(result: CellResult, axis: str, metric: str) -> tuple[Floats, Floats]:
    """The metric's finite values over time_s, updates or bytes_up."""
    found = [(e[axis], e["metrics"][metric]) for e in result.evaluations if metric in e["metrics"]]
    kept = [(x, y) for x, y in found if math.isfinite(y)]
    return np.array([x for x, _ in kept], np.float64), np.array([y for _, y in kept], np.float64)


def final_value(result: CellResult, metric: str) -> float:
    """The mean over the evaluations of the last tenth of the run's virtual time, at least the last one; NaN where
    the run diverged or the metric was not measured."""
    if result.finished == "diverged":
        return math.nan
    times, values = series(result, "time_s", metric)
    if not len(values):
        return math.nan
    late = times >= (1 - FINAL_PART) * result.time_s
    return float(values[late].mean() if late.any() else values[-1])


def common_target(cells: Sequence[CellResult], metrics: Sequence[str]) -> TargetMetric | None:
    """A value that every cell that did not diverge reached and that none had at its start: 95 % of the way from the
    best start to the worst of the cells' best values, so that no cell's luck in its last evaluation decides. None
    where there is no such value. Of the first of `metrics`."""
    name = next(iter(metrics), None)
    if name is None:
        return None
    sign = 1.0 if is_better_high(name) else -1.0
    runs = [sign * y for r in cells if r.finished != "diverged" and len(y := series(r, "time_s", name)[1])]
    if not runs:
        return None
    start, reached = max(float(y[0]) for y in runs), min(float(y.max()) for y in runs)
    value = _rounded_towards(start, start + 0.95 * (reached - start))
    if reached <= start or not start < value <= reached:
        return None
    return TargetMetric(name=name, value=sign * value, mode="max" if sign > 0 else "min")


def met_at_start(cells: Iterable[CellResult], target: TargetMetric) -> bool:
    """Whether any cell's first evaluation is as good as the target already: then it measures nothing."""
    firsts = [y[0] for r in cells if len(y := series(r, "time_s", target.name)[1])]
    return any(y >= target.value if target.mode == "max" else y <= target.value for y in firsts)


def cost_of(result: CellResult, target: TargetMetric) -> dict[str, float] | None:
    """Where the run was at its first evaluation that reached the target; None where none did."""
    for e in result.evaluations:
        value = e["metrics"].get(target.name, math.nan)
        if value >= target.value if target.mode == "max" else value <= target.value:
            return {key: float(e[key]) for key in COSTS}
    return None


def favour(result: CellResult) -> Floats:
    """Effective over intended share of each participant: 1 is as intended."""
    effective, intended = np.array(result.weight), np.array(result.intended)
    total = effective.sum()
    if total <= 0:
        return np.zeros_like(effective)
    return np.asarray(effective / total / (intended / intended.sum()))


def misplaced_share(result: CellResult) -> float:
    """Total variation between effective and intended shares: the part of all weight that went to others than was
    intended."""
    effective, intended = np.array(result.weight), np.array(result.intended)
    if effective.sum() <= 0:
        return math.nan
    return float(0.5 * np.abs(effective / effective.sum() - intended / intended.sum()).sum())


def chance_share(result: CellResult) -> float:
    """What `misplaced_share` would be on average by luck alone: were as many updates, all of one weight, of
    participants that are drawn one by one with their intended shares."""
    intended, count = np.array(result.intended), result.updates
    if not count:
        return math.nan
    shares, times = np.unique(intended / intended.sum(), return_counts=True)
    return 0.5 * math.fsum(n * _mean_deviation(count, float(p)) / count for p, n in zip(shares, times, strict=True))


def _mean_deviation(n: int, p: float) -> float:
    """E|X - np| of a binomial X: 2·k·(1 - p)·C(n, k)·p^k·(1 - p)^(n - k) with k = ⌊np⌋ + 1 (de Moivre)."""
    k = math.floor(n * p) + 1
    if not 0 < p < 1 or k > n:
        return 0.0
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return 2 * k * (1 - p) * math.exp(log)


def on_one_grid(found: Sequence[tuple[Floats, Floats]], points: int) -> tuple[Floats, Floats]:
    """All series at the same places, up to where the first of them ends: a value holds until the next one."""
    found = [(x, y) for x, y in found if len(x)]
    if not found:
        return np.empty(0), np.empty((0, 0))
    grid = np.linspace(max(x[0] for x, _ in found), min(x[-1] for x, _ in found), points)
    return grid, np.array([y[np.maximum(np.searchsorted(x, grid, side="right") - 1, 0)] for x, y in found])


def _rounded_towards(start: float, value: float) -> float:
    """To as few digits, at least two, as keep it in the upper tenth of the way from the start."""
    for digits in range(2, 9):
        scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value)))) if value else 1.0
        rounded = math.floor(value * scale) / scale
        if rounded > start + 0.9 * (value - start):
            return rounded
    return value
