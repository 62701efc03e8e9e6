"""What a trainer is: anything with a `train` method (duck-typed; nothing of fedmq need be imported).

    train(parameters, config) -> TrainResult or any object with the same attributes
    train(parameters, config, correction=None)         the same, for SCAFFOLD as well
    evaluate(parameters) -> dict of metrics            optional; raise NotImplementedError where there is no test data
    num_examples                                       optional int attribute or property
    cancel()                                           optional: ask a running `train` to raise soon; from any thread

`parameters` is an ordered mapping name -> numpy array (read-only views: copy before changing them);
`config` is `schemas.messages.TrainingConfig`. What comes back must have the same names, dtypes and shapes.
A `train` with an argument `correction` can take part in SCAFFOLD: for such tasks it is a mapping name -> array of all
trainable floating-point tensors, to be added to the gradient of every step, y ← y - learning_rate·(gradient +
correction) with config.learning_rate and plain gradient steps; it is None for all other tasks. Nothing else is asked of
the trainer: num_steps must be the number of these steps. Participants whose trainer has no such argument say so in
their hello, and get no SCAFFOLD task.
A `train` that raises `schemas.errors.AppError` says that the app's model does not fit the federation's: the participant
leaves with that message. Whatever else it raises is declined as a trainer error, and the participant lives on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What `train` returns: the parameters after local training, and what they stand on."""

    parameters: Mapping[str, npt.NDArray[Any]]
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Trainer(Protocol):
    """The part of the protocol that every trainer has."""

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:
        """Train from `parameters` on the participant's own data."""
