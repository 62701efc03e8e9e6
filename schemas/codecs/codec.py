"""The seam for codecs: a frozen value that turns a flat array into named parts, and back.

A codec sees all trainable floating-point tensors of an update as one flat array: float32, or float64 if one of them is.
`Places` tells where each tensor lies in it. The other tensors (BatchNorm's moving mean) travel as they are.
`fedmq.schemas.codecs.wire` does what all codecs have in common: names, dtypes, checks, zstd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedmq.schemas.parameters import is_floating
from fedmq.schemas.tensors import DTYPES, ModelSpec, TensorSpec

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Places:
    """The tensors of an update that a codec codes. Create it with `places_of`."""

    coded: ModelSpec
    """Tensors in the flat array, in order: the trainable floating-point ones."""
    plain: ModelSpec
    """Tensors that travel as they are."""

    @cached_property
    def slices(self) -> tuple[tuple[slice, tuple[int, ...]], ...]:
        """Pairs (part of the flat array, shape) of the coded tensors."""
        found, end = [], 0
        for tensor in self.coded:
            start, end = end, end + tensor.num_bytes // DTYPES[tensor.dtype].itemsize
            found.append((slice(start, end), tensor.shape))
        return tuple(found)

    @cached_property
    def size(self) -> int:
        """Elements of the flat array."""
        return self.slices[-1][0].stop if self.slices else 0


@lru_cache(maxsize=16)
def places_of(spec: ModelSpec) -> Places:
    """Return the places of an update's tensors. Their trainable flags are those of the model that the task carried."""
    return Places(tuple(t for t in spec if _is_coded(t)), tuple(t for t in spec if not _is_coded(t)))


def _is_coded(tensor: TensorSpec) -> bool:
    return tensor.trainable and is_floating(DTYPES[tensor.dtype])


class Part(NamedTuple):
    """One part of what a codec makes, as the receiver expects it: a flat array."""

    name: str
    dtype: str
    """A dtype that travels (`fedmq.schemas.tensors.DTYPES`)."""
    least: int
    """Fewest elements."""
    most: int
    """Most elements. At most the last part of a codec may have fewer than this."""
    usual: int | None = None
    """Elements that it has on average, for estimates of sizes; None stands for the most."""


class Encoded(NamedTuple):
    """The result of an encoding."""

    parts: Mapping[str, Array]
    """Part name -> flat array, in the order of `Codec.parts`."""
    warm: Mapping[str, Array] = {}
    """Arrays that the next encoding of this participant starts from, once this one is accepted (PowerSGD's Q)."""


class Codec(Protocol):
    """A codec: a frozen value with these functions. Sizes are in elements."""

    @property
    def name(self) -> str:
        """Name in hellos, tasks, updates and the ledger: an Identifier."""

    def parts(self, places: Places) -> tuple[Part, ...]:
        """Return the parts that an encoding of these tensors has. The receiver refuses everything else."""

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:
        """Encode finite values, [size], float32 or float64.

        `seed` is the task's; `warm` is what the last accepted encoding left.
        """

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:
        """Return the values, [size]. Raise MalformedMessage if the parts say something impossible.

        The parts have the names, dtypes and lengths that `parts` asks for. Nothing else about them is known: they are
        somebody's claim. The result is checked for finiteness and magnitude by the caller.
        """
