"""What TensorFlow has traced and compiled of a model, kept for the next cells of this process: it takes longer than the
training of a small cell."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
KEPT = 3
"""A study has one model, of which there are the plain steps, the vectorised ones and the evaluation."""
_kept: dict[Hashable, Any] = {}


def kept(key: Hashable, make: Callable[[], T]) -> T:
    """What `make()` gave when it was last asked for by this key, if that is among the last few. A key that cannot be
    hashed, as a user's callable object may be, is known by nobody."""
    try:
        hash(key)
    except TypeError:
        return make()
    found: T = _kept.pop(key) if key in _kept else make()
    _kept[key] = found
    while len(_kept) > KEPT:
        del _kept[next(iter(_kept))]
    return found


def spec(*arrays: npt.NDArray[Any]) -> tuple[Hashable, ...]:
    """What a compiled function depends on: all but the number of examples."""
    return tuple((np.asarray(a).shape[1:], str(np.asarray(a).dtype)) for a in arrays)
