"""Callbacks that are called later: the interface that pika's IOLoop offers, and timers by a clock without a loop."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Protocol


class Timers(Protocol):
    """The part of pika's IOLoop that the broker's rooms use."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        """Call back after `delay` seconds. Return a handle for `remove_timeout`."""

    def remove_timeout(self, timeout_handle: Any) -> None:
        """Forget a callback; one that was called already is no error."""


class ClockTimers:
    """Timers whose owner asks `next_due_s` how long it may wait, and calls `do_due` then."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: list[tuple[float, int]] = []
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._numbers = itertools.count()

    def call_later(self, delay: float, callback: Callable[[], object]) -> int:
        number = next(self._numbers)
        self._callbacks[number] = callback
        heapq.heappush(self._due, (self._clock() + delay, number))
        return number

    def remove_timeout(self, timeout_handle: int) -> None:
        self._callbacks.pop(timeout_handle, None)

    def next_due_s(self) -> float | None:
        """Time of the next callback by the clock; None if there is none."""
        while self._due and self._due[0][1] not in self._callbacks:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def do_due(self) -> None:
        """Call back all that are due, in the order of their times."""
        while (due_s := self.next_due_s()) is not None and due_s <= self._clock():
            self._callbacks.pop(heapq.heappop(self._due)[1])()
