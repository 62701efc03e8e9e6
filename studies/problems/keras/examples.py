"""All participants' examples as one set of arrays, or of nests of arrays, in which each has its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.keras.conversions import PARTS, Data, as_data, as_trained, leaves
from fedmq.participant.training.keras.data import LazyData, length
from fedmq.schemas.errors import AppError, shown


def examples(given: Any, gave: str) -> Data:
    """Return the data that a user's function gave as a deployment's trainer takes them.

    Raises AppError, with a message that begins with `gave`, if nothing can be trained on them.
    """
    if not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
        raise AppError(f"{gave} {shown(given)}, expected (x, y) or (x, y, sample_weight)")
    data = as_data(given, f"what {gave}")
    if not length(data):
        raise AppError(f"{gave} no examples, expected at least 1")
    bad = LazyData(data, gave).not_finite()
    if bad:
        raise AppError(f"{gave} {bad.split()[0]} with values that are not finite numbers: {bad}")
    return data


def taken(data: Data, rows: Any) -> Data:
    """Return these rows of each array."""
    part: Data = keras.tree.map_structure(lambda array: array[rows], data)
    return part


def count(data: Data) -> int:
    """Return the number of examples."""
    return length(data)


def joined(parts: Sequence[Data]) -> Data:
    """Return the parts one after another. Raises ValueError if they are of different shapes."""
    shapes = {tuple((place, array.shape[1:]) for place, array in _leaves(part)): _shown(part) for part in parts}
    if len(shapes) > 1:
        raise ValueError(" and ".join(sorted(shapes.values())))
    data: Data = keras.tree.map_structure(lambda *arrays: as_trained(np.concatenate(arrays)), *parts)
    return data


def data_bytes(data: Data) -> int:
    """Return the size of all arrays."""
    return sum(array.nbytes for _, array in _leaves(data))


def spec(data: Data) -> tuple[Hashable, ...]:
    """Return what a compiled function depends on: places, shapes and types, without the number of examples."""
    return tuple((place, array.shape[1:], _type(array)) for place, array in _leaves(data))


def digest_of(data: Data) -> str:
    """Return a digest of all that is in the arrays."""
    found = hashlib.sha256()
    for place, array in _leaves(data):
        found.update(repr((place, array.shape, str(array.dtype))).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _leaves(data: Data) -> list[tuple[str, Any]]:
    return [leaf for what, part in zip(PARTS, data, strict=False) for leaf in leaves(part, what)]


def _type(array: Any) -> str:
    return "text" if array.dtype.kind in "US" else str(array.dtype)


def _shown(data: Data) -> str:
    return ", ".join(f"{place} {list(array.shape[1:])}" for place, array in _leaves(data))
