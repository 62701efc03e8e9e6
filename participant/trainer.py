"""The trainer protocol: any object with a `train` method is a trainer. It need not import anything of fedmq.

    train(parameters, config) -> TrainResult or any object with the same attributes
    train(parameters, config, correction=None)         the same, for SCAFFOLD as well
    evaluate(parameters) -> dict of metrics            optional; raise NotImplementedError if there is no test data
    num_examples                                       optional int attribute or property
    cancel()                                           optional: ask a running `train` to raise soon; from any thread
    keep_in(folder)                                    optional: called before each task with the participant's own
                                                       folder (a Path) for the run, which outlives the process

`parameters` is an ordered mapping name -> numpy array. The arrays are read-only views: copy them before you change
them. `config` is a `schemas.messages.TrainingConfig`. The result must have the same names, dtypes and shapes.

A `train` with an argument `correction` can take part in SCAFFOLD. For such tasks the argument is a mapping name ->
array of all trainable floating-point tensors. `train` adds it to the gradient of every step:
y ← y - learning_rate·(gradient + correction), with config.learning_rate and plain gradient steps. `num_steps` must be
the number of these steps. For all other tasks the argument is None. A participant whose trainer has no such argument
says so in its hello, and gets no SCAFFOLD task.

What a trainer keeps in its folder must move in a way that is safe to repeat: a participant that was killed between the
end of `train` and the write of its update trains the same task again (participant.training.distillation is an example).

A `train` that raises `schemas.errors.AppError` says that the app's model does not fit the federation's: the participant
leaves with that message. Any other exception declines the task as a trainer error, and the participant goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from fedmq.schemas.errors import TrainerError, shown
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of `train`: the parameters after local training, and the work behind them."""

    parameters: Mapping[str, npt.NDArray[Any]]
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Trainer(Protocol):
    """The method that every trainer has."""

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:
        """Train from `parameters` on the participant's own data."""


class TrainerElsewhere(ABC):
    """A trainer that lives in another process, which the participant starts and ends."""

    @abstractmethod
    def open(self) -> Any:
        """Return a stand-in: an object with the methods that the trainer has. Raises AppError and MissingExtra."""

    @abstractmethod
    def close(self) -> None:
        """End the process. Idempotent."""


def keeps(trainer: Any) -> bool:
    """True if the trainer keeps something in a folder of its own."""
    return callable(getattr(trainer, "keep_in", None))


def checked_result(returned: Any) -> Any:
    """Return what a `train` returned. Raises TrainerError unless it has the attributes of a TrainResult."""
    wanted = [f.name for f in fields(TrainResult)]
    missing = [name for name in wanted if not hasattr(returned, name)]
    if not missing:
        return returned
    if returned is None or isinstance(returned, tuple | Mapping):
        got = "None" if returned is None else shown(returned)
    else:
        got = f"{shown(returned)} without {' and '.join(missing)}"
    raise TrainerError(
        f"train returned {got}, expected an object with the attributes {', '.join(wanted)}: end it with "
        "`return fedmq.TrainResult(parameters, num_examples, num_steps, metrics)`"
    )
