"""Checks of a study beyond the types of its file's keys. All mistakes are reported at once, before anything is
trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedmq.config.mistakes import Mistake
from fedmq.coordinator.decisions.requirements import unmet
from fedmq.coordinator.settings import TargetMetric
from fedmq.coordinator.strategies.protocol import Strategy, buffer_timeout
from fedmq.schemas.errors import ConfigError, InputError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.deals import Iid
from fedmq.studies.population.population import Population
from fedmq.studies.population.traces import read_traces
from fedmq.studies.problems.classification import Softmax, class_numbers, load_arrays
from fedmq.studies.problems.problem import Problem
from fedmq.studies.simulate import check_number, without_effect
from fedmq.studies.study import Contender, tuning_mistakes
from fedmq.studies.sweep.tuning import Tuning
from fedmq.study.app_problem import AppProblem


@dataclass(frozen=True)
class Parts:
    """The valid parts of a study's file, with paths that this process can open.

    A part that is not valid by itself is None, or has no entry. Strategies and populations are keyed by their numbers
    in the file, from 1.
    """

    problem: Problem | None
    run: StudyRun | None
    training: TrainingConfig | None
    contenders: Mapping[int, Contender]
    populations: Mapping[int, Population]
    seeds: Sequence[int] | None
    tuning: Tuning | None
    target: TargetMetric | None


def all_mistakes(parts: Parts) -> list[Mistake]:
    """Return all mistakes, in the order of the checks."""
    return [
        *_endless(parts),
        *_versionless(parts),
        *_without_rate(parts),
        *_unmet(parts),
        *_timeless(parts),
        *_undivided(parts),
        *_in_files(parts),
        *_twice(parts),
        *_tuning(parts),
        *_unmeasured(parts),
    ]


def _endless(parts: Parts) -> Iterator[Mistake]:
    runs = [("run", parts.run), *((f"strategies.{i}.run", c.run) for i, c in parts.contenders.items())]
    for place, run in runs:
        if run is not None and not any(value is not None for value in run.stop.model_dump().values()):
            allowed = "one or more of max_versions, max_updates, max_time_s, target, patience"
            yield Mistake(f"{place}.stop", f"the run would never end; set {allowed}")


def _versionless(parts: Parts) -> Iterator[Mistake]:
    """Find runs that end before their first version: their results would be those of the initial model."""
    for i, c in parts.contenders.items():
        run, tuning = c.run or parts.run, parts.tuning
        key, size = _fewest(c.strategy) if _can_be_built(c) else ("", None)
        stops = [("the run", "run.stop", None if run is None else run.stop)]
        if tuning is not None and not tuning.off and c.tune != {}:
            stops.append(("a trial", "tuning.stop", tuning.stop))
        for what, place, stop in stops:
            updates = None if stop is None else stop.max_updates
            if isinstance(size, int) and updates is not None and size > updates:
                text = f"got {size}, and {what} ends after {updates} updates ({place}.max_updates): no version is made"
                yield Mistake(f"strategies.{i}.strategy.{key}", text)


def _fewest(strategy: Strategy[Any]) -> tuple[str, Any]:
    """Return the key and the number of updates without which a buffer makes no version; None if there is no buffer."""
    timeout = buffer_timeout(strategy)
    if timeout is not None:
        return "min_updates", timeout.min_updates
    return "buffer_size", getattr(strategy, "buffer_size", None)


def _without_rate(parts: Parts) -> Iterator[Mistake]:
    """Find strategies without a learning rate. An app's model has one of its own, other problems have none."""
    name = getattr(parts.problem, "name", "")
    if parts.problem is None or isinstance(parts.problem, AppProblem):
        return
    text = f"missing, expected a number above 0: {name} has no learning rate of its own"
    shared = parts.training
    for i, c in parts.contenders.items():
        own = c.training or shared
        if own is not None and own.learning_rate is None:
            yield Mistake(f"strategies.{i}.training.learning_rate" if c.training else "training.learning_rate", text)


def _unmet(parts: Parts) -> Iterator[Mistake]:
    """Find settings that a strategy's method lacks, unless `_without_rate` reports them for all."""
    app = isinstance(parts.problem, AppProblem)
    for i, c in parts.contenders.items():
        own, training, run = f"strategies.{i}.", c.training or parts.training, c.run or parts.run
        try:
            weights, steps = ("equal", None) if run is None else (run.client_weights, run.steps)
            lacking = list(unmet(weights, c.strategy, training or _RATED, steps))
            for table in () if run is None else (run.uplink, run.downlink):
                lacking += [] if table is None else table.unmet(c.strategy)
        except InputError:  # a strategy of the user's own cannot be built, which `_in_files` reports
            continue
        for place, text in lacking:
            if place.startswith(("run.", "uplink.", "downlink.")):
                yield Mistake(own + place if c.run else place, text)
            elif app or place != "training.learning_rate":
                yield Mistake(own + place if c.training else place, text)


_RATED = TrainingConfig(learning_rate=1.0)
"""Training in place of one that has mistakes of its own."""


