"""Time-outs for the broker's answers. AMQP's synchronous methods have none of their own, and a heartbeat only says that
the connection lives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedmq.broker_config.timers import Timers

ANSWER_S = 60.0
"""Time without an answer after which the broker, or the part of it that was asked, hangs. A cluster that elects leaders
takes seconds."""
MOVING_BYTES = 16 * 1024
"""More bytes than the heartbeats of ANSWER_S have. If so many went over the connection, the answer may be behind
them."""
MOST_ANSWER_S = 600.0
"""Longest wait for an answer on a busy connection."""


class Answer:
    """The wait for one answer: `wait` when the question goes out, `stop` when the answer is there or not wanted any
    more."""

    def __init__(self, timers: Timers, moved_bytes: Callable[[], int], on_silence: Callable[[str], None]) -> None:
        """`moved_bytes` counts the bytes that went over the connection, both ways. `on_silence` gets the part of a
        sentence that says what was not answered."""
        self._timers = timers
        self._moved_bytes = moved_bytes
        self._on_silence = on_silence
        self._what = ""
        self._waited_s = 0.0
        self._moved_before = 0
        self._timer: Any = None

    def wait(self, what: str) -> None:
        """Wait for the answer to this question from now on."""
        self.stop()
        self._what = what
        self._waited_s = 0.0
        self._begin()

    def stop(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timers.remove_timeout(self._timer)
            self._timer = None

    def _begin(self) -> None:
        self._moved_before = self._moved_bytes()
        self._timer = self._timers.call_later(ANSWER_S, self._late)

    def _late(self) -> None:
        self._timer = None
        self._waited_s += ANSWER_S
        busy = self._moved_bytes() - self._moved_before >= MOVING_BYTES
        if busy and self._waited_s < MOST_ANSWER_S:
            self._begin()
        else:
            self._on_silence(f"has not answered {self._what} for {self._waited_s:g} s")
