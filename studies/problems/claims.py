"""Checks of a caller's arguments and of a user's own problem, with errors that say what was got and what was expected.

Without these checks a mistake would end in the engine's depths. `lazy_training.check_trained` checks what is trained.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.problems.lazy_training import named

DEALT = ("initial", "num_examples", "backend", "evaluates")
"""Attributes of what a problem deals out."""


def check_arguments(*, strategy: Any, problem: Any, population: Any, run: Any, training: Any, seed: Any) -> None:
    """Raise ConfigError if an argument of `simulate` is not what its place takes."""
    for place, given, fits, expected in (
        ("strategy", strategy, _is_strategy(strategy), "a strategy, as in fedmq.FedBuff(buffer_size=10)"),
        ("problem", problem, _is_problem(problem), "a problem with deal(members, seed), as in fedmq.Quadratics()"),
        ("population", population, hasattr(population, "takes_time"), "a fedmq.Population(…)"),
        ("run", run, hasattr(run, "run_settings"), "a fedmq.StudyRun(…)"),
        ("training", training, isinstance(training, TrainingConfig), "a fedmq.TrainingConfig(…)"),
        ("seed", seed, isinstance(seed, Integral), "an integer"),
    ):
        if not fits:
            raise ConfigError(f"simulate got {named(given)} as its {place}, expected {expected}")


def check_dealt(federation: Any, participants: int) -> None:
    """Raise ConfigError if what a problem dealt out lacks something, or is for another number of participants."""
    missing = [name for name in DEALT if not hasattr(federation, name)]
    if missing:
        raise ConfigError(f"the problem's deal(…) gave {named(federation)} without {', '.join(missing)}: add them")
    if not isinstance(federation.initial, Parameters):
        raise ConfigError(
            f"the problem's `initial` is {named(federation.initial)}, expected fedmq.Parameters({{name: array}})"
        )
    if len(federation.num_examples) != participants:
        raise ConfigError(
            f"the problem's `num_examples` has {len(federation.num_examples)} values, expected one for each of the "
            f"{participants} participants"
        )


def check_metrics_of(metrics: Any) -> None:
    """Raise ConfigError if an evaluation gave no dict."""
    if not isinstance(metrics, dict):
        raise ConfigError(f"the problem's evaluate(…) gave {named(metrics)}, expected a dict of metrics")


def _is_strategy(strategy: Any) -> bool:
    return not isinstance(strategy, type) and all(hasattr(strategy, name) for name in ("reply", "init", "aggregate"))


def _is_problem(problem: Any) -> bool:
    return not isinstance(problem, type) and callable(getattr(problem, "deal", None))
