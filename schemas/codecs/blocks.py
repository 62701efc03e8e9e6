"""int8 and int4: blocks of consecutive elements of one tensor, each with a scale of its own.

    scale = max|x| / (2^(b-1) - 1) of the block, as float32; 0 for a block of zeros
    q     = floor(x/scale + u) with u uniform in [0, 1) from PCG64(task seed)     stochastic: the mean is x
    q     = x/scale, rounded to the nearest, ties to even                          nearest: contractive
    x     ≈ q·scale

Stochastic rounding is that of QSGD (Alistarh et al. 2017) with blocks in place of whole vectors. int8 has blocks of
256 elements, 1.016 bytes a parameter; int4 has blocks of 64, two elements in a byte, 0.563 bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedmq.schemas.codecs.codec import Array, Encoded, Part, Places, Values
from fedmq.schemas.errors import MalformedMessage

Rounding = Literal["stochastic", "nearest"]
Quantised = npt.NDArray[np.int8]


def blocks_of(places: Places, block: int) -> int:
    """Return the number of blocks of these tensors: no block has elements of two tensors."""
    return sum(-(-(part.stop - part.start) // block) for part, _ in places.slices)


def quantise(
    values: Array, places: Places, *, levels: int, block: int, rounding: Rounding, seed: int
) -> tuple[Quantised, Values]:
    """Return q, [size], and the blocks' scales. |q| is at most `levels`."""
    q, scales = np.empty(values.size, np.int8), np.zeros(blocks_of(places, block), np.float32)
    rng = np.random.Generator(np.random.PCG64(seed))
    for x, out, scale in _in_blocks(values, q, scales, places, block):
        np.divide(np.max(np.abs(x), axis=1), np.float32(levels), out=scale)
        scaled = x / np.where(scale == 0, np.float32(1), scale)[:, None]
        if rounding == "nearest":
            np.rint(scaled, out=scaled)
        else:
            scaled += rng.random(x.shape, dtype=np.float32)
            np.floor(scaled, out=scaled)
        np.clip(scaled, -levels, levels, out=scaled)  # the division may round up, and a tiny scale to nothing
        np.copyto(out, scaled, casting="unsafe")
    return q, scales


def dequantise(q: Quantised, scales: Values, places: Places, block: int) -> Values:
    """Return q·scale, [size]. Raises MalformedMessage for a scale that is negative or not finite."""
    if scales.size and not (np.isfinite(scales).all() and scales.min() >= 0):
        raise MalformedMessage("a block's scale is negative or not finite, expected max|x| over the levels")
    values = np.empty(q.size, np.float32)
    with np.errstate(over="ignore"):  # the caller looks for what is not finite
        for out, x, scale in _in_blocks(values, q, scales, places, block):
            np.multiply(x, scale[:, None], out=out)
    return values


def _in_blocks(
    first: Array, second: Array, scales: Array, places: Places, block: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield views of two flat arrays in the same blocks, [blocks, elements], beside the blocks' scales, [blocks]."""
    number = 0
    for part, _ in places.slices:
        full = part.start + (part.stop - part.start) // block * block
        for start, stop, width in ((part.start, full, block), (full, part.stop, part.stop - full)):
            if stop > start:
                rows = (stop - start) // width
                inside = slice(start, stop)
                yield (
                    first[inside].reshape(rows, width),
                    second[inside].reshape(rows, width),
                    scales[number : number + rows],
                )
                number += rows


@dataclass(frozen=True, slots=True)
class Int8:
    """8 bits an element, in blocks of 256."""

    rounding: Rounding = "stochastic"
    name = "int8"
    levels: ClassVar[int] = 127
    block: ClassVar[int] = 256

    def parts(self, places: Places) -> tuple[Part, ...]:
        blocks = blocks_of(places, self.block)
        return Part("scale", "float32", blocks, blocks), Part("q", "int8", places.size, places.size)

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        q, scales = quantise(values, places, levels=self.levels, block=self.block, rounding=self.rounding, seed=seed)
        return Encoded({"scale": scales, "q": q})

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:
        return dequantise(parts["q"], parts["scale"], places, self.block)


@dataclass(frozen=True, slots=True)
class Int4:
    """4 bits an element, in blocks of 64. A byte holds q + 8 of two elements, the first one in its lower half."""

    rounding: Rounding = "stochastic"
    name = "int4"
    levels: ClassVar[int] = 7
    block: ClassVar[int] = 64

    def parts(self, places: Places) -> tuple[Part, ...]:
        blocks, pairs = blocks_of(places, self.block), -(-places.size // 2)
        return Part("scale", "float32", blocks, blocks), Part("q", "uint8", pairs, pairs)

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        q, scales = quantise(values, places, levels=self.levels, block=self.block, rounding=self.rounding, seed=seed)
        halves = np.full(-(-q.size // 2) * 2, 8, np.uint8)
        np.add(q, 8, out=halves[: q.size], casting="unsafe")
        return Encoded({"scale": scales, "q": halves[::2] | (halves[1::2] << 4)})

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:
        q = _PAIRS[parts["q"]].view(np.int8)[: places.size]
        return dequantise(q, parts["scale"], places, self.block)


_PAIRS: npt.NDArray[np.int16] = (
    np.array([[(byte & 15) - 8, (byte >> 4) - 8] for byte in range(256)], np.int8).view(np.int16).reshape(-1)
)
"""byte -> its two elements, side by side in memory. One 16-bit number is looked up six times as fast as two bytes."""
