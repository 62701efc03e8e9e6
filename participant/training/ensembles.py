"""FedDF's distillation: a model is trained towards the mean logits of an ensemble, on unlabelled public examples.

Lin et al. 2020 (coordinator.strategies.feddf has the algorithm). With the public examples d, and logits f:

    targets   t = softmax( Σ w_i·f(y_i, d) / T )                    once, of all public examples
    steps     x ← x - η·∂/∂x KL( t, softmax( f(x, d) / T ) )        on batches of them, from x = start

The paper has T = 1, Adam with η = 1e-3 and a cosine annealing to 0, and batches of 128. It stops early by a validation
set; here the number of steps is given. The authors' code multiplies the loss by T², which only scales η with a plain
optimizer and nothing with Adam; this one does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from fedmq.participant.training.logits import mean_logits, softmax
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

Array = npt.NDArray[Any]

MOST_EPOCHS = 10_000


class Student(Protocol):
    """A model of one framework and the public examples."""

    def logits(self, parameters: Mapping[str, Array]) -> Array:
        """Return the model's outputs for all public examples, [examples, classes]."""

    def towards(self, start: Mapping[str, Array], targets: Array, config: TrainingConfig) -> Mapping[str, Array]:
        """Train from `start` on the public examples, towards probabilities [examples, classes]."""


class Distiller:
    """FedDF's distillation of Keras or PyTorch models, for an app's `distil`.

    build_model: as in the app; its outputs are logits or probabilities, [examples, classes]. public_x: the public
    examples, or a function that returns them; nobody needs labels of them. steps: optimiser steps for each version.
    temperature: T. learning_rate: of Adam, from where a cosine takes it to 0 in `steps` steps. optimizer: a function
    that makes another optimizer, which takes the place of both: optimizer() for Keras, optimizer(params) for PyTorch.

        distiller = fedmq.Distiller(build_model, load_public_data, steps=500)

        def distil(ensemble, start, seed):
            return distiller.distil(ensemble, start, seed)
    """

    def __init__(
        self,
        build_model: Callable[[], Any],
        public_x: Any,
        *,
        steps: int = 500,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        temperature: float = 1.0,
        optimizer: Callable[..., Any] | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise AppError(f"Distiller got {name} = {value!r}, expected a whole number of 1 or more")
        for name, number in (("learning_rate", learning_rate), ("temperature", temperature)):
            if not (isinstance(number, int | float) and 0 < number < float("inf")):
                raise AppError(f"Distiller got {name} = {number!r}, expected a number above 0")
        self._build_model, self._public_x = build_model, public_x
        self._steps, self._batch_size = steps, batch_size
        self._learning_rate, self._temperature, self._optimizer = learning_rate, temperature, optimizer
        self._student: Student | None = None

    def distil(
        self, ensemble: Iterable[tuple[Mapping[str, Array], float]], start: Mapping[str, Array], seed: int
    ) -> Mapping[str, Array]:
        """Return the parameters of a model that begins as `start` and learns the ensemble's outputs.

        ensemble: (parameters, weight). seed: of the order of the examples, and of what a model draws. Raises AppError
        if there is no model in it, or if the model gives no logits.
        """
        student = self._made()
        mean = mean_logits((student.logits(parameters), weight) for parameters, weight in ensemble)
        made = student.towards(start, softmax(mean / self._temperature), self._config(len(mean), seed))
        return made if isinstance(made, Parameters) else Parameters(dict(made))

    def _config(self, num_public: int, seed: int) -> TrainingConfig:
        epochs = math.ceil(self._steps / max(1, num_public // self._batch_size))
        if epochs > MOST_EPOCHS:
            raise AppError(
                f"Distiller got steps = {self._steps}, which are {epochs} passes over {num_public} public examples, "
                f"expected {MOST_EPOCHS} at most: give it more examples, or fewer steps"
            )
        return TrainingConfig(epochs=epochs, max_steps=self._steps, batch_size=self._batch_size, seed=seed)

    def _made(self) -> Student:
        if self._student is None:
            model = self._build_model()
            if any(kind.__module__.partition(".")[0] == "torch" for kind in type(model).__mro__):
                from fedmq.participant.training.torch.distilling import TorchStudent as Made
            else:
                from fedmq.participant.training.keras.fusing import KerasStudent as Made  # type: ignore[assignment]
            self._student = Made(
                self._build_model,
                self._public_x,
                steps=self._steps,
                learning_rate=self._learning_rate,
                temperature=self._temperature,
                optimizer=self._optimizer,
            )
        return self._student
