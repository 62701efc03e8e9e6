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

    `non_trainable` names the tensors that no optimiser may step (BatchNorm's moving mean and
    variance, counters): they are averaged plainly, and those of an integer or bool dtype are
    carried over unchanged (docs/decisions/0003-non-trainable-tensors.md).

    `block` is the flat array that holds all tensors as `layout` says, where they lie in one and are all floating-point
    ones; both are None where they do not.
    """

    __slots__ = ("_tensors", "block", "layout", "non_trainable")

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
        """The tensors of a layout of a floating-point dtype, as views into `block` (flat, of its size and dtype)."""
        made = cls.__new__(cls)
        made.layout, made.block, made.non_trainable = layout, block, non_trainable
        return made

    def __getattr__(self, name: str) -> Any:
        """Views into a block are made when the first one is asked for: whoever works on the block needs none."""
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
        """All tensors, in a new object; this one is empty from then on. So that who is handed a large payload can let
        its memory go although those who handed it over still hold this object."""
        moved = Parameters({}, frozenset())
        moved.layout, moved.block, moved.non_trainable = self.layout, self.block, self.non_trainable
        moved._tensors = self._tensors
        self.layout, self.block, self._tensors = None, None, {}
        return moved

    def replace(self, tensors: Mapping[str, Array]) -> Parameters:
        """The same names and flags with other arrays."""
        return Parameters(tensors, self.non_trainable)

    def select(self, names: Iterable[str]) -> Parameters:
        """Only these tensors, in this order, with their flags. KeyError for a name that is not there."""
        tensors = {n: self._tensors[n] for n in names}
        return Parameters(tensors, self.non_trainable & tensors.keys())

    def averaged(self) -> tuple[str, ...]:
        """Names of the floating-point tensors: what an update carries and aggregation averages."""
        if self.layout is not None:
            return self.layout.names
        return tuple(n for n, a in self.items() if is_floating(a.dtype))

    def packed(self) -> Parameters:
        """A copy in one block where all tensors are floating-point ones of one dtype; else itself."""
        layout = layout_of(self)
        if layout is None or not is_floating(layout.dtype):
            return self
        block = np.empty(layout.size, layout.dtype)
        made = Parameters.in_block(layout, block, self.non_trainable)
        for name, array in self.items():
            np.copyto(made[name], array)
        return made


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether tensors of this dtype are averaged (float16/32/64 and ml_dtypes' bfloat16)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
