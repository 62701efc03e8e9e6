"""A limit on the time of one trial: code of a user's own that runs for ever must not hold the doctor."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TookTooLong(BaseException):
    """A trial that was cut off. No Exception, so a user's `except Exception` does not swallow it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TookTooLong inside the block after this time, if this is the main thread. In others there is no limit.

    Another timer of the process goes on afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cut_off(_number: int, _frame: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, cut_off)
    began_s = time.monotonic()
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left_s - (time.monotonic() - began_s)), interval_s)
