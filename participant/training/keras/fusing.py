"""A Keras model that learns the outputs of an ensemble (participant.training.ensembles).

The training is the Keras trainer's own, as in keras.distilling. So seeds, and the state of layers and optimizers, are
as always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.keras.distilling import KerasLearner
from fedmq.participant.training.keras.model import Model, set_parameters
from fedmq.participant.training.logits import LEAST_PROBABILITY
from fedmq.schemas.messages import TrainingConfig

Array = npt.NDArray[Any]
_BATCH = 256


class KerasStudent(KerasLearner):
    """A model without data of its own. Its optimizer and its loss are the distillation's, not those of `compile`."""

    def __init__(
        self,
        build_model: Callable[[], Model],
        public_x: Any,
        *,
        steps: int,
        learning_rate: float,
        temperature: float,
        optimizer: Callable[[], Any] | None,
    ) -> None:
        super().__init__(build_model, None, public_x)
        self._steps, self._learning_rate = steps, learning_rate
        self._temperature, self._optimizer = temperature, optimizer

    def logits(self, parameters: Mapping[str, Array]) -> Array:
        """Return the model's outputs for all public examples."""
        model = self._trainer.model
        set_parameters(model, parameters)
        parts = [self._outputs(model, slice(at, at + _BATCH)) for at in range(0, self.num_public, _BATCH)]
        return np.concatenate(parts)

    def towards(self, start: Mapping[str, Array], targets: Array, config: TrainingConfig) -> Mapping[str, Array]:
        """Train from `start` towards the targets."""
        return self.distil(start, targets, config)

    def _recompiled(self) -> Model:
        model = self._built()
        if self._optimizer is None:
            rate = keras.optimizers.schedules.CosineDecay(self._learning_rate, self._steps)
            optimizer: Any = keras.optimizers.Adam(rate)
        else:
            optimizer = self._optimizer()
        gives_logits, temperature = self._gives_logits(), self._temperature

        def loss(targets: Any, outputs: Any) -> Any:
            """The cross-entropy has the gradient of the KL divergence: they differ by the targets' entropy."""
            if not gives_logits:
                outputs = keras.ops.log(keras.ops.maximum(outputs, LEAST_PROBABILITY))
            return keras.losses.categorical_crossentropy(targets, outputs / temperature, from_logits=True)

        model.compile(optimizer, loss, run_eagerly=model.run_eagerly, jit_compile=model.jit_compile)
        return model
