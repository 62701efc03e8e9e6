"""SIGTERM and Ctrl-C, for code that can stop cleanly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Let `handler` answer both signals, and give them back to their former handlers, which it yields, afterwards.

    Only the main thread may do so.
    """
    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
        yield before
    finally:
        for signalled, former in before.items():
            signal.signal(signalled, former)
