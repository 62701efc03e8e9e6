"""Full-jitter exponential backoff, so that a thousand participants which lose one broker do not come back in step."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MOST_DOUBLINGS = 32
"""Largest exponent, which keeps 2**attempt small. The cap is reached long before."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits before attempts. `attempt` counts from 0."""

    base_s: float = 0.5
    cap_s: float = 30.0

    def ceiling_s(self, attempt: int) -> float:
        """Return the longest wait, in seconds, that this attempt may draw."""
        return min(self.cap_s, self.base_s * 2.0 ** min(attempt, _MOST_DOUBLINGS))

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Draw a wait in seconds, uniform between 0 and the ceiling ("full jitter")."""
        return rng.uniform(0.0, self.ceiling_s(attempt))
