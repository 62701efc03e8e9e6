"""What buffered strategies remember of each participant: a few numbers, whose means tell how often it takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fedmq.coordinator.strategies.protocol import Arrays
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.parameters import Array

_UNIT = 2**32
_PREFIX = "participants/"
_ARRAYS = ("ids", "counts", "sums", "last")


@dataclass(slots=True)
class Tally:
    """The running mean of one quantity for each participant, and the mean of its reciprocals over participants.

    The latter's sum is of integers (units of 2^-32): free of drift, and the same after a restore.
    """

    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    """The order of its last update, from 1."""
    _reciprocals: int = 0

    def mean_with(self, participant_id: str, value: float) -> float:
        """Its mean once `value` is in it; nothing changes."""
        return (self.sums.get(participant_id, 0.0) + value) / (self.counts.get(participant_id, 0) + 1)

    def add(self, participant_id: str, order: int, value: float | None) -> None:
        """An update of this order came, and `value` with it; None where it tells none yet."""
        self._reciprocals -= self._reciprocal(participant_id)
        self.sums[participant_id] = self.sums.get(participant_id, 0.0) + (value or 0.0)
        self.counts[participant_id] = self.counts.get(participant_id, 0) + (value is not None)
        self.last[participant_id] = order
        self._reciprocals += self._reciprocal(participant_id)

    def known_with(self, participant_id: str) -> int:
        """Participants heard from, once this one is."""
        return len(self.counts) + (participant_id not in self.counts)

    def mean_reciprocal_with(self, participant_id: str, value: float) -> float:
        """(1/n)·Σ 1/mean over the n participants heard from, once `value` is in; for values above 0."""
        others = self._reciprocals - self._reciprocal(participant_id)
        mine = _exact(1.0 / self.mean_with(participant_id, value))
        return (others + mine) / (self.known_with(participant_id) * _UNIT)

    def _reciprocal(self, participant_id: str) -> int:
        total = self.sums.get(participant_id, 0.0)
        return _exact(self.counts[participant_id] / total) if total > 0 else 0

    def arrays(self) -> dict[str, Array]:
        """For the checkpoint, in the order of their first updates."""
        ids = "\n".join(self.counts).encode()
        return {
            _PREFIX + "ids": np.frombuffer(ids, np.uint8),
            _PREFIX + "counts": np.array([*self.counts.values()], np.int64),
            _PREFIX + "sums": np.array([*self.sums.values()], np.float64),
            _PREFIX + "last": np.array([*self.last.values()], np.int64),
        }

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """From what `arrays()` gave."""
        ids, counts, sums, last = (arrays[_PREFIX + name].tolist() for name in _ARRAYS)
        names = bytes(ids).decode().split("\n") if ids else []
        tally = cls()
        tally.counts = dict(zip(names, counts, strict=True))
        tally.sums = dict(zip(names, sums, strict=True))
        tally.last = dict(zip(names, last, strict=True))
        tally._reciprocals = sum(tally._reciprocal(name) for name in names)
        return tally


@dataclass
class TallyState(BufferState):
    """A buffer, and a tally of those who filled it."""

    tally: Tally = field(default_factory=Tally)
    order: int = 0
    """Updates accumulated in the run."""

    def arrays(self) -> dict[str, Array]:
        return super().arrays() | self.tally.arrays()

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"order": self.order}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        if not all(_PREFIX + name in arrays for name in _ARRAYS):
            raise CheckpointError(
                "the checkpoint's strategy state tells nothing of participants; "
                "resume with the strategy and model that wrote it"
            )
        super().load({n: a for n, a in arrays.items() if not n.startswith(_PREFIX)}, scalars)
        self.tally = Tally.load(arrays)
        self.order = int(scalars["order"])
        return self


def _exact(value: float) -> int:
    return round(value * _UNIT)
