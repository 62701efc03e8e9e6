"""Training data for a Keras model: arrays or nests of arrays, cut into the batches of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.shuffling import orders
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig

Data = tuple[Any, ...]
"""(x, y) or (x, y, sample_weight); x and y are arrays or nests (dict, tuple, list) of arrays of one length."""


class LazyData:
    """Arrays of one length, or the function that returns them."""

    def __init__(self, source: Data | Callable[[], Data] | None, name: str) -> None:
        self.source = source
        self.name = name
        self._loaded: Data | None = None

    @property
    def num_examples(self) -> int:
        return 0 if self.source is None else length(self._arrays())

    def first(self) -> Data:
        return _sliced(self._arrays(), slice(0, 1))

    def epochs(self, config: TrainingConfig) -> Iterator[Iterator[Data]]:
        """Yield the batches of each epoch. Each epoch has an order of its own, which `config.seed` decides."""
        data, count = self._arrays(), self.num_examples
        steps_left = config.max_steps if config.max_steps is not None else config.epochs * count
        for epoch in range(config.epochs):
            starts = range(0, count, config.batch_size)[: max(steps_left, 0)]
            if not starts:
                return
            order = orders([config.seed], [count], epoch)[0]
            yield (_sliced(data, order[i : i + config.batch_size]) for i in starts)
            steps_left -= len(starts)

    def in_order(self, batch_size: int) -> Iterator[Data]:
        for start in range(0, self.num_examples, batch_size):
            yield _sliced(self._arrays(), slice(start, start + batch_size))

    def _arrays(self) -> Data:
        if self._loaded is None:
            data = self.source() if callable(self.source) else self.source
            if not isinstance(data, (tuple, list)) or not 2 <= len(data) <= 3:
                raise AppError(f"{self.name} is {type(data).__name__}, expected (x, y) or (x, y, sample_weight)")
            self._loaded = tuple(keras.tree.map_structure(_standard, part) for part in data)
            lengths = sorted({len(leaf) for leaf in keras.tree.flatten(self._loaded)})
            if len(lengths) != 1:
                raise AppError(f"{self.name} has arrays of different lengths: {lengths}")
        return self._loaded


def as_trained(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return floats in Keras's float type, as `fit` has them."""
    if array.dtype.kind == "f" and array.dtype.name != keras.config.floatx():
        return array.astype(keras.config.floatx())
    return array


def length(data: Data) -> int:
    """Return the length of the axis of examples."""
    return len(keras.tree.flatten(data)[0])


def _standard(leaf: Any) -> npt.NDArray[Any]:
    """Return a leaf as an array with a batch axis. Raises AppError for a scalar."""
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise AppError("data holds a scalar, expected arrays with one entry per example")
    return as_trained(array)


def _sliced(data: Data, index: Any) -> Data:
    taken: Data = keras.tree.map_structure(lambda leaf: leaf[index], data)
    return taken
