"""Retries for the broker and the disk: with full-jitter backoff, for ever, and without I/O here."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fedmq.schemas.local.backoff import Backoff

RETRY = Backoff(base_s=1.0, cap_s=60.0)
MAX_LISTED = 32
"""Most entries of each list (sent, done, declined), because hello.task_ids holds 64."""


@dataclass(slots=True)
class Retry:
    """Number of failed attempts, and the time of the next one."""

    attempts: int = 0
    at: float = 0.0

    def back_off(self, now: float, rng: random.Random) -> None:
        self.at = now + RETRY.delay_s(self.attempts, rng)
        self.attempts += 1


@dataclass(slots=True)
class Unconfirmed:
    """An update in the outbox or a decline that the broker has not confirmed."""

    task_id: str
    run_id: str
    retry: Retry = field(default_factory=Retry)
    in_flight: bool = False
    from_start: bool = False
    """True if the update's chunks were sent in vain. While it is in flight, this is about the try in flight."""

    def is_due(self, now: float) -> bool:
        return not self.in_flight and now >= self.retry.at

    def failed(self, now: float, rng: random.Random) -> None:
        self.in_flight = False
        self.retry.back_off(now, rng)
