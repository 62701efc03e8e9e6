"""Tuning: a small grid for each strategy on each population, on seeds of its own, before anything is compared.

Which strategy wins depends on its step sizes more than on its idea, so a comparison at one learning rate for all says
little. Two things are tuned where a strategy has them: the participants' learning rate, and the server's step (η_g or
α). A grid is the usual practice in federated optimisation (Reddi et al. 2021, "Adaptive Federated Optimization",
appendix D), takes no luck, and every trial is a cell with a file like any other: it is run once, on any core.

Rules
 1. Default values are half-decades around what the study's file says. While the best one stands at an edge, the grid
    grows there, at most `extend` times; values that the file lists are taken as they are.
 2. Trials run as the study's cells do, on `seeds` that are none of the study's: other participants, other luck. Where
    the test set is the same for all seeds they are judged on training examples that are kept back for it.
 3. The best trial reached the run's target soonest; among those that did not, or where there is no target, it has the
    best final value (`measures.final_value`). A trial that diverged loses to any that did not.
 4. What was tried and what won is on record; an edge that still won is said.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from coordinator.settings import StopSettings
from coordinator.strategies.base import Strategy
from schemas.errors import InputError
from schemas.messages import TrainingConfig
from studies.cell import Cell, CellResult
from studies.classification import Part
from studies.deploy import federation_tables
from studies.measures import chosen_metric, final_value, is_better_high
from studies.pool import Batch
from studies.problem import ForTuning, Problem
from studies.value import Value

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LOCAL = "training.learning_rate"
SERVER_FIELDS = ("alpha", "server_learning_rate", "learning_rate")
"""What the server's step is called, in the order in which a strategy is searched for it."""


class Tuning(Value):
    """The [tuning] table; `tuning = false` in its place is `off`."""

    off: bool = False
    """Compare the strategies as they are; the report says so."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (1_000_000,)
    """None of the study's own."""
    learning_rate: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Of the participants, to be tried; without it half-decades around the study's."""
    server_step: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """η_g or α, to be tried; without it half-decades around the strategy's own."""
    extend: Annotated[int, Field(ge=0, le=20)] = 3
    """How many times a default grid grows where its best value stands at an edge."""
    validation_part: Part = 0.1
    """Of the training examples, on which trials are judged: the test set is the comparison's. 0 takes the test set."""
    metric: str | None = None
    """What is best; without it the accuracy where there is one, else the distance to the optimum, else the loss."""
    mode: Literal["max", "min"] | None = None
    """Without it `max` for the accuracy and `min` for anything else."""
    stop: StopSettings | None = None
    """When a trial ends, in place of the run's own stop: shorter trials, where these tell enough."""
    population: str | None = None
    """Tune on this population alone and take what won there to all; without it each population has its own tuning."""

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, given: Any) -> Any:
        return {"off": not given} if isinstance(given, bool) else given


@dataclass(frozen=True)
class Trial:
    """One point of a grid, over all tuning seeds."""

    values: Mapping[str, float]
    score: float
    """Mean over the tuning seeds of the metric's final value; NaN where a cell diverged or measured nothing."""
    reached_s: float | None
    """Mean virtual time to the run's target, where every seed reached it."""
    finished: str


@dataclass(frozen=True)
class Tuned:
    """What tuning one strategy on one population gave."""

    strategy: str
    population: str
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    best: Trial | None
    """None where nothing was tried."""
    edges: tuple[str, ...] = ()
    """Parameters whose best value is the lowest or the highest that was tried."""
    untuned: tuple[str, ...] = ()
    """What could have been tuned and was not, in words."""
    deploy: str = ""
    """The best trial's settings as tables of a federation file."""
    judged_on: str = ""
    """The examples that trials were evaluated on."""

    @property
    def doubts(self) -> list[str]:
        """Why there may be better values than the best, in words."""
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
class _Axis:
    """The values of one parameter; `base` and exponents of √10 for a grid that may grow."""

    path: str
    values: list[float]
    base: float | None = None
    lowest: int = -1
    highest: int = 1

    def grow(self, best: float) -> list[float]:
        """The values beyond the edge at which the best one stands; none where there is no edge, or no more room."""
        if self.base is None:
            return []
        found = []
        if best == min(self.values):
            self.lowest -= 1
            found.append(_rounded(self.base * 10 ** (self.lowest / 2)))
        if best == max(self.values) and not (self.path.endswith(".alpha") and best >= 1):
            self.highest += 1
            found.append(_capped(self.path, _rounded(self.base * 10 ** (self.highest / 2))))
        new = [v for v in found if v not in self.values]
        self.values += new
        return new


def tune(
    cell: Cell,
    tuning: Tuning,
    given: Mapping[str, Sequence[float]] | None,
    *,
    later: int = 0,
    judged_by: Sequence[str] = (),
) -> Generator[Batch, list[CellResult], Tuned]:
    """Try values for this cell's strategy on its population. `given`: parameter -> values, in place of the defaults.

    A part of a studies.pool.Arm, of which `later` cells come afterwards, of which these metrics are needed; returns
    what was found.
    """
    axes, untuned = _axes(cell, tuning, given)
    run = cell.run if tuning.stop is None else cell.run.model_copy(update={"stop": tuning.stop})
    problem, judged_on = _judged(cell.problem, tuning.validation_part)
    trial_cell = replace(cell, run=run, problem=problem)
    trials: dict[tuple[float, ...], Trial] = {}
    metric, mode = tuning.metric or "", tuning.mode or ""
    rounds = 0
    while axes:
        points = [p for p in itertools.product(*(a.values for a in axes)) if p not in trials]
        made = [(p, c) for p in points if (c := with_values(trial_cell, _named(axes, p))) is not None]
        cells = [replace(c, seed=seed, label=trial_label(cell.label, _named(axes, p)))
                 for p, c in made for seed in tuning.seeds]  # fmt: skip
        results = yield Batch(cells, later, (metric, *judged_by))
        if not metric:
            metric = chosen_metric(results) or ""
        mode = mode or ("max" if is_better_high(metric) else "min")
        for i, (p, _) in enumerate(made):
            of_point = results[i * len(tuning.seeds) : (i + 1) * len(tuning.seeds)]
            trials[p] = _trial(_named(axes, p), of_point, metric)
        best = min(trials.items(), key=lambda item: _rank(item[0], item[1], mode), default=None)
        if best is None or rounds == tuning.extend:
            break
        rounds += 1
        grown = [axis.grow(value) for axis, value in zip(axes, best[0], strict=True)]
        if not any(grown):
            break
    ordered = sorted(trials.items(), key=lambda item: item[0])
    winner = min(ordered, key=lambda item: _rank(item[0], item[1], mode), default=None)
    edges = () if winner is None else tuple(a.path for a, v in zip(axes, winner[0], strict=True) if _at_edge(a, v))
    return Tuned(
        strategy=cell.label,
        population=cell.population.name,
        metric=metric,
        mode=mode,
        trials=tuple(trial for _, trial in ordered),
        best=None if winner is None else winner[1],
        edges=edges,
        untuned=tuple(untuned),
        deploy=_deploys(cell, winner[1].values if winner is not None else {}),
        judged_on=judged_on if axes else "",
    )


def _judged(problem: Problem, part: float) -> tuple[Problem, str]:
    """The problem of the trials, and what they are judged on."""
    if part and isinstance(problem, ForTuning):
        return problem.for_tuning(part)
    return problem, "what the comparison is judged on, which flatters what was chosen by it"


def with_values(cell: Cell, values: Mapping[str, float]) -> Cell | None:
    """The cell with these parameters (`training.x`, `strategy.x.y`); None where they are refused."""
    found = changed(cell.strategy, cell.training, values)
    return None if found is None else replace(cell, strategy=found[0], training=found[1])


def changed(
    strategy: Strategy[Any], training: TrainingConfig, values: Mapping[str, float]
) -> tuple[Strategy[Any], TrainingConfig] | None:
    """Both with these parameters; None where they are refused."""
    try:
        for path, value in values.items():
            where, _, rest = path.partition(".")
            if where == "training":
                training = TrainingConfig(**{**training.model_dump(), rest: _as_kind(getattr(training, rest), value)})
            else:
                strategy = _replaced(strategy, rest.split("."), value)
    except (ValidationError, InputError):
        return None
    return strategy, training


def server_step(strategy: Strategy[Any]) -> str | None:
    """The path of the server's step size; None where the strategy has none (a plain mean)."""
    optimizer = getattr(strategy, "server_optimizer", None)
    if optimizer is not None and hasattr(optimizer, "learning_rate"):
        return "strategy.server_optimizer.learning_rate"
    name = next((n for n in SERVER_FIELDS if isinstance(getattr(strategy, n, None), float)), None)
    return None if name is None else f"strategy.{name}"


