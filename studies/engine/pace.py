"""Runs that come to no end, because far more happens in them than tasks end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.engine.task_sizes import example_passes, first_training
from fedmq.studies.population.population import Member, Population

MOST_A_TASK = 1000
"""Most arrivals, and most turns of being on and off, for each task that can end. Each takes about as long to compute as
an update."""


def check_pace(  # noqa: PLR0917
    num_examples: Sequence[int],
    strategy: Strategy[Any],
    population: Population,
    members: Sequence[Member],
    run: StudyRun,
    training: TrainingConfig,
) -> None:
    """Raise ConfigError if arrivals or turns leave no room for tasks. The message has a number that works."""
    first = first_training(training, strategy, run)
    task_s = [
        member.mean_task_s(population.compute, example_passes(first, count), (0, 0))
        for member, count in zip(members, num_examples, strict=True)
    ]
    tasks_per_s = sum(1 / seconds if seconds else math.inf for seconds in task_s)
    if run.arrivals_per_s is not None and run.arrivals_per_s > MOST_A_TASK * tasks_per_s:
        raise ConfigError(
            f"run.arrivals_per_s: got {run.arrivals_per_s:g}, expected {_below(MOST_A_TASK * tasks_per_s)} or less. "
            f"The participants can end {tasks_per_s:.3g} tasks a second, and would let more than {MOST_A_TASK:,} "
            "arrivals pass for each of these"
        )
    turns = population.availability
    if turns is not None and MOST_A_TASK * (turns.on_s.mean + turns.off_s.mean) < max(task_s):
        raise ConfigError(
            f"availability of the population {population.name!r}: on_s and off_s are {turns.on_s.mean:g} and "
            f"{turns.off_s.mean:g} s in the mean, expected {_above(max(task_s) / MOST_A_TASK)} s or more together. A "
            f"task of {max(task_s):.3g} s would take more than {MOST_A_TASK:,} turns"
        )


def _below(value: float) -> str:
    """Return a number that is not above this one, with three digits."""
    shown = f"{value:.3g}"
    return shown if float(shown) <= value else f"{float(shown) - 10 ** (math.floor(math.log10(value)) - 2):.3g}"


def _above(value: float) -> str:
    """Return a number that is not below this one, with three digits."""
    shown = f"{value:.3g}"
    return shown if float(shown) >= value else f"{float(shown) + 10 ** (math.floor(math.log10(value)) - 2):.3g}"
