"""The model's tensors, by name, in the model's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedmq.schemas.layout import Layout, layout_of

Array = npt.NDArray[Any]


class Parameters(Mapping[str, Array]):
    """An ordered, read-only mapping from tensor name to numpy array.

    `non_trainable` names the tensors that no optimiser may step (BatchNorm's moving mean and variance, counters). They
    are averaged plainly; those of an integer or bool dtype are carried over unchanged
    (docs/decisions/0003-non-trainable-tensors.md).

    `block` is the flat array that holds all tensors in the places that `layout` gives, if they are all floating-point
    tensors and lie in one array. Else both are None.
    """

    __slots__ = ("__weakref__", "_tensors", "block", "layout", "non_trainable")

    def __init__(self, tensors: Mapping[str, Array], non_trainable: frozenset[str] | set[str] = frozenset()) -> None:
        self._tensors = dict(tensors)
        self.layout: Layout | None = None
        self.block: Array | None = None
        self.non_trainable = frozenset(non_trainable)
        unknown = self.non_trainable - self._tensors.keys()
        if unknown:
            raise ValueError(f"non_trainable names tensors that are not there: {sorted(unknown)}")

    @classmethod
    def in_block(cls, layout: Layout, block: Array, non_trainable: frozenset[str] = frozenset()) -> Self:
        """Make the tensors of a floating-point layout as views into `block` (flat, with the layout's size and
        dtype)."""
        made = cls.__new__(cls)
        made.layout, made.block, made.non_trainable = layout, block, non_trainable
        return made

    def __getattr__(self, name: str) -> Any:
        """Make the views into a block when the first one is asked for: arithmetic on the block needs none."""
        if name != "_tensors" or self.layout is None or self.block is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        self._tensors = self.layout.views(self.block)
        return self._tensors

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}: {a.dtype}{list(a.shape)}" for n, a in self.items())
        return f"Parameters({inside})"

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(a.nbytes for a in self.values())

    def move(self) -> Parameters:
        """Return all tensors in a new object, and empty this one. The receiver of a large payload can then free it,
        even if its sender still holds this object."""
        moved = Parameters({}, frozenset())
        moved.layout, moved.block, moved.non_trainable = self.layout, self.block, self.non_trainable
        moved._tensors = self._tensors
        self.layout, self.block, self._tensors = None, None, {}
        return moved

    def replace(self, tensors: Mapping[str, Array]) -> Parameters:
        """Return other arrays with the same names and flags."""
        return Parameters(tensors, self.non_trainable)

    def select(self, names: Iterable[str]) -> Parameters:
        """Return only these tensors, in this order, with their flags. Raises KeyError for a name that is not there."""
        tensors = {n: self._tensors[n] for n in names}
        return Parameters(tensors, self.non_trainable & tensors.keys())

    def averaged(self) -> tuple[str, ...]:
        """Return the names of the floating-point tensors: an update carries them and aggregation averages them."""
        if self.layout is not None:
            return self.layout.names
        return tuple(n for n, a in self.items() if is_floating(a.dtype))

    def packed(self) -> Parameters:
        """Return a copy in one block if all tensors are floating-point tensors of one dtype; else this object."""
        layout = layout_of(self)
        if layout is None or not is_floating(layout.dtype):
            return self
        block = np.empty(layout.size, layout.dtype)
        made = Parameters.in_block(layout, block, self.non_trainable)
        for name, array in self.items():
            np.copyto(made[name], array)
        return made


def is_floating(dtype: np.dtype[Any]) -> bool:
    """True if tensors of this dtype are averaged (float16/32/64 and ml_dtypes' bfloat16)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
