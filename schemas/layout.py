"""Tensors of one dtype that lie one after the other in one flat array, so that arithmetic on all of them is one call.

A layout says where each lies. Layouts that are one object have the same names in the same order, the same dtype and the
same shapes, which saves comparing them; equal ones are one object as long as not too many are in use.
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
"""(name, shape) of each tensor, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Made by `layout_of` and `layout`, which give the same object for the same layout."""

    dtype: np.dtype[Any]
    tensors: Shapes
    places: tuple[tuple[str, slice, tuple[int, ...]], ...]
    """(name, its part of the flat array, shape)."""
    names: tuple[str, ...]
    size: int
    """Elements of all tensors together."""

    def views(self, block: Array) -> dict[str, Array]:
        """The tensors in a flat array of `size` elements, of any dtype."""
        return {name: block[part].reshape(shape) for name, part, shape in self.places}


@lru_cache(maxsize=64)
def layout(dtype: np.dtype[Any], tensors: Shapes) -> Layout:
    """Of these names and shapes, without gaps."""
    places, end = [], 0
    for name, shape in tensors:
        start, end = end, end + math.prod(shape)
        places.append((name, slice(start, end), shape))
    return Layout(dtype, tensors, tuple(places), tuple(name for name, _ in tensors), end)


def layout_of(arrays: Mapping[str, Array]) -> Layout | None:
    """For arrays that share one dtype; None where they do not, or there are none."""
    dtypes = {a.dtype for a in arrays.values()}
    if len(dtypes) != 1:
        return None
    return layout(dtypes.pop(), tuple((name, a.shape) for name, a in arrays.items()))
