"""Unsigned LEB128 (DWARF 5, section 7.6): seven bits a byte, lowest first; the top bit says that more follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.schemas.errors import MalformedMessage

MOST_BYTES = 5
"""Bytes of one number: a number is below 2^35."""
Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def pack(numbers: Numbers) -> Bytes:
    """Return the bytes of numbers in [0, 2^35)."""
    lengths = np.ones(numbers.size, np.int64)
    for more in range(1, MOST_BYTES):
        lengths += numbers >= 1 << 7 * more
    ends = np.cumsum(lengths)
    starts = ends - lengths
    packed = np.empty(int(ends[-1]) if numbers.size else 0, np.uint8)
    for place in range(MOST_BYTES):
        there = lengths > place
        if place and not there.any():
            break
        bits = (numbers[there] >> 7 * place) & 0x7F
        packed[starts[there] + place] = bits | np.where(lengths[there] > place + 1, 0x80, 0)
    return packed


def unpack(packed: npt.NDArray[Any], count: int) -> Numbers:
    """Return exactly `count` numbers. Raises MalformedMessage for more, fewer, longer ones, or superfluous zeros."""
    ends = np.flatnonzero(packed < 0x80)
    if ends.size != count or (packed.size and packed[-1] >= 0x80):
        raise MalformedMessage(f"{packed.size} bytes of LEB128 hold {ends.size} whole numbers, expected {count}")
    if packed.size == count:  # a byte each
        return packed.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    lengths = ends - starts + 1
    if count and lengths.max() > MOST_BYTES:
        raise MalformedMessage(f"a number of {lengths.max()} bytes of LEB128, expected at most {MOST_BYTES}")
    if ((packed[ends] == 0) & (lengths > 1)).any():
        raise MalformedMessage("a number in LEB128 ends in a superfluous zero")
    numbers = np.zeros(count, np.int64)
    for place in range(int(lengths.max()) if count else 0):
        there = lengths > place
        numbers[there] |= (packed[starts[there] + place].astype(np.int64) & 0x7F) << 7 * place
    return numbers
