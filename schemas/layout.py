"""Tensors of one dtype, one after the other in one flat array. Arithmetic on all of them is then one call.

A layout gives the place of each tensor. Equal layouts are one object, unless too many are in use. Two tensor sets with
the same layout object have the same names in the same order, the same dtype and the same shapes: no comparison is
needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Pairs (name, shape) of the tensors, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Places of tensors in a flat array. Create it with `layout_of` or `layout`, which return one object for equal
    layouts."""

    dtype: np.dtype[Any]
    tensors: Shapes
    places: tuple[tuple[str, slice, tuple[int, ...]], ...]
    """Triples (name, part of the flat array, shape)."""
    names: tuple[str, ...]
    size: int
    """Elements of all tensors together."""

    def views(self, block: Array) -> dict[str, Array]:
        """Return the tensors as views of a flat array of `size` elements, of any dtype."""
        return {name: block[part].reshape(shape) for name, part, shape in self.places}


@lru_cache(maxsize=64)
def layout(dtype: np.dtype[Any], tensors: Shapes) -> Layout:
    """Return the layout of these names and shapes, without gaps."""
    places, end = [], 0
    for name, shape in tensors:
        start, end = end, end + math.prod(shape)
        places.append((name, slice(start, end), shape))
    return Layout(dtype, tensors, tuple(places), tuple(name for name, _ in tensors), end)


def layout_of(arrays: Mapping[str, Array]) -> Layout | None:
    """Return the layout of arrays that share one dtype; None if they do not, or if there are none."""
    dtypes = {a.dtype for a in arrays.values()}
    if len(dtypes) != 1:
        return None
    return layout(dtypes.pop(), tuple((name, a.shape) for name, a in arrays.items()))
