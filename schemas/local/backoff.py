"""Full-jitter exponential backoff: a thousand participants that lose one broker must not come back in step."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MOST_DOUBLINGS = 32
"""Keeps 2**attempt small; the cap is reached long before."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before attempt number `attempt`, counted from 0."""

    base_s: float = 0.5
    cap_s: float = 30.0

    def ceiling_s(self, attempt: int) -> float:
        """The longest wait that this attempt may draw."""
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt, _MOST_DOUBLINGS))

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Uniform between 0 and the ceiling ("full jitter")."""
        return rng.uniform(0.0, self.ceiling_s(attempt))
