"""A PyTorch model that learns the outputs of an ensemble (participant.training.ensembles), by the PyTorch trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.logits import LEAST_PROBABILITY, are_probabilities
from fedmq.participant.training.torch.backend import torch
from fedmq.participant.training.torch.model import set_parameters
from fedmq.participant.training.torch.trainer import TorchTrainer
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig

Array = npt.NDArray[Any]
_BATCH = 256


class TorchStudent:
    """A model of `build_model()`, with the optimizer and the loss of the distillation."""

    def __init__(
        self,
        build_model: Callable[[], Any],
        public_x: Any,
        *,
        steps: int,
        learning_rate: float,
        temperature: float,
        optimizer: Callable[[Any], Any] | None,
    ) -> None:
        self._public_x = public_x
        self._x: Array | None = None
        self._steps, self._learning_rate, self._temperature = steps, learning_rate, temperature
        self._gives_probabilities = False
        self._trainer = TorchTrainer(build_model, self._loss, None, optimizer or self._annealed)

    def logits(self, parameters: Mapping[str, Array]) -> Array:
        """Return the model's outputs for all public examples."""
        model, x = self._trainer.model, self._public()
        set_parameters(model, parameters)
        model.eval()
        place = next(iter(model.parameters()))
        with torch.no_grad():
            batches = (torch.as_tensor(x[at : at + _BATCH]) for at in range(0, len(x), _BATCH))
            placed = (batch.to(place if batch.is_floating_point() else place.device) for batch in batches)
            parts = [model(batch).double().cpu().numpy() for batch in placed]
        rows = np.concatenate(parts)
        if rows.ndim != 2 or rows.shape[1] < 2:
            raise AppError(
                f"the model of build_model() gives the shape {list(rows.shape)}, expected [examples, classes] with two "
                "classes or more: distillation is for classifiers"
            )
        self._gives_probabilities = are_probabilities(rows)
        return rows

    def towards(self, start: Mapping[str, Array], targets: Array, config: TrainingConfig) -> Mapping[str, Array]:
        """Train from `start` towards the targets."""
        self._trainer.use_data((self._public(), targets.astype(np.float32)))
        return self._trainer.train(start, config).parameters

    def _public(self) -> Array:
        if self._x is None:
            self._x = np.asarray(self._public_x() if callable(self._public_x) else self._public_x)
        return self._x

    def _loss(self, output: Any, targets: Any) -> Any:
        if self._gives_probabilities:
            output = torch.log(torch.clamp(output, min=LEAST_PROBABILITY))
        return torch.nn.functional.cross_entropy(output / self._temperature, targets.to(output.dtype))

    def _annealed(self, parameters: Any) -> Any:
        optimizer = torch.optim.Adam(parameters, self._learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._steps)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer
