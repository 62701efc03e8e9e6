"""The amount of training in one task. The time that a task takes is computed from it."""

from __future__ import annotations

import math
from typing import Any

from fedmq.coordinator.strategies.protocol import Strategy, arrivals
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun


def example_passes(training: TrainingConfig, num_examples: int) -> int:
    """Count the examples that one task trains on, each as often as it does.

    The last batch of an epoch may be a short one.
    """
    passes = training.epochs * num_examples
    if training.max_steps is None:
        return passes
    epochs, steps = divmod(training.max_steps, max(1, math.ceil(num_examples / training.batch_size)))
    return min(passes, epochs * num_examples + steps * training.batch_size)


def first_training(training: TrainingConfig, strategy: Strategy[Any], run: StudyRun) -> TrainingConfig:
    """Return the training that is asked of a participant whose speed is not known yet."""
    groups = arrivals(strategy)
    if groups is not None:
        return training.model_copy(update={"max_steps": groups.first_steps, "epochs": groups.first_steps})
    if run.steps is not None:
        first = run.steps.steps(None)
        steps = first if training.max_steps is None else min(first, training.max_steps)
        return training.model_copy(update={"max_steps": steps})
    return training
