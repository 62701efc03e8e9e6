"""Selection: which free participant gets the next task.

Both pickers make the same choice for the same set of free participants, whatever the order in which they became free.
A coordinator that was restarted rebuilds the set from its ledger, and so it goes on as if nothing had happened.
Participants are known by their `seq`, the order of their first hello. No operation looks at all of them.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from sortedcontainers import SortedSet


class Picker(Protocol):
    """A set of free participants to choose from."""

    def __len__(self) -> int: ...

    def __contains__(self, seq: int) -> bool: ...

    def add(self, seq: int, used: int) -> None:
        """Add a participant that is free and was issued `used` tasks so far."""

    def discard(self, seq: int) -> None:
        """Remove a participant that is not free, if it is in the set."""

    def pick(self, rng: np.random.Generator) -> int:
        """Choose a participant and take it out. The set must not be empty."""


class Uniform:
    """Each free participant with the same probability: the k-th in order of `seq`, for a uniform k."""

    def __init__(self) -> None:
        self._free = SortedSet()

    def __len__(self) -> int:
        return len(self._free)

    def __contains__(self, seq: int) -> bool:
        return bool(seq in self._free)

    def add(self, seq: int, used: int) -> None:  # noqa: ARG002
        self._free.add(seq)

    def discard(self, seq: int) -> None:
        self._free.discard(seq)

    def pick(self, rng: np.random.Generator) -> int:
        k = int(rng.random() * len(self._free))  # uniform to 2⁻⁵³ of each; `integers` takes eight times as long
        return int(self._free.pop(k))


class LeastUsed:
    """The participant that was issued the fewest tasks; among equals, the one that came first."""

    def __init__(self) -> None:
        self._used: dict[int, int] = {}
        self._free = SortedSet()

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, seq: int) -> bool:
        return seq in self._used

    def add(self, seq: int, used: int) -> None:
        if self._used.get(seq) != used:
            self.discard(seq)
            self._used[seq] = used
            self._free.add((used, seq))

    def discard(self, seq: int) -> None:
        used = self._used.pop(seq, None)
        if used is not None:
            self._free.discard((used, seq))

    def pick(self, rng: np.random.Generator) -> int:  # noqa: ARG002
        _, seq = self._free.pop(0)
        del self._used[seq]
        return int(seq)


def make_picker(selection: Literal["uniform", "least_used"]) -> Picker:
    """Return the picker of `RunSettings.selection`."""
    return Uniform() if selection == "uniform" else LeastUsed()
