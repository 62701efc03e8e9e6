"""Elementwise kernels of aggregation: in the accumulator's dtype, in cache-sized chunks, never a model-sized temporary.

Each kernel does the same operations on each element in the same order. Neither the chunk size nor the cut of the model
into tensors changes a bit of the result. No state outlives a call: kernels may run in several threads at once, on
different accumulators.

Inputs may be read-only and unaligned (views into a message body). An input that is not C-contiguous is copied once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FillChunk = Callable[[slice, Array], None]
"""fill(part, out) writes chunk `part` of a flat tensor into `out`, an array of the accumulator's dtype."""

CHUNK_ELEMENTS = 16 * 1024
"""64 KiB of float32: one chunk's accumulator, input and scratch stay in a core's second-level cache."""
_ALIGNMENT = 64


def accumulator_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that tensors of `dtype` are summed in: float64 for float64, else float32."""
    return np.dtype(np.float64) if dtype.itemsize >= 8 else np.dtype(np.float32)


def allocate(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
    """Return uninitialised C-contiguous arrays of these shapes and dtypes: native byte order, in one block of memory.

    One large block gets huge pages from the operating system. Separate tensors of a few MB get small pages, which cost
    five times as much as the arithmetic on them. The block is freed when the last of its arrays is.
    """
    offsets, end = [], 0
    for shape, dtype in tensors.values():
        offsets.append(end)
        end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    block = flat(end, np.dtype(np.uint8))
    return {
        name: block[start : start + math.prod(shape) * dtype.itemsize].view(dtype.newbyteorder("=")).reshape(shape)
        for start, (name, (shape, dtype)) in zip(offsets, tensors.items(), strict=True)
    }


def flat(size: int, dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised one-dimensional array in native byte order, aligned as `allocate` aligns each tensor."""
    num_bytes = size * dtype.itemsize
    block = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + num_bytes].view(dtype.newbyteorder("="))


