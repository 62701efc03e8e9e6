"""Training data for a Keras model, cut into the batches of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.keras.conversions import PARTS, Data, as_data, as_trained, leaves
from fedmq.participant.training.shuffling import epochs
from fedmq.schemas.messages import TrainingConfig

__all__ = ["Data", "LazyData", "as_trained", "length"]


class LazyData:
    """Arrays of one length, or the function that returns them."""

    def __init__(self, source: Data | Callable[[], Data] | None, name: str) -> None:
        self.source = source
        self.name = name
        self._loaded: Data | None = None

    @property
    def num_examples(self) -> int:
        return 0 if self.source is None else length(self.arrays())

    def first(self) -> Data:
        return _sliced(self.arrays(), slice(0, 1))

    def epochs(self, config: TrainingConfig) -> Iterator[Iterator[Data]]:
        """Yield the batches of each epoch. Each epoch has an order of its own, which `config.seed` decides."""
        data = self.arrays()
        for batches in epochs(config, self.num_examples):
            yield (_sliced(data, rows) for rows in batches)

    def in_order(self, batch_size: int) -> Iterator[Data]:
        for start in range(0, self.num_examples, batch_size):
            yield _sliced(self.arrays(), slice(start, start + batch_size))

    def arrays(self) -> Data:
        """Return the data as arrays. The first use loads them. Raises AppError if they are none."""
        if self._loaded is None:
            self._loaded = as_data(self.source() if callable(self.source) else self.source, self.name)
        return self._loaded

    def not_finite(self) -> str:
        """Return the place of the first number that is not finite, as "x has nan at [3, 1]"; empty if all are."""
        for what, part in zip(PARTS, self.arrays(), strict=False):
            for place, array in leaves(part, what):
                if array.dtype.kind == "f" and not (good := np.isfinite(array)).all():
                    at = np.argwhere(~good)[0]
                    return f"{place} has {array[tuple(at)]} at {at.tolist()}"
        return ""


def length(data: Data) -> int:
    """Return the length of the axis of examples."""
    return len(keras.tree.flatten(data)[0])


def _sliced(data: Data, index: Any) -> Data:
    taken: Data = keras.tree.map_structure(lambda leaf: leaf[index], data)
    return taken
