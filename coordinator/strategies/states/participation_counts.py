"""Participation counts: a few numbers for each participant, whose means tell how often it takes part."""

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
class ParticipationCounts:
    """The running mean of one quantity for each participant, and the mean of its reciprocal over participants.

    The reciprocals are summed as integers (units of 2^-32): free of drift, and the same after a restore.
    """

    counts: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    """participant -> number of its last update among all updates of the run, from 1."""
    _reciprocals: int = 0

    def mean_with(self, participant_id: str, value: float) -> float:
        """Return the participant's mean with `value` in it; nothing changes."""
        return (self.sums.get(participant_id, 0.0) + value) / (self.counts.get(participant_id, 0) + 1)

    def record(self, participant_id: str, order: int, value: float | None) -> None:
        """Count an update with this order and this value; None if it has no value yet."""
        self._reciprocals -= self._reciprocal(participant_id)
        self.sums[participant_id] = self.sums.get(participant_id, 0.0) + (value or 0.0)
        self.counts[participant_id] = self.counts.get(participant_id, 0) + (value is not None)
        self.last[participant_id] = order
        self._reciprocals += self._reciprocal(participant_id)

    def known_with(self, participant_id: str) -> int:
        """Return the number of participants that sent an update, this one included."""
        return len(self.counts) + (participant_id not in self.counts)

    def mean_reciprocal_with(self, participant_id: str, value: float) -> float:
        """Return (1/n)·Σ 1/mean over the n participants that sent an update, with `value` in it; for values above 0."""
        others = self._reciprocals - self._reciprocal(participant_id)
        mine = _exact(1.0 / self.mean_with(participant_id, value))
        return (others + mine) / (self.known_with(participant_id) * _UNIT)

    def _reciprocal(self, participant_id: str) -> int:
        total = self.sums.get(participant_id, 0.0)
        return _exact(self.counts[participant_id] / total) if total > 0 else 0

    def arrays(self) -> dict[str, Array]:
        """Return the arrays for the checkpoint, in the order of the participants' first updates."""
        ids = "\n".join(self.counts).encode()
        return {
            _PREFIX + "ids": np.frombuffer(ids, np.uint8),
            _PREFIX + "counts": np.array([*self.counts.values()], np.int64),
            _PREFIX + "sums": np.array([*self.sums.values()], np.float64),
            _PREFIX + "last": np.array([*self.last.values()], np.int64),
        }

    @classmethod
    def load(cls, arrays: Arrays) -> Self:
        """Rebuild the counts from what `arrays()` gave."""
        ids, counts, sums, last = (arrays[_PREFIX + name].tolist() for name in _ARRAYS)
        names = bytes(ids).decode().split("\n") if ids else []
        made = cls()
        made.counts = dict(zip(names, counts, strict=True))
        made.sums = dict(zip(names, sums, strict=True))
        made.last = dict(zip(names, last, strict=True))
        made._reciprocals = sum(made._reciprocal(name) for name in names)
        return made


@dataclass
class CountingBufferState(BufferState):
    """A buffer, and the participation counts of the run."""

    participation: ParticipationCounts = field(default_factory=ParticipationCounts)
    order: int = 0
    """Updates accumulated in the run."""

    def record(self, participant_id: str, value: float | None) -> None:
        """Count the update that was accumulated last, with its value; None if it has no value yet."""
        self.order += 1
        self.participation.record(participant_id, self.order, value)

    def arrays(self) -> dict[str, Array]:
        return super().arrays() | self.participation.arrays()

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"order": self.order}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        if not all(_PREFIX + name in arrays for name in _ARRAYS):
            raise CheckpointError(
                "the checkpoint's strategy state lacks the participation counts; "
                "resume with the strategy and model that wrote it"
            )
        super().load({n: a for n, a in arrays.items() if not n.startswith(_PREFIX)}, scalars)
        self.participation = ParticipationCounts.load(arrays)
        self.order = int(scalars["order"])
        return self


def _exact(value: float) -> int:
    return round(value * _UNIT)
