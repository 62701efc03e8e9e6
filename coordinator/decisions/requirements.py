"""Requirements of a strategy on the run's other settings, checked at the start."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fedmq.coordinator.settings import RunSettings, StepAssignment, StopSettings, unfreezing
from fedmq.coordinator.strategies.protocol import Strategy, arrivals, takes_new_tensors
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.methods import METHODS


def unmet(
    client_weights: str, strategy: Strategy[Any], training: TrainingConfig, steps: StepAssignment | None = None
) -> Iterator[tuple[str, str]]:
    """Yield each unmet requirement: its place in the federation file, and what to do about it."""
    if METHODS[strategy.reply].corrected and training.learning_rate is None:
        why = "participants divide by it to compute their mean gradient"
        yield "training.learning_rate", f"missing, expected a number above 0: with {strategy.name} {why}"
    if strategy.reply == "change" and client_weights != "equal":
        text = f"got {client_weights!r}, allowed: 'equal', because {strategy.name} has its memory on the participants"
        yield "run.client_weights", text
    if unfreezing(training) and not takes_new_tensors(strategy):
        yield "training.unfreeze", f"leave it out: the state of {strategy.name} cannot grow by tensors within a run"
    if arrivals(strategy) is not None:
        by_itself = f"leave it out: {strategy.name} says how many steps a task has, within its min_steps and max_steps"
        if steps is not None:
            yield "run.steps", by_itself
        if training.max_steps is not None:
            yield "training.max_steps", by_itself


def unmeasured(stop: StopSettings, metrics: Collection[str]) -> list[str]:
    """Return a text for each goal whose metric is not among those that an evaluation measured."""
    goals = {"target": stop.target, "patience": stop.patience}
    measured = f"it measures {', '.join(map(repr, sorted(metrics)))}" if metrics else "it measures nothing"
    return [
        f"run.stop.{key}.name: got {goal.name!r}, which the evaluation does not measure: {measured}. Name one of "
        "these, or let the app measure it"
        for key, goal in goals.items()
        if goal is not None and goal.name not in metrics
    ]


def not_numbers(stop: StopSettings, metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the goals' metrics that were measured as NaN, which reaches no goal."""
    names = dict.fromkeys(goal.name for goal in (stop.target, stop.patience) if goal is not None)
    return [name for name in names if math.isnan(metrics.get(name, 0.0))]


def check_goals(stop: StopSettings, *, evaluates: bool) -> None:
    """Raise ConfigError if there is a goal and no evaluation that could reach it."""
    if not evaluates and (stop.target or stop.patience):
        raise ConfigError(
            "stop.target and stop.patience need a central evaluation, and there is none: "
            "give the app file a load_test_data(), or stop by max_versions, max_updates or max_time_s"
        )


def check_requirements(
    settings: RunSettings, strategy: Strategy[Any], training: TrainingConfig, *, evaluates: bool
) -> None:
    """Raise ConfigError, with what to set, if the settings do not fit the strategy or the run has no evaluation."""
    check_goals(settings.stop, evaluates=evaluates)
    for place, text in unmet(settings.client_weights, strategy, training, settings.steps):
        raise ConfigError(f"{place}: {text}")
