"""Tasks that end at one time, to the last bit of it: the seed draws which comes first.

Without this they end in the order in which they went out. With equal durations that is always the same order, and a
slow participant, whose task went out earlier, always comes before a fast one. The order decides staleness, and whose
update still goes into a version.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable

Planned = tuple[float, int, Callable[[int], None], int]
"""(virtual time in s, number in the order of planning, what happens, number of the task)."""


class Ties:
    """Draws the order of events of one kind that are planned for one time. Other events keep their places."""

    def __init__(self, seed: int, kind: Callable[[int], None]) -> None:
        self._seed, self._kind = seed, kind
        self._at, self._last = -1.0, 0
        """Time of the newest tie, and the last place in it."""

    def pop(self, heap: list[Planned]) -> Planned:
        """Return the next event, and take it from the heap."""
        first = heapq.heappop(heap)
        if first[2] != self._kind or (first[0] == self._at and first[1] <= self._last):
            return first
        tied = [first]
        while heap and heap[0][0] == first[0] and heap[0][2] == self._kind:
            tied.append(heapq.heappop(heap))
        if len(tied) == 1:
            return first
        self._at, self._last = first[0], tied[-1][1]
        drawn = sorted(tied, key=lambda event: self._rank(event[3]))
        found, *others = (
            (at, place, kind, about) for (_, place, _, _), (at, _, kind, about) in zip(tied, drawn, strict=True)
        )
        for event in others:
            heapq.heappush(heap, event)
        return found

    def _rank(self, task: int) -> bytes:
        """Return the place of a task in all ties: its number by the seed, so that strategies meet the same one."""
        return hashlib.blake2b(f"tie-{self._seed}-{task}".encode(), digest_size=8).digest()
