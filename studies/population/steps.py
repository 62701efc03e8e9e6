"""Distribution functions of steps, and a search among the floats: what laws of given values and mixtures need."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Steps:
    """A distribution function of steps: rising values and their shares."""

    values: tuple[float, ...]
    shares: tuple[float, ...]
    by_value: tuple[float, ...]
    """Running sums of the shares."""
    by_length: tuple[float, ...]
    """Running sums of share·value."""

    @classmethod
    def of(cls, values: Sequence[float], shares: Sequence[float]) -> Steps:
        pairs = sorted(zip(values, shares, strict=True))
        lengths = accumulate(value * share for value, share in pairs)
        rising, own = zip(*pairs, strict=True)
        return cls(rising, own, tuple(accumulate(own)), tuple(lengths))

    @property
    def mean(self) -> float:
        return math.fsum(v * p for v, p in zip(self.values, self.shares, strict=True)) / math.fsum(self.shares)

    def quantile(self, u: float) -> float:
        return self.values[step_of(self.by_value, u)]

    def below(self, x: float) -> float:
        count = bisect_right(self.values, x)
        return self.by_value[count - 1] / self.by_value[-1] if count else 0.0

    def left(self, u: float, v: float) -> float:
        return v * self.values[step_of(self.by_length, u)]


def step_of(sums: Sequence[float], u: float) -> int:
    """Return the index of the step that u falls on. `sums` are the running sums of what the steps count."""
    return min(bisect_right(sums, u * sums[-1]), len(sums) - 1)


def smallest(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Return the smallest float from `low` to `high` for which it holds. 0 ≤ low ≤ high; it holds from one on.

    `high` is not asked. The search halves the number of floats between the two, so it takes at most 64 steps.
    """
    below, above = _place(low), _place(high)
    if below == above or holds(low):
        return low
    while above - below > 1:
        middle = (below + above) // 2
        if holds(_float(middle)):
            above = middle
        else:
            below = middle
    return _float(above)


def _place(x: float) -> int:
    """Return the number of the float x ≥ 0 among all floats from 0 up: their order is that of their bits."""
    return int(struct.unpack("<q", struct.pack("<d", x + 0.0))[0])


def _float(place: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", place))[0])
