"""The rate of control messages: how many hellos and declines of one user are read, before any of them is decoded.

Each user of the broker has a token bucket. A message that finds no token is dropped. That costs little: hellos repeat,
and a lost decline costs no more than its task's lease. A federation with one user for everybody has a bucket that grows
with its participants.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

EACH_PER_S = 5.0
"""Messages per second that each participant with an accepted update adds to its user's rate. A participant says hello
when its state changes, so two or three times for each update."""
BURST_S = 20.0
"""Seconds of the rate that a bucket holds: a thousand participants may connect at the same moment."""
MOST_BUCKETS = 1000
"""Number of users with a bucket. The one that was quiet for longest makes room, and begins with a full one again."""
TELL_S = 60.0
"""Shortest time between two log lines about one user, in seconds."""


@dataclass(slots=True)
class Bucket:
    """One user's bucket."""

    tokens: float
    filled_s: float
    dropped: int = 0
    told_s: float = float("-inf")


class ControlRate:
    """The buckets of all users."""

    def __init__(self, per_s: float, proven_of: Callable[[str | None], int]) -> None:
        """`proven_of` gives the number of a user's participants with an accepted update."""
        self._per_s = per_s
        self._proven_of = proven_of
        self._buckets: OrderedDict[str | None, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allows(self, user: str | None, now: float) -> bool:
        """Return True if a message of this user is to be read at run time `now` (seconds)."""
        rate = self._per_s + EACH_PER_S * self._proven_of(user)
        most = max(1.0, BURST_S * rate)
        bucket = self._buckets.get(user)
        if bucket is None:
            bucket = self._buckets[user] = Bucket(most, now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(user)
        bucket.tokens = min(most, bucket.tokens + (now - bucket.filled_s) * rate)
        bucket.filled_s = now
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return True
        self._drop(bucket, user, now, rate)
        return False

    @staticmethod
    def _drop(bucket: Bucket, user: str | None, now: float, rate: float) -> None:
        bucket.dropped += 1
        if now - bucket.told_s >= TELL_S:
            bucket.told_s = now
            detail = f"hellos and declines of this user beyond {rate:g} per second are dropped (run.hellos_per_s)"
            log.warning("control_messages_dropped", user=user, dropped=bucket.dropped, detail=detail)