def allocate_like(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return uninitialised arrays of these shapes and dtypes, for the next version of a model."""
    return allocate({name: (x.shape, x.dtype) for name, x in tensors.items()})


def accumulators(tensors: Mapping[str, Array], value: float = 0.0) -> dict[str, Array]:
    """Return arrays of these shapes in their accumulator dtypes, filled with `value`."""
    made = allocate({name: (x.shape, accumulator_dtype(x.dtype)) for name, x in tensors.items()})
    for acc in made.values():
        acc.fill(value)
    return made


def scale_add(acc: Array, weight: float, x: Array) -> None:
    """Add weight·x to `acc`, a C-contiguous float32 or float64 array; `x` has its shape and any floating dtype."""
    if x.ndim == acc.ndim == 1 and x.size == acc.size <= CHUNK_ELEMENTS and x.dtype == acc.dtype and acc.itemsize >= 4:
        np.add(acc, x * acc.dtype.type(weight), acc)  # a small model in one block: nothing to flatten or convert
        return
    total, values = _flat_accumulator(acc), _flat(x, acc.shape)
    dtype, factor = acc.dtype, acc.dtype.type(weight)
    scratch = _scratch(total.size, dtype)
    if total.size <= CHUNK_ELEMENTS:  # most tensors of most models: slicing would cost as much as the arithmetic
        np.multiply(_in(dtype, values, scratch), factor, scratch)
        np.add(total, scratch, total)
        return
    for start in range(0, total.size, CHUNK_ELEMENTS):
        target = total[start : start + CHUNK_ELEMENTS]
        product = scratch[: target.size]
        np.multiply(_in(dtype, values[start : start + CHUNK_ELEMENTS], product), factor, product)
        np.add(target, product, target)


def lerp(x: Array, y: Array, weight: float, out: Array) -> None:
    """Write (1 - weight)·x + weight·y into `out`: x for a weight of 0, y for 1. `out` has x's shape and dtype."""
    dtype = accumulator_dtype(out.dtype)
    keep, take = dtype.type(1.0 - weight), dtype.type(weight)
    values, others = _flat(x, out.shape), _flat(y, out.shape)
    second = _scratch(out.size, dtype)

    def mix(part: slice, result: Array) -> None:
        share = second[: result.size]
        np.multiply(_in(dtype, values[part], result), keep, out=result)
        np.multiply(_in(dtype, others[part], share), take, out=share)
        np.add(result, share, out=result)

    _write(out, mix)


def step(x: Array, rate: float, acc: Array, out: Array) -> None:
    """Write x + rate·acc into `out`, computed in the accumulator's dtype. `out` has x's shape and dtype."""
    total, factor = _flat(acc, out.shape), acc.dtype.type(rate)

    def scaled(part: slice, result: Array) -> None:
        np.multiply(total[part], factor, out=result)

    step_by(x, scaled, out)


def step_by(x: Array, fill: FillChunk, out: Array) -> None:
    """Write x + d into `out`. `fill(part, chunk)` writes the flat chunk `part` of d; each part comes once, in order."""
    dtype = accumulator_dtype(out.dtype)
    values = _flat(x, out.shape)
    second = _scratch(out.size, dtype)

    def add(part: slice, result: Array) -> None:
        fill(part, result)
        np.add(_in(dtype, values[part], second[: result.size]), result, out=result)

    _write(out, add)


def quotient(acc: Array, divisor: float, out: Array) -> None:
    """Write acc / divisor into `out`, in out's dtype."""
    total, by = _flat(acc, out.shape), acc.dtype.type(divisor)

    def divide(part: slice, result: Array) -> None:
        np.divide(total[part], by, out=result)

    _write(out, divide)


def check_range(values: Array, dtype: np.dtype[Any], what: str) -> None:
    """Raise OverflowError if a value is too large for `dtype`. It is a check for float16, the one that is narrow."""
    most = float(np.finfo(np.float16).max)
    if dtype == np.float16 and values.size and not float(np.max(np.abs(values))) <= most:
        raise OverflowError(f"{what} would leave the range of float16, ±{most:g}")


def cosine(deltas: Mapping[str, Array], new: Mapping[str, Array], old: Mapping[str, Array]) -> float:
    """Return the cosine between `deltas` and new - old, over the tensors of `new`; 1 if either of the two is 0."""
    dots, lengths, moves = [], [], []
    for name, current in new.items():
        delta, x, before = (_flat(a, current.shape) for a in (deltas[name], current, old[name]))
        for part in _chunks(x.size):
            d = delta[part].astype(np.float64)
            moved = x[part].astype(np.float64)
            moved -= before[part].astype(np.float64)
            dots.append(float(np.sum(d * moved)))
            lengths.append(float(np.sum(np.square(d, out=d))))
            moves.append(float(np.sum(np.square(moved, out=moved))))
    length = math.sqrt(math.fsum(lengths)) * math.sqrt(math.fsum(moves))
    return max(-1.0, min(1.0, math.fsum(dots) / length)) if length > 0 else 1.0


def _write(out: Array, fill: FillChunk) -> None:
    """Compute each chunk in the accumulator's dtype, and write it into `out` once."""
    target = out.reshape(-1)
    dtype = accumulator_dtype(out.dtype)
    if target.dtype == dtype:
        for part in _chunks(target.size):
            fill(part, target[part])
        return
    scratch = _scratch(target.size, dtype)
    for part in _chunks(target.size):
        piece = target[part]
        computed = scratch[: piece.size]
        fill(part, computed)
        np.copyto(piece, computed, casting="unsafe")


def _scratch(size: int, dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised chunk for the intermediate results of one call, no longer than the tensor."""
    return np.empty(min(size, CHUNK_ELEMENTS), dtype)


def _chunks(size: int) -> Iterable[slice]:
    if size <= CHUNK_ELEMENTS:
        return (slice(0, size),)  # most tensors: a generator would cost as much as the arithmetic
    return (slice(start, min(start + CHUNK_ELEMENTS, size)) for start in range(0, size, CHUNK_ELEMENTS))


def _in(dtype: np.dtype[Any], chunk: Array, scratch: Array) -> Array:
    """Return the chunk itself if it has this dtype, else its copy in the scratch."""
    if chunk.dtype == dtype:
        return chunk
    np.copyto(scratch, chunk, casting="unsafe")
    return scratch


def _flat(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape != shape:
        raise ValueError(f"got a tensor of shape {x.shape}, expected {shape}: updates must have the model's shapes")
    return x.reshape(-1)


def _flat_accumulator(acc: Array) -> Array:
    if not acc.flags.c_contiguous or acc.dtype.kind != "f" or acc.dtype.itemsize < 4:
        raise ValueError(
            f"got an accumulator of dtype {acc.dtype} and strides {acc.strides}, expected a C-contiguous float32 or "
            "float64 array: make it with accumulators()"
        )
    return acc.reshape(-1)
