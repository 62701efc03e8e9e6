"""The timer of a buffer that may not fill (strategies.protocol.BufferTimeout).

Rules
 1. The time counts in run time, from the first accepted update of the buffer. An empty buffer has no timer, and no
    version is made of nothing. Run time stands still while no coordinator is up; a restart or a standby goes on with
    what was committed.
 2. When the time is over and `min_updates` are there, they make a version. With fewer the buffer waits on, without
    another timer, and the update that is enough makes the version at once.
 3. Time passes before an event is handled. An update that comes at the end of the time or later is not in the version
    that the time makes. It opens the next buffer.
 4. A buffer that is full makes its version as it always does. The next buffer begins anew, and so does one whose
    updates were lost because their version failed.
 5. A run may be given a timeout later. If its buffer holds updates then, the time counts from that start.
"""

from __future__ import annotations

from fedmq.coordinator.strategies.protocol import BufferTimeout


class BufferTimer:
    """The time of the open buffer. The caller knows how many updates are in it."""

    def __init__(self, timeout: BufferTimeout) -> None:
        self._timeout = timeout
        self.opened_s: float | None = None
        """Run time of the buffer's first update (seconds); None while it is empty."""

    def on_accepted(self, now: float) -> None:
        """Note an accepted update: the first one opens the buffer."""
        if self.opened_s is None:
            self.opened_s = now

    def due_s(self, count: int) -> float | None:
        """Return the run time at which a buffer of `count` updates makes its version; None if these are too few."""
        if self.opened_s is None or count < self._timeout.min_updates:
            return None
        return self.opened_s + self._timeout.timeout_s

    def is_due(self, count: int, now: float) -> bool:
        """Return True if a buffer of `count` updates makes its version by `now`."""
        due_s = self.due_s(count)
        return due_s is not None and now >= due_s

    def close(self) -> None:
        """Note that the buffer is empty: it made its version, or lost its updates."""
        self.opened_s = None
