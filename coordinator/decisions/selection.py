"""Which free participant gets the next task.

Both pickers give the same choice for the same set of free participants, whatever the order in which they became
free: so a coordinator that was restarted, and rebuilt the set from its ledger, goes on as if it had not been.
Participants are known by their `seq`, the order of their first hello. All operations cost O(log n).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from typing import Literal, Protocol

import numpy as np

_SHARE = 1024


class Picker(Protocol):
    """A set of free participants to choose from."""

    def __len__(self) -> int: ...

    def __contains__(self, seq: int) -> bool: ...

    def add(self, seq: int, used: int) -> None:
        """The participant is free; `used` tasks were issued to it so far."""

    def discard(self, seq: int) -> None:
        """It is not free (any more)."""

    def pick(self, rng: np.random.Generator) -> int:
        """Choose one and take it out. The set must not be empty."""


class Uniform:
    """Each free participant with the same probability: the k-th free one for a uniform k.

    Each 1,024 consecutive numbers share a sorted list, and a Fenwick tree over the lists' lengths finds k's list.
    """

    def __init__(self) -> None:
        self._free = bytearray(_SHARE)
        self._lists: list[list[int]] = [[]]
        self._tree = [0, 0]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, seq: int) -> bool:
        return seq < len(self._free) and self._free[seq] == 1

    def add(self, seq: int, used: int) -> None:  # noqa: ARG002
        while seq >= len(self._free):
            self._grow()
        if not self._free[seq]:
            insort(self._lists[seq // _SHARE], seq)
            self._count_in(seq, 1)

    def discard(self, seq: int) -> None:
        if seq in self:
            own = self._lists[seq // _SHARE]
            del own[bisect_left(own, seq)]
            self._count_in(seq, -1)

    def pick(self, rng: np.random.Generator) -> int:
        k = int(rng.random() * self._count)  # uniform to 2⁻⁵³ of each; `integers` takes eight times as long
        position, step, tree = 0, len(self._lists), self._tree
        while step:
            after = position + step
            if after < len(tree) and tree[after] <= k:
                position = after
                k -= tree[after]
            step >>= 1
        seq = self._lists[position].pop(k)
        self._count_in(seq, -1)
        return seq

    def _count_in(self, seq: int, step: int) -> None:
        self._free[seq] += step
        self._count += step
        size, tree, i = len(self._lists), self._tree, seq // _SHARE + 1
        while i <= size:
            tree[i] += step
            i += i & -i

    def _grow(self) -> None:
        """Twice the lists, a power of two: the new root counts all that were there."""
        size = len(self._lists)
        self._free.extend(bytes(len(self._free)))
        self._lists.extend([] for _ in range(size))
        self._tree.extend([0] * (size - 1))
        self._tree.append(self._count)


class LeastUsed:
    """The one that was issued the fewest tasks; of equals the one that came first. A heap with lazy deletion."""

    def __init__(self) -> None:
        self._used: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []
        self._queued: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, seq: int) -> bool:
        return seq in self._used

    def add(self, seq: int, used: int) -> None:
        self._used[seq] = used
        if self._queued.get(seq) != used:
            self._queued[seq] = used
            heapq.heappush(self._heap, (used, seq))

    def discard(self, seq: int) -> None:
        self._used.pop(seq, None)

    def pick(self, rng: np.random.Generator) -> int:  # noqa: ARG002
        while True:
            used, seq = heapq.heappop(self._heap)
            if self._queued.get(seq) == used:
                del self._queued[seq]
            if self._used.get(seq) == used:
                del self._used[seq]
                return seq


def make_picker(selection: Literal["uniform", "least_used"]) -> Picker:
    """The picker of `RunSettings.selection`."""
    return Uniform() if selection == "uniform" else LeastUsed()
