"""Keras callbacks in a task's training, called in the order of `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedmq.participant.training.keras.backend import keras
from fedmq.schemas.errors import AppError, shown
from fedmq.schemas.messages import TrainingConfig


class TaskCallbacks:
    """New callbacks of one task. Each method does nothing if there are none."""

    def __init__(
        self, make: Callable[[], Sequence[Any]] | None, model: Any, config: TrainingConfig, num_examples: int
    ) -> None:
        """Make the callbacks and begin the training. Raises AppError if `make` returns something else."""
        self._model = model
        self._list: Any = None
        self._logs: Mapping[str, Any] = {}
        self._epoch = self._batch = 0
        if make is None:
            return
        made = make()
        if not isinstance(made, list | tuple) or not all(isinstance(one, keras.callbacks.Callback) for one in made):
            raise AppError(
                f"callbacks returned {shown(made)}, expected a list of keras.callbacks.Callback: new ones at each call"
            )
        steps = math.ceil(num_examples / config.batch_size)
        self._model.stop_training = False
        self._list = keras.callbacks.CallbackList(list(made), model=model, epochs=config.epochs, steps=steps, verbose=0)
        self._list.on_train_begin()

    def epoch_begins(self, epoch: int) -> None:
        self._epoch, self._batch = epoch, 0
        if self._list is not None:
            self._list.on_epoch_begin(epoch)

    def batch_begins(self) -> None:
        if self._list is not None:
            self._list.on_train_batch_begin(self._batch)

    def batch_ends(self, logs: Mapping[str, Any]) -> bool:
        """Return True if a callback stops the training."""
        if self._list is None:
            return False
        self._logs = numbers(logs)
        self._list.on_train_batch_end(self._batch, self._logs)
        self._batch += 1
        return bool(self._model.stop_training)

    def epoch_ends(self) -> bool:
        """Return True if a callback stops the training."""
        if self._list is None:
            return False
        self._list.on_epoch_end(self._epoch, self._logs)
        return bool(self._model.stop_training)

    def train_ends(self) -> None:
        """End the training. Callbacks may put other weights into the model here."""
        if self._list is not None:
            self._list.on_train_end(self._logs)


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars. Nested metrics are flattened by their own names, as `fit` logs them."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        if isinstance(value, Mapping):
            found.update(numbers(value))
        elif getattr(value, "ndim", 0) == 0:
            found[name] = float(value)
    return found