def _timeless(parts: Parts) -> Iterator[Mistake]:
    for i, population in parts.populations.items():
        if not population.takes_time:
            text = "its tasks take no time: set compute.task_s or compute.example_s, a network, or a trace"
            yield Mistake(f"populations.{i}", text)


def _undivided(parts: Parts) -> Iterator[Mistake]:
    """Find partial work of tasks that ask for a single epoch."""
    for i, population in parts.populations.items():
        for c in parts.contenders.values():
            training, run = c.training or parts.training, c.run or parts.run
            if training is not None and run is not None and _can_be_built(c):
                text = without_effect(c.strategy, population, run, training)
                if text:
                    yield Mistake(f"populations.{i}.partial_work", f"it has no effect on {c.label!r}: {text}")


def _in_files(parts: Parts) -> Iterator[Mistake]:
    """Check the files that the study names, and its strategies on its populations."""
    checks: list[tuple[str, Callable[[], object]]] = []
    problem = parts.problem
    data = getattr(problem, "data", None)
    if problem is not None and data is not None:
        checks.append(("problem.data", partial(_check_data, Path(data), problem)))
    if isinstance(problem, AppProblem):
        checks.append(("problem.app", partial(_check_app, Path(problem.app))))
    for i, p in parts.populations.items():
        checks += [(f"populations.{i}.trace", partial(read_traces, Path(path))) for path in p.traces]
    populations = list(parts.populations.values())
    for i, c in parts.contenders.items():
        checks.append((f"strategies.{i}.strategy", partial(_check_strategy, c, populations)))
        place = f"strategies.{i}.strategy.num_participants"
        checks += [(place, partial(check_number, c.strategy, p)) for p in populations if _can_be_built(c)]
    for place, check in checks:
        try:
            check()
        except InputError as e:
            yield Mistake(place, str(e))


def _check_data(path: Path, problem: Problem) -> None:
    _, y, _, y_test = load_arrays(path)
    if isinstance(problem, Softmax) or not isinstance(getattr(problem, "deal_by", None), Iid):
        class_numbers(y)
        class_numbers(y_test)


def _check_app(path: Path) -> None:
    """Check that the app file is there and is Python.

    Another process, which has TensorFlow, checks the rest before anything is trained.
    """
    if not path.is_file():
        raise ConfigError(f"there is no app file {path}")
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as e:
        raise ConfigError(f"{path} is not Python: {e}") from None


def _check_strategy(contender: Contender, populations: Sequence[Population]) -> None:
    cohort = contender.strategy.cohort  # a strategy from a user's file is built here
    if cohort is None:
        return
    asked = math.ceil(cohort.size * cohort.over_selection)
    small = [p for p in populations if p.participants < asked]
    if small:
        raise ConfigError(
            f"a round asks {asked} participants (cohort_size × over_selection), the population {small[0].name!r} has "
            f"{small[0].participants}: make the cohort smaller, or the population larger"
        )


def _unmeasured(parts: Parts) -> Iterator[Mistake]:
    """Find metrics that the problem does not measure.

    Those of an app are known when it is loaded, before anything is trained.
    """
    measured: tuple[str, ...] | None = getattr(parts.problem, "metrics", None)
    if measured is None:
        return
    named = {} if parts.target is None else {"target.name": parts.target.name}
    stops = {"run.stop": parts.run and parts.run.stop, "tuning.stop": parts.tuning and parts.tuning.stop}
    stops |= {f"strategies.{i}.run.stop": c.run and c.run.stop for i, c in parts.contenders.items()}
    for place, stop in stops.items():
        for key in ("target", "patience") if stop else ():
            goal = getattr(stop, key)
            named |= {} if goal is None else {f"{place}.{key}.name": goal.name}
    if parts.tuning is not None and parts.tuning.metric is not None:
        named["tuning.metric"] = parts.tuning.metric
    for place, name in named.items():
        if name not in measured:
            yield Mistake(place, f"got {name!r}, which is never measured here, allowed: {', '.join(measured)}")


def _twice(parts: Parts) -> Iterator[Mistake]:
    """Find labels, names and seeds that are used twice."""
    for table, key, names in (
        ("strategies", "label", {i: c.label for i, c in parts.contenders.items()}),
        ("populations", "name", {i: p.name for i, p in parts.populations.items()}),
    ):
        for i, name in names.items():
            first = next(j for j, other in names.items() if other == name)
            if first != i:
                yield Mistake(f"{table}.{i}.{key}", f'got "{name}", which {table}.{first} has: names must differ')
    if parts.seeds is not None and (not parts.seeds or len(set(parts.seeds)) < len(parts.seeds)):
        yield Mistake("seeds", f"got {list(parts.seeds)}, expected one or more different numbers")


def _tuning(parts: Parts) -> Iterator[Mistake]:
    populations = list(parts.populations.values())
    contenders = {i: c for i, c in parts.contenders.items() if _can_be_built(c)}
    for place, text in tuning_mistakes(parts.tuning, contenders, populations, parts.seeds or ()):
        yield Mistake(place, text)


def _can_be_built(contender: Contender) -> bool:
    try:
        return bool(contender.strategy.reply)
    except InputError:
        return False
