"""Outputs of classifiers as logits, and the mean of several models' logits (participant.training.ensembles).

A model whose outputs are probabilities p counts as one with the logits log p: both give the same targets, because a
number that is added to a row of logits changes no softmax. A probability below 1e-7 counts as that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.schemas.errors import AppError

Array = npt.NDArray[Any]

LEAST_PROBABILITY = 1e-7
"""Smallest probability whose logarithm counts as a logit."""
_PROBABLY = 1e-3


def mean_logits(outputs: Iterable[tuple[Array, float]]) -> Array:
    """Return the weighted mean of several models' outputs, [examples, classes], as logits in float64.

    The weights are divided by their sum. Raises AppError for none.
    """
    total: Array | None = None
    weights = 0.0
    for rows, weight in outputs:
        part = weight * as_logits(rows)
        total = part if total is None else total + part
        weights += weight
    if total is None or not weights > 0:
        raise AppError("the ensemble has no model with a weight above 0, expected one or more")
    return np.asarray(total / weights)


def as_logits(rows: Array) -> Array:
    """Return a model's outputs as logits, in float64."""
    rows = rows.astype(np.float64)
    return np.log(np.maximum(rows, LEAST_PROBABILITY)) if are_probabilities(rows) else rows


def are_probabilities(rows: Array) -> bool:
    """Return True for rows of numbers that are 0 or more and sum to 1."""
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= _PROBABLY).all())


def softmax(logits: Array) -> Array:
    """Return the softmax of each row."""
    rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))
