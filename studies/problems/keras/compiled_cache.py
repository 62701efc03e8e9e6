"""A cache of traced and compiled functions of a model, for the next cells of this process.

Tracing and compiling take longer than the training of a small cell.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
KEPT = 3
"""Entries of the cache. A study has one model, with its plain steps, its vectorised steps and its evaluation."""
_kept: dict[Hashable, Any] = {}


def kept(key: Hashable, make: Callable[[], T]) -> T:
    """Return what `make()` gave for this key, if the key is among the last few; else call it.

    Nothing is kept for a key that cannot be hashed. A user's callable object may be one.
    """
    try:
        hash(key)
    except TypeError:
        return make()
    found: T = _kept.pop(key) if key in _kept else make()
    _kept[key] = found
    while len(_kept) > KEPT:
        del _kept[next(iter(_kept))]
    return found
