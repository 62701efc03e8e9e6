"""Tuning: a small grid for each strategy on each population, on seeds of its own, before anything is compared.

The winner depends on step sizes more than on a strategy's idea, so a comparison at one learning rate for all says
little. Two parameters are tuned if a strategy has them: the participants' learning rate, and the server's step (η_g or
α). A grid is the usual practice in federated optimisation (Reddi et al. 2021, "Adaptive Federated Optimization",
appendix D), and it draws nothing at random. Every trial is a cell with a file like any other: it is run once, on any
core.

One run says little too: the best of twenty noisy trials is the luckiest of the good ones, and federations are noisy
enough for that to undo their tuning (Kuo et al. 2023, "On Noisy Evaluation in Federated Hyperparameter Tuning"). So the
best trials go on to more seeds, as in successive halving (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm
Identification and Hyperparameter Optimization"), with seeds as the budget. docs/decisions/0024 has the gain.

Rules
 1. Default values are half-decades around the values in the study's file. While the best value stands at an edge, the
    grid grows there, at most `extend` times. Values that the file lists are taken as they are.
 2. Trials run as the study's cells do, on `seeds` that the study does not use: other participants, other luck. If the
    test set is the same for all seeds, trials are judged on training examples that are kept back for it, different ones
    on each seed.
 3. Every trial runs on the first seed, and the best `finalists` of them on the others as well. A trial that diverges
    makes room for the next one. The best trial is the best finalist over all seeds, the first one included. The grid
    grows at its edges.
 4. The best trial is the one that reached the run's target soonest. Among trials that did not reach it, or without a
    target, it is the one with the best final value (`measures.final_value`). Of equal trials it is the one with the
    smaller steps.
 5. The record has the trials, their seeds, their value on each seed, and the winner. It says if the winner still stands
    at an edge, and which finalists are as good within one standard error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedmq.coordinator.settings import StopSettings
from fedmq.studies.engine.deploy import federation_tables
from fedmq.studies.problems.classification import Part
from fedmq.studies.problems.problem import ForTuning, Problem
from fedmq.studies.sweep.cell import Cell, CellResult
from fedmq.studies.sweep.grids import Grid, Point, axes_of, with_values
from fedmq.studies.sweep.measures import FAILED, final_value, is_better_high, tuned_metric
from fedmq.studies.sweep.pool import Batch
from fedmq.studies.value import Value

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Tuning(Value):
    """The [tuning] table. `tuning = false` stands for `off`."""

    off: bool = False
    """True to compare the strategies as they are, which the report says."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = tuple(
        range(1_000_000, 1_000_005)
    )
    """Seeds that the study does not use. All trials run on the first, the best trials on all of them."""
    finalists: Annotated[int, Field(ge=1)] = 3
    """Number of trials that go on to the other seeds."""
    learning_rate: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Learning rates of the participants to try. Without them half-decades around the study's are tried."""
    server_step: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Values of η_g or α to try. Without them half-decades around the strategy's own are tried."""
    extend: Annotated[int, Field(ge=0, le=20)] = 3
    """Most times that a default grid grows because its best value stands at an edge."""
    validation_part: Part = 0.1
    """Part of the training examples that trials are judged on, because the test set is for the comparison. 0 takes the
    test set."""
    metric: str | None = None
    """Metric that decides. Without it, it is the distance to a known optimum, else the loss, else the accuracy."""
    mode: Literal["max", "min"] | None = None
    """Direction of the metric. Without it, it is `max` for an accuracy and `min` for anything else."""
    stop: StopSettings | None = None
    """End of a trial, in place of the run's own stop. Use it if shorter trials say enough."""
    population: str | None = None
    """Population to tune on for all populations. Without it each population has its own tuning."""

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, given: Any) -> Any:
        return {"off": not given} if isinstance(given, bool) else given


