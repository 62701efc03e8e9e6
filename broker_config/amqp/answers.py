"""What the broker was asked and has not answered: AMQP's synchronous methods have no time-out of their own, and a
heartbeat only says that the connection lives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedmq.broker_config.timers import Timers

ANSWER_S = 60.0
"""Without an answer for so long the broker, or what of it the question is for, hangs. A cluster that elects leaders
takes seconds."""
MOVING_BYTES = 16 * 1024
"""More than the heartbeats of ANSWER_S: where so much went over the connection, the answer may be behind it."""
MOST_ANSWER_S = 600.0
"""On a connection that is busy."""


class Answer:
    """One question at a time: `wait` when it goes out, `stop` when the answer is there or of no interest any more."""

    def __init__(self, timers: Timers, moved_bytes: Callable[[], int], on_silence: Callable[[str], None]) -> None:
        """`moved_bytes` counts what went over the connection, both ways. `on_silence` is told what was not answered, as
        part of a sentence."""
        self._timers = timers
        self._moved_bytes = moved_bytes
        self._on_silence = on_silence
        self._what = ""
        self._waited_s = 0.0
        self._moved_before = 0
        self._timer: Any = None

    def wait(self, what: str) -> None:
        """For the answer to this question, from now on."""
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
