"""Each strategy against a reference, paired by seed: on one seed all meet the same participants, data and luck, and
what these do to both strategies falls out of the seed's difference.

1. The reference is the first strategy of the study.
2. A seed is paired where both runs came to their end: one that diverged, was stuck or is missing leaves it out, and is
   counted.
3. What a target costs is compared where both reached it in every paired seed: over some of them the mean would flatter
   whoever failed.
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
from fedmq.studies.sweep.measures import COSTS, common_target, cost_of, final_value, met_at_start, metrics_of

FINAL = "final"
"""The measure that is no cost: the value of a metric at the end (studies.sweep.measures.final_value)."""
FAILED = frozenset({"diverged", "stuck"})


@dataclass(frozen=True)
class Difference:
    """Of one measure, strategy minus reference. `values`: one for each seed that is paired, in the order of the seeds;
    none where a target was not reached in all of them."""

    population: str
    strategy: str
    reference: str
    measure: str
    """FINAL or one of studies.sweep.measures.COSTS, in its units (s, updates, bytes)."""
    metric: str
    target: float | None
    values: tuple[float, ...]
    paired: int
    left_out: int
    reached: int | None = None
    """In how many of the paired seeds the strategy came to the target, and the reference; None for FINAL."""
    reference_reached: int | None = None

    @property
    def mean(self) -> float | None:
        """None where there are no values."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean (Student's t with n - 1 degrees of freedom); None for one value."""
        if len(self.values) < 2:
            return None
        mean, half = mean_and_half_width(np.array(self.values)[:, None])
        return float(mean[0] - half[0]), float(mean[0] + half[0])


def differences(cells: Sequence[CellResult], reference: str, target: TargetMetric | None) -> list[Difference]:
    """Of all other strategies of these cells, which are of one population: the final value of each metric, and each
    cost of the target where there is one."""
    metrics = metrics_of(cells)
    base = {r.seed: r for r in cells if r.strategy == reference}
    found = []
    for strategy in dict.fromkeys(r.strategy for r in cells if r.strategy != reference):
        own = {r.seed: r for r in cells if r.strategy == strategy}
        seeds = sorted(own.keys() | base.keys())
        pairs = [(own[s], base[s]) for s in seeds if s in own and s in base and _ended(own[s]) and _ended(base[s])]
        names = (cells[0].population, strategy, reference)
        found += [_of_final_values(names, metric, pairs, len(seeds)) for metric in metrics]
        if target is not None:
            found += _of_costs(names, target, pairs, len(seeds))
    return found


def difference_rows(results: Sequence[CellResult], target: TargetMetric | None) -> Iterator[dict[str, Any]]:
    """One row for each measure of each strategy but the reference on each population. Without a target the report's
    own is taken, by population."""
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
"""The strategy's run and the reference's, a pair for each seed."""


def _ended(result: CellResult) -> bool:
    return result.finished not in FAILED


def _of_final_values(names: tuple[str, str, str], metric: str, pairs: Pairs, seeds: int) -> Difference:
    values = [final_value(one, metric) - final_value(other, metric) for one, other in pairs]
    finite = tuple(v for v in values if math.isfinite(v))  # a metric may not be measured in each run
    return Difference(*names, FINAL, metric, None, finite, len(finite), seeds - len(finite))


def _of_costs(names: tuple[str, str, str], target: TargetMetric, pairs: Pairs, seeds: int) -> list[Difference]:
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
