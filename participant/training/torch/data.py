"""Training data for a PyTorch model, cut into the batches of a task.

Data are (x, y) of arrays or tensors, or a map-style torch.utils.data.Dataset of such pairs. x and y may be nests (dict,
tuple, list) of one length. Floats come to the model in the model's own float type, and whole numbers of y as int64. The
task's seed decides the order, and that needs all examples: a DataLoader is refused, with the line that says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.shuffling import epochs
from fedmq.participant.training.torch.backend import torch
from fedmq.schemas.errors import AppError, shown
from fedmq.schemas.messages import TrainingConfig

Data = Any
"""(x, y), or a map-style torch.utils.data.Dataset."""
Collate = Callable[[list[Any]], Any]
Rows = npt.NDArray[np.int64]

_SCALARS = (int, float, complex, str, bytes, np.generic)
_LINE = "x, y = torch.utils.data.default_collate(list({}))"


class LazyData:
    """Data, or the function that returns them. `dtype` is the model's float type."""

    def __init__(
        self, source: Data | Callable[[], Data] | None, name: str, dtype: Any, collate: Collate | None = None
    ) -> None:
        self.source, self.name, self._dtype = source, name, dtype
        self._collate = collate or torch.utils.data.default_collate
        self._made: Any = None

    @property
    def num_examples(self) -> int:
        return 0 if self.source is None else number_of(self._loaded())

    def epochs(self, config: TrainingConfig, least: int) -> Iterator[Iterator[tuple[Any, Any]]]:
        """Yield the batches of each epoch (participant.training.shuffling.epochs)."""
        for batches in epochs(config, self.num_examples, least):
            yield (self.batch(rows) for rows in batches)

    def in_order(self, batch_size: int) -> Iterator[tuple[Any, Any]]:
        for start in range(0, self.num_examples, batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, self.num_examples)))

    def batch(self, rows: Rows) -> tuple[Any, Any]:
        """Return these examples as (x, y), tensors or nests of them. Raises AppError for other items of a Dataset."""
        data = self._loaded()
        if isinstance(data, tuple):
            x, y = (mapped(part, lambda leaf: _taken(leaf, rows)) for part in data)
        else:
            collated = self._collate([data[int(row)] for row in rows])
            if not isinstance(collated, tuple | list) or len(collated) != 2:
                raise AppError(
                    f"an item of {self.name} gives {shown(collated)} as a batch, expected (x, y): return such pairs "
                    "from its __getitem__, or give TorchTrainer a `collate` that makes (x, y) of a list of items"
                )
            x, y = collated
        return mapped(x, self._converted), mapped(y, lambda leaf: _whole(self._converted(leaf)))

    def not_finite(self) -> str:
        """Return the place of the first number that is not finite, as "x has nan in example 3"; empty if all are."""
        for number, batch in enumerate(self.in_order(1024)):
            for what, part in zip("xy", batch, strict=True):
                for place, leaf in leaves(part, what):
                    if not torch.isfinite(leaf).all():
                        at = torch.nonzero(~torch.isfinite(leaf))[0].tolist()
                        return f"{place} has {leaf[tuple(at)].item()} in example {at[0] + 1024 * number}"
        return ""

    def shapes(self) -> str:
        """Return places, dtypes and shapes of an example, for messages."""
        parts = zip("xy", self.batch(np.zeros(1, np.int64)), strict=True)
        found = [
            f"{place} {str(t.dtype)[6:]}{list(t.shape[1:])}" for what, part in parts for place, t in leaves(part, what)
        ]
        return ", ".join(found) + " for each example"

    def _loaded(self) -> Any:
        if self._made is None:
            self._made = as_data(self.source() if callable(self.source) else self.source, self.name)
        return self._made

    def _converted(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            raise AppError(f"a batch of {self.name} has {shown(leaf)}, expected tensors")
        return leaf.to(self._dtype) if leaf.is_floating_point() else leaf


def mapped(nest: Any, change: Callable[[Any], Any]) -> Any:
    """Return the nest with each leaf changed."""
    if isinstance(nest, Mapping):
        return {key: mapped(value, change) for key, value in nest.items()}
    if isinstance(nest, tuple | list):
        return tuple(mapped(value, change) for value in nest)
    return change(nest)


def leaves(nest: Any, what: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nest with their places in it, as in x['image'] or y[0]."""
    if isinstance(nest, Mapping):
        for key, value in nest.items():
            yield from leaves(value, f"{what}[{key!r}]")
    elif isinstance(nest, tuple):
        for index, value in enumerate(nest):
            yield from leaves(value, f"{what}[{index}]")
    else:
        yield what, nest


def batch_length(batch: tuple[Any, Any]) -> int:
    """Return the number of examples of a batch."""
    return len(next(leaves(batch[0], "x"))[1])


def as_data(given: Any, name: str) -> Any:
    """Return (x, y) of arrays and tensors, or a map-style Dataset. Raises AppError, with the line that makes one."""
    if isinstance(given, torch.utils.data.DataLoader):
        raise AppError(
            f"{name} is a DataLoader, expected (x, y) or a Dataset, which the task's seed puts in order and "
            "training.batch_size cuts: give loader.dataset, and a collate_fn of yours as TorchTrainer(collate=...)"
        )
    if isinstance(given, torch.utils.data.TensorDataset):
        *x, y = given.tensors
        given = (x[0] if len(x) == 1 else tuple(x), y)
    if isinstance(given, torch.utils.data.IterableDataset) or hasattr(given, "__next__"):
        raise AppError(
            f"{name} gives its examples one after the other ({type(given).__name__}), expected (x, y) or a map-style "
            f"Dataset, which the task's seed puts in order: collect it once, by {_LINE.format('dataset')}"
        )
    if isinstance(given, torch.utils.data.Dataset):
        if not hasattr(given, "__len__"):
            raise AppError(f"{name} is a {type(given).__name__} without __len__: give it one, and __getitem__(index)")
        return given
    if not isinstance(given, tuple | list) or len(given) != 2 or _flat_list(given):
        got = "None" if given is None else shown(given)
        raise AppError(f"{name} is {got}, expected (x, y) or a map-style torch.utils.data.Dataset: return one of them")
    made = tuple(_as_arrays(part, f"{what} of {name}") for part, what in zip(given, "xy", strict=True))
    lengths = {place: len(leaf) for part, what in zip(made, "xy", strict=True) for place, leaf in leaves(part, what)}
    if not lengths:
        raise AppError(f"{name} has no arrays, expected (x, y)")
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{place} has {length}" for place, length in lengths.items())
        raise AppError(f"{name} has arrays of different lengths: {listed}. Each needs one entry for each example")
    return made


def _as_arrays(part: Any, place: str) -> Any:
    """Return a nest whose leaves are arrays or tensors with an axis of examples. Raises AppError."""
    if isinstance(part, Mapping):
        return {key: _as_arrays(value, f"{place} at {key!r}") for key, value in part.items()}
    if isinstance(part, tuple | list) and not _is_flat(part):
        return tuple(_as_arrays(value, f"{place} at {i}") for i, value in enumerate(part))
    if isinstance(part, torch.Tensor):
        leaf = part.detach()
    else:
        leaf = np.asarray(part.toarray() if hasattr(part, "toarray") else part)
        if leaf.dtype.kind not in "biuf":
            raise AppError(
                f"{place} has the dtype {leaf.dtype}, expected numbers: convert it, as by x.astype('float32')"
            )
    if leaf.ndim == 0:
        raise AppError(f"{place} is a scalar ({shown(part)}), expected an array with one entry for each example")
    return leaf


def _flat_list(given: Any) -> bool:
    return isinstance(given, list) and _is_flat(given)


def _is_flat(part: Any) -> bool:
    """Return True for a number, and for a list of numbers at any depth, which has no array in it."""
    if isinstance(part, tuple | list):
        return all(_is_flat(value) for value in part)
    return isinstance(part, _SCALARS)


def _taken(leaf: Any, rows: Rows) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf[torch.from_numpy(rows).to(leaf.device)]
    taken = np.ascontiguousarray(leaf[rows])
    if taken.dtype.kind == "u" and taken.dtype.itemsize > 1:  # PyTorch computes with few of these
        taken = taken.astype(np.int64)
    return torch.from_numpy(taken.astype(taken.dtype.newbyteorder("="), copy=False))


def _whole(leaf: Any) -> Any:
    """Return class numbers in the type that PyTorch's losses take."""
    return leaf if leaf.is_floating_point() or leaf.dtype == torch.bool else leaf.to(torch.int64)


def number_of(data: Any) -> int:
    """Return the number of examples of what `as_data` returned."""
    return len(next(leaves(data, ""))[1]) if isinstance(data, tuple) else len(data)


def taken(data: Any, rows: Rows) -> Any:
    """Return these examples of what `as_data` returned, as data again."""
    if isinstance(data, tuple):
        return tuple(mapped(part, lambda leaf: leaf[rows]) for part in data)
    return torch.utils.data.Subset(data, rows.tolist())