@dataclass(frozen=True)
class Trial:
    """One point of a grid, run on the first tuning seed or on all of them."""

    values: Mapping[str, float]
    scores: tuple[float, ...]
    """Final value of the metric on each seed; NaN if the cell failed or measured nothing."""
    reached_s: float | None
    """Mean virtual time (s) to the run's target; None if not every seed reached it."""
    finished: str

    @property
    def score(self) -> float:
        """Mean over its seeds."""
        return statistics.fmean(self.scores)

    @property
    def extremes(self) -> tuple[float, float]:
        """Lowest and highest score of a seed; NaN if a seed has none."""
        return (min(self.scores), max(self.scores)) if math.isfinite(self.score) else (math.nan, math.nan)


@dataclass(frozen=True)
class Tuned:
    """The result of tuning one strategy on one population."""

    strategy: str
    population: str
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    best: Trial | None
    """Best trial; None if nothing was tried."""
    seeds: tuple[int, ...] = ()
    """Seeds of the finalists. Other trials ran on the first one."""
    edges: tuple[str, ...] = ()
    """Parameters whose best value is the lowest or the highest that was tried."""
    untuned: tuple[str, ...] = ()
    """Parameters that could have been tuned and were not, in words."""
    deploy: str = ""
    """Settings of the best trial, as tables of a federation file."""
    judged_on: str = ""
    """Examples that the trials were evaluated on, in words."""

    @property
    def finalists(self) -> list[Trial]:
        """The trials that ran on all seeds."""
        return [trial for trial in self.trials if len(trial.scores) == len(self.seeds)]

    @property
    def as_good(self) -> list[Trial]:
        """Other finalists that are worse than the best by no more than one standard error of the mean difference on the
        same seeds. Only luck decides between these (after the one-standard-error rule, Breiman et al. 1984)."""
        best, count = self.best, len(self.seeds)
        if best is None or best.reached_s is not None or count < 2:
            return []
        sign = -1.0 if self.mode == "max" else 1.0
        found = []
        for trial in self.finalists:
            if trial is best or not math.isfinite(trial.score):
                continue
            worse = [sign * (a - b) for a, b in zip(trial.scores, best.scores, strict=True)]
            if statistics.fmean(worse) <= statistics.stdev(worse) / math.sqrt(count):
                found.append(trial)
        return found

    @property
    def doubts(self) -> list[str]:
        """Reasons to expect better values than the best one, in words."""
        if self.best is None:
            return []
        found = []
        if self.best.reached_s is None and not math.isfinite(self.best.score):
            found.append("no trial came to its end")
        for path in self.edges:
            value, tried = self.best.values[path], [trial.values[path] for trial in self.trials]
            where = "highest" if value == max(tried) else "lowest"
            found.append(f"{path} = {value:g} is the {where} value that was tried")
        return found


