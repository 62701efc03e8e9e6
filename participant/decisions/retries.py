"""What waits for the broker or the disk and is tried again, with full-jitter backoff and for ever. No I/O here."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fedmq.schemas.local.backoff import Backoff

RETRY = Backoff(base_s=1.0, cap_s=60.0)
MAX_LISTED = 32
"""Of each kind (sent, done, declined): hello.task_ids holds 64."""


@dataclass(slots=True)
class Retry:
    """How often something failed, and from when on it is tried again."""

    attempts: int = 0
    at: float = 0.0

    def back_off(self, now: float, rng: random.Random) -> None:
        self.at = now + RETRY.delay_s(self.attempts, rng)
        self.attempts += 1


@dataclass(slots=True)
class Unconfirmed:
    """An update in the outbox, or a decline, that the broker has not confirmed."""

    task_id: str
    run_id: str
    retry: Retry = field(default_factory=Retry)
    in_flight: bool = False
    from_start: bool = False
    """An update whose chunks were sent in vain; while it is in flight: those of this very try."""

    def is_due(self, now: float) -> bool:
        return not self.in_flight and now >= self.retry.at

    def failed(self, now: float, rng: random.Random) -> None:
        self.in_flight = False
        self.retry.back_off(now, rng)
