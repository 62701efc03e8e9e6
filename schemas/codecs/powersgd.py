"""powersgd: each matrix M as P·Qᵀ of a low rank (Vogels et al. 2019, "PowerSGD", algorithm 1).

    P = M·Q, made orthonormal      Q = Mᵀ·P      M ≈ P·Qᵀ

One power iteration a training. Q stays on the device, and the next training starts from it. Tensors of more dimensions
are cut into a matrix after the first or before the last one, whichever is smaller then. Vectors, and matrices that
would not become smaller, travel as float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from fedmq.schemas.codecs.codec import Array, Encoded, Part, Places, Values


class _Matrix(NamedTuple):
    part: slice
    rows: int
    columns: int
    rank: int
    """0 for a tensor that travels whole."""


@lru_cache(maxsize=16)
def _matrices(places: Places, rank: int) -> tuple[_Matrix, ...]:
    return tuple(_matrix(part, shape, rank) for part, shape in places.slices)


def _matrix(part: slice, shape: tuple[int, ...], rank: int) -> _Matrix:
    size = part.stop - part.start
    if len(shape) < 2 or not size:
        return _Matrix(part, 1, size, 0)
    cuts = [(shape[0], size // shape[0]), (size // shape[-1], shape[-1])]
    rows, columns = min(cuts, key=sum)
    rank = min(rank, rows, columns)
    return _Matrix(part, rows, columns, rank if rank * (rows + columns) < size else 0)


@dataclass(frozen=True, slots=True)
class PowerSgd:
    """The codec of the module docstring. It is contractive, and needs error feedback to be of use."""

    rank: int = 2
    name: ClassVar[str] = "powersgd"

    def parts(self, places: Places) -> tuple[Part, ...]:
        matrices = _matrices(places, self.rank)
        p, q = sum(m.rows * m.rank for m in matrices), sum(m.columns * m.rank for m in matrices)
        whole = sum(m.part.stop - m.part.start for m in matrices if not m.rank)
        return Part("p", "float32", p, p), Part("q", "float32", q, q), Part("value", "float32", whole, whole)

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:
        matrices = _matrices(places, self.rank)
        rng = np.random.Generator(np.random.PCG64(seed))
        ps, qs, whole, left = [], [], [], {}
        for number, m in enumerate(matrices):
            if not m.rank:
                whole.append(values[m.part])
                continue
            matrix = values[m.part].reshape(m.rows, m.columns)
            start = warm.get(f"powersgd:{number}")
            if start is None or start.shape != (m.columns, m.rank) or not np.any(start):
                start = rng.standard_normal((m.columns, m.rank), dtype=np.float32)
            p = orthonormal(matrix @ start)
            q = np.asarray(matrix.T @ p, np.float32)
            left[f"powersgd:{number}"] = q
            ps.append(p.reshape(-1))
            qs.append(q.reshape(-1))
        return Encoded({"p": _joined(ps), "q": _joined(qs), "value": _joined(whole)}, left)

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:
        values = np.empty(places.size, np.float32)
        p_end = q_end = value_end = 0
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
            for m in _matrices(places, self.rank):
                if m.rank:
                    p_start, p_end = p_end, p_end + m.rows * m.rank
                    q_start, q_end = q_end, q_end + m.columns * m.rank
                    p = parts["p"][p_start:p_end].reshape(m.rows, m.rank)
                    q = parts["q"][q_start:q_end].reshape(m.columns, m.rank)
                    np.matmul(p, q.T, out=values[m.part].reshape(m.rows, m.columns))
                else:
                    start, value_end = value_end, value_end + m.part.stop - m.part.start
                    values[m.part] = parts["value"][start:value_end]
        return values


def orthonormal(matrix: Array) -> Values:
    """Return the columns made orthonormal, one after the other (modified Gram-Schmidt), in float64 meanwhile.

    A column that depends on those before it becomes 0.
    """
    made = matrix.astype(np.float64)
    for i in range(made.shape[1]):
        column = made[:, i]
        before = math.sqrt(float(column @ column))
        for j in range(i):
            column -= (made[:, j] @ column) * made[:, j]
        length = math.sqrt(float(column @ column))
        made[:, i] = column / length if length > 1e-7 * before else 0.0
    return made.astype(np.float32)


def _joined(arrays: list[Array]) -> Array:
    return np.concatenate(arrays).astype(np.float32, copy=False) if arrays else np.empty(0, np.float32)