def value_at(strategy: Strategy[Any], training: TrainingConfig, path: str) -> Any:
    """What a parameter is now. Raises KeyError or AttributeError where there is none of this path."""
    where, _, rest = path.partition(".")
    found: Any = {"training": training, "strategy": strategy}[where]
    for name in rest.split("."):
        found = getattr(found, name)
    return found


def trial_label(label: str, values: Mapping[str, float]) -> str:
    """How a trial is called while it runs."""
    named = [f"{path.rpartition('.')[2]} {value:g}" for path, value in values.items()]
    return f"{label} [{', '.join(named)}]"


def _deploys(cell: Cell, values: Mapping[str, float]) -> str:
    best = with_values(cell, values) or cell
    return federation_tables(best.strategy, best.training, best.run)


def _axes(cell: Cell, tuning: Tuning, given: Mapping[str, Sequence[float]] | None) -> tuple[list[_Axis], list[str]]:
    if given is not None:
        return [_Axis(path, list(dict.fromkeys(values))) for path, values in given.items()], []
    axes, untuned = [], []
    rate = cell.training.learning_rate
    if tuning.learning_rate is not None:
        axes.append(_Axis(LOCAL, list(dict.fromkeys(tuning.learning_rate))))
    elif rate is not None:
        axes.append(_around(LOCAL, rate))
    else:
        untuned.append("the participants' learning rate (the app's own: give training.learning_rate to have it tuned)")
    path = server_step(cell.strategy)
    if path is not None and tuning.server_step is not None:
        axes.append(_Axis(path, list(dict.fromkeys(_capped(path, v) for v in tuning.server_step))))
    elif path is not None:
        axes.append(_around(path, float(value_at(cell.strategy, cell.training, path))))
    return axes, untuned


def _around(path: str, value: float) -> _Axis:
    values = [_capped(path, v if k == 0 else _rounded(v)) for k in (-1, 0, 1) for v in [value * 10 ** (k / 2)]]
    return _Axis(path, list(dict.fromkeys(values)), base=value)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _capped(path: str, value: float) -> float:
    return min(value, 1.0) if path.endswith(".alpha") else value


def _named(axes: Sequence[_Axis], point: Sequence[float]) -> dict[str, float]:
    return {axis.path: value for axis, value in zip(axes, point, strict=True)}


def _at_edge(axis: _Axis, value: float) -> bool:
    if len(axis.values) < 2 or (axis.path.endswith(".alpha") and value >= 1):
        return False
    return value in (min(axis.values), max(axis.values))


def _trial(values: Mapping[str, float], results: Sequence[CellResult], metric: str) -> Trial:
    ends = dict.fromkeys(r.finished for r in results)
    scores = [final_value(r, metric) for r in results]
    bad = any(r.finished in {"diverged", "stuck"} for r in results)
    reached = all(r.finished == "target" for r in results)
    return Trial(
        values=values,
        score=math.nan if bad else statistics.fmean(scores),
        reached_s=statistics.fmean(r.time_s for r in results) if reached else None,
        finished=", ".join(ends),
    )


def _rank(point: tuple[float, ...], trial: Trial, mode: str) -> tuple[Any, ...]:
    """The least is the best; of equal ones that with the smaller steps."""
    if trial.reached_s is not None:
        return (0, trial.reached_s, point)
    if math.isfinite(trial.score):
        return (1, -trial.score if mode == "max" else trial.score, point)
    return (2, 0.0, point)


def _replaced(value: Any, path: Sequence[str], new: float) -> Any:
    if hasattr(value, "with_field"):  # a strategy that is built from a file
        return value.with_field(path[0], new)
    if len(path) > 1:
        new = _replaced(getattr(value, path[0]), path[1:], new)
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is not a dataclass: its {path[0]} cannot be tuned")
    settable = {f.name for f in fields(value) if f.init}
    new = _as_kind(getattr(value, path[0]), new)
    return type(value)(**{name: getattr(value, name) for name in settable} | {path[0]: new})


def _as_kind(now: Any, new: Any) -> Any:
    """A whole number where a whole number was."""
    return int(new) if isinstance(now, int) and isinstance(new, float) and new.is_integer() else new


__all__ = ["LOCAL", "Trial", "Tuned", "Tuning", "changed", "server_step", "tune", "value_at", "with_values"]
