"""A sum of one number for each participant, in which no number counts for more than a multiple of the others' mean.

The numbers follow from what participants say about themselves. With a cap of 10, no participant counts for more than
ten times the mean of those below it. A larger number, and all that are larger still, are cut down to that. The lower
half always counts in full, so liars that are fewer than a half do not lift each other's cap.

Sums are of integers: exact in any order of participants, free of drift, and the same after a restore.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Scale(NamedTuple):
    """The sum of `known` numbers, and the largest number that counts; None if no number is above it."""

    known: int
    total: int
    limit: int | None = None

    def cut(self, value: int) -> int:
        """Return as much of a number as counts."""
        return value if self.limit is None else min(value, self.limit)


class CappedSum:
    """Positive integers by participant. A change costs O(log n) comparisons, and so does the sum unless it is cut."""

    def __init__(self, most: float = math.inf) -> None:
        """`most` is the cap, as a multiple of the mean of the smaller numbers."""
        self._most = most
        self._values: dict[str, int] = {}
        self._ascending: list[int] = []
        """The same numbers in order; empty without a cap."""
        self._total = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, participant_id: str) -> int | None:
        """Return a participant's number, uncut; None if it has none."""
        return self._values.get(participant_id)

    def set(self, participant_id: str, value: int) -> None:
        """Replace a participant's number; 0 takes the participant out."""
        before = self._values.pop(participant_id, 0)
        if value:
            self._values[participant_id] = value
        self._total += value - before
        if math.isfinite(self._most) and value != before:
            if before:
                del self._ascending[bisect_left(self._ascending, before)]
            if value:
                insort(self._ascending, value)

    def scale(self) -> Scale:
        """Return the sum with the numbers above the cap cut down."""
        ascending, known = self._ascending, len(self._values)
        half = (len(ascending) + 1) // 2
        quarter = half // 2
        if not half or ascending[-1] * half <= self._most * ascending[quarter] * (half - quarter):
            return Scale(known, self._total)  # even the largest is below the cap: there is nothing to add up
        rest, below = sum(ascending[:half]), half
        while below < known and ascending[below] * below <= self._most * rest:
            rest, below = rest + ascending[below], below + 1
        if below == known:
            return Scale(known, self._total)
        limit = max(1, int(self._most * rest / below))
        return Scale(known, rest + (known - below) * limit, limit)


def limit_of(values: Sequence[float], most: float) -> float:
    """Return the largest of these numbers that counts, by the same rule; infinity if none is above the cap."""
    ascending = sorted(values)
    below = (len(ascending) + 1) // 2
    rest = math.fsum(ascending[:below])
    while below < len(ascending) and ascending[below] * below <= most * rest:
        rest, below = rest + ascending[below], below + 1
    return math.inf if below == len(ascending) else most * rest / below
