"""Each strategy against a reference, paired by seed. On one seed all strategies meet the same participants, data and
luck, and the effect that these have on both falls out of the seed's difference.

1. The reference is the first strategy of the study.
2. A seed is paired if both runs came to their end. If one diverged, was stuck or is missing, the seed is left out and
   counted.
3. The costs of a target are compared if both strategies reached it in every paired seed. A mean over some of the seeds
   would flatter the strategy that failed in the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.intervals import mean_and_half_width
from fedmq.studies.sweep.measures import COSTS, FAILED, common_target, cost_of, final_value, met_at_start, metrics_of

FINAL = "final"
"""Name of the measure that is not a cost: a metric's value at the end (studies.sweep.measures.final_value)."""


@dataclass(frozen=True)
class Difference:
    """The difference of one measure, strategy minus reference.

    `values` has one value for each paired seed, in the order of the seeds. It is empty if a target was not reached in
    all of them.
    """

    population: str
    strategy: str
    reference: str
    measure: str
    """FINAL, or one of studies.sweep.measures.COSTS in its units (s, updates, bytes)."""
    metric: str
    target: float | None
    values: tuple[float, ...]
    paired: int
    left_out: int
    reached: int | None = None
    """Number of paired seeds in which the strategy reached the target; None for FINAL."""
    reference_reached: int | None = None
    """Number of paired seeds in which the reference reached the target; None for FINAL."""

    @property
    def mean(self) -> float | None:
        """Mean of the values; None if there are none."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean (Student's t with n - 1 degrees of freedom); None for fewer than two
        values."""
        if len(self.values) < 2:
            return None
        mean, half = mean_and_half_width(np.array(self.values)[:, None])
        return float(mean[0] - half[0]), float(mean[0] + half[0])


def differences(cells: Sequence[CellResult], reference: str, target: TargetMetric | None) -> list[Difference]:
    """Return the differences of all other strategies from the reference. The cells are those of one population.

    There is one for the final value of each metric, and one for each cost of the target if there is a target.
    """
    metrics = metrics_of(cells)
    base = {r.seed: r for r in cells if r.strategy == reference}
    found = []
    for strategy in dict.fromkeys(r.strategy for r in cells if r.strategy != reference):
        own = {r.seed: r for r in cells if r.strategy == strategy}
        seeds = sorted(own.keys() | base.keys())
        pairs = [(own[s], base[s]) for s in seeds if s in own and s in base and _ended(own[s]) and _ended(base[s])]
        names = (cells[0].population, strategy, reference)
        found += [_final_difference(names, metric, pairs, len(seeds)) for metric in metrics]
        if target is not None:
            found += _cost_differences(names, target, pairs, len(seeds))
    return found


def difference_rows(results: Sequence[CellResult], target: TargetMetric | None) -> Iterator[dict[str, Any]]:
    """Yield a row for each measure of each strategy, apart from the reference, on each population.

    Without a target the report's own target of the population is taken.
    """
    for population in dict.fromkeys(r.population for r in results):
        cells = [r for r in results if r.population == population]
        goal = target or common_target(cells, metrics_of(cells))
        if goal is not None and met_at_start(cells, goal):
            goal = None
        for d in differences(cells, results[0].strategy, goal):
            low, high = d.interval or (None, None)
            yield {
                "population": d.population, "strategy": d.strategy, "reference": d.reference, "measure": d.measure,
                "metric": d.metric, "target": d.target, "difference": d.mean, "low": low, "high": high,
                "seeds_paired": d.paired, "seeds_left_out": d.left_out, "reached": d.reached,
                "reference_reached": d.reference_reached,
            }  # fmt: skip


Pairs = Sequence[tuple[CellResult, CellResult]]
"""Runs of the strategy and of the reference, a pair for each seed."""


def _ended(result: CellResult) -> bool:
    return result.finished not in FAILED


def _final_difference(names: tuple[str, str, str], metric: str, pairs: Pairs, seeds: int) -> Difference:
    values = [final_value(one, metric) - final_value(other, metric) for one, other in pairs]
    finite = tuple(v for v in values if math.isfinite(v))  # a run may not measure the metric
    return Difference(*names, FINAL, metric, None, finite, len(finite), seeds - len(finite))


def _cost_differences(names: tuple[str, str, str], target: TargetMetric, pairs: Pairs, seeds: int) -> list[Difference]:
    both = [(cost_of(one, target), cost_of(other, target)) for one, other in pairs]
    reached = sum(one is not None for one, _ in both), sum(other is not None for _, other in both)
    costs = [(one, other) for one, other in both if one is not None and other is not None]
    if len(costs) < len(pairs):
        costs = []
    return [
        Difference(
            *names, key, target.name, target.value, tuple(one[key] - other[key] for one, other in costs),
            len(pairs), seeds - len(pairs), *reached,
        )
        for key in COSTS
    ]  # fmt: skip


__all__ = ["FINAL", "Difference", "difference_rows", "differences"]
