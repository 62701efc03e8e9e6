"""Models that travel as bfloat16: the trainable float32 tensors of a task, rounded to the nearest, ties to even.

Participants train from the rounded tensors, as float32 again, and deltas are against them. Other tensors travel as they
are.
"""

from __future__ import annotations

import numpy as np

from fedmq.schemas.errors import AppError
from fedmq.schemas.parameters import Array, Parameters, is_floating
from fedmq.schemas.tensors import DTYPES

_BF16 = DTYPES["bfloat16"]


def check_dtypes(parameters: Parameters) -> None:
    """Raise AppError if a tensor is of a kind that cannot travel so: the receiver would take it for float32."""
    for name, array in parameters.items():
        if is_floating(array.dtype) and name not in parameters.non_trainable and array.dtype != np.float32:
            raise AppError(
                f'[downlink] codec = "bf16" is for models of float32, and the tensor {name!r} is {array.dtype}: set it '
                'to "none" or "hidden"'
            )


def narrow(parameters: Parameters) -> Parameters:
    """Return the tensors as they travel. Values beyond bfloat16 become infinite."""
    with np.errstate(over="ignore"):
        made = {n: a.astype(_BF16) if _travels_so(parameters, n, a, np.float32) else a for n, a in parameters.items()}
    return Parameters(made, parameters.non_trainable)


def wide(tensors: Parameters) -> Parameters:
    """Return the tensors that are trained from, of those that travelled."""
    made = {n: a.astype(np.float32) if _travels_so(tensors, n, a, _BF16) else a for n, a in tensors.items()}
    return Parameters(made, tensors.non_trainable).packed()


def _travels_so(tensors: Parameters, name: str, array: Array, dtype: object) -> bool:
    return array.dtype == dtype and name not in tensors.non_trainable