@dataclass
class _Race:
    """The trials of one strategy on one population, on the first seed or on all of them."""

    grid: Grid
    tuning: Tuning
    label: str
    later: int
    judged_by: Sequence[str]
    metric: str
    mode: str
    cells: dict[Point, Cell] = field(default_factory=dict)
    results: dict[Point, list[CellResult]] = field(default_factory=dict)

    def round(self) -> Generator[Batch, list[CellResult], None]:
        """Run the grid's new points, and then the trials that have become finalists on the other seeds."""
        new = dict(self.grid.new())
        self.cells |= new
        first, *others = self.tuning.seeds
        yield from self._run(list(new), [first])
        while others:
            ahead = sorted((p for p in self.results if not self._failed(p)), key=lambda p: self._rank(p, 1))
            behind = [p for p in ahead[: self.tuning.finalists] if len(self.results[p]) == 1]
            if not behind:
                return
            yield from self._run(behind, others)

    def best(self) -> Point | None:
        """Return the best finalist; the point with the smallest steps if all failed on the first seed."""
        count = len(self.tuning.seeds)
        finalists = [p for p, results in self.results.items() if len(results) == count]
        return min(finalists or self.results, key=lambda p: self._rank(p, count), default=None)

    def trial(self, point: Point, count: int) -> Trial:
        """Return the trial of a point on the first `count` seeds."""
        results = self.results[point][:count]
        reached = all(r.finished == "target" for r in results)
        return Trial(
            values=self.grid.named(point),
            scores=tuple(math.nan if r.finished in FAILED else final_value(r, self.metric) for r in results),
            reached_s=statistics.fmean(r.time_s for r in results) if reached else None,
            finished=", ".join(dict.fromkeys(r.finished for r in results)),
        )

    def _run(self, points: Sequence[Point], seeds: Sequence[int]) -> Generator[Batch, list[CellResult], None]:
        if not points:
            return
        cells = [
            replace(self.cells[p], seed=seed, label=trial_label(self.label, self.grid.named(p)))
            for p in points
            for seed in seeds
        ]
        got = yield Batch(cells, self.later, (self.metric, *self.judged_by))
        self.metric = self.metric or tuned_metric(got) or ""
        self.mode = self.mode or ("max" if is_better_high(self.metric) else "min")
        for i, point in enumerate(points):
            self.results.setdefault(point, []).extend(got[i * len(seeds) : (i + 1) * len(seeds)])

    def _failed(self, point: Point) -> bool:
        return any(result.finished in FAILED for result in self.results[point])

    def _rank(self, point: Point, count: int) -> tuple[Any, ...]:
        """Return a key whose least value is the best. Of equal trials the one with the smaller steps is better."""
        trial = self.trial(point, count)
        if trial.reached_s is not None:
            return (0, trial.reached_s, point)
        if math.isfinite(trial.score):
            return (1, -trial.score if self.mode == "max" else trial.score, point)
        return (2, 0.0, point)


def tune(
    cell: Cell,
    tuning: Tuning,
    given: Mapping[str, Sequence[float]] | None,
    *,
    later: int = 0,
    judged_by: Sequence[str] = (),
) -> Generator[Batch, list[CellResult], Tuned]:
    """Try values for this cell's strategy on its population, and return the result.

    given       parameter -> values, in place of the default grid
    later       number of cells that the arm runs afterwards (this is a part of a studies.sweep.pool.Arm)
    judged_by   metrics that those cells must measure
    """
    axes, untuned = axes_of(cell, given, tuning.learning_rate, tuning.server_step)
    run = cell.run if tuning.stop is None else cell.run.model_copy(update={"stop": tuning.stop})
    problem, judged_on = _judged(cell.problem, tuning.validation_part)
    grid = Grid(replace(cell, run=run, problem=problem), axes)
    race = _Race(grid, tuning, cell.label, later, judged_by, tuning.metric or "", tuning.mode or "")
    yield from race.round()
    for _ in range(tuning.extend):
        best = race.best()
        if best is None or not grid.grow(best):
            break
        yield from race.round()
    winner = race.best()
    trials = {p: race.trial(p, len(tuning.seeds)) for p in sorted(race.results)}
    return Tuned(
        strategy=cell.label,
        population=cell.population.name,
        metric=race.metric,
        mode=race.mode,
        trials=tuple(trials.values()),
        best=None if winner is None else trials[winner],
        seeds=tuning.seeds,
        edges=() if winner is None else tuple(a.path for a, v in zip(axes, winner, strict=True) if a.at_edge(v)),
        untuned=tuple(untuned),
        deploy=_deploys(cell, trials[winner].values if winner is not None else {}),
        judged_on=judged_on if axes else "",
    )


def trial_label(label: str, values: Mapping[str, float]) -> str:
    """Return the name of a trial while it runs."""
    named = [f"{path.rpartition('.')[2]} {value:g}" for path, value in values.items()]
    return f"{label} [{', '.join(named)}]"


def _judged(problem: Problem, part: float) -> tuple[Problem, str]:
    """Return the problem of the trials, and the examples that they are judged on, in words."""
    if part and isinstance(problem, ForTuning):
        return problem.for_tuning(part)
    return problem, "what the comparison is judged on, which flatters what was chosen by it"


def _deploys(cell: Cell, values: Mapping[str, float]) -> str:
    best = with_values(cell, values) or cell
    return federation_tables(best.strategy, best.training, best.run)


__all__ = ["Trial", "Tuned", "Tuning", "tune"]
