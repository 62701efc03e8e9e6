"""SIGTERM and Ctrl-C, for all commands.

Rules
1. SIGTERM interrupts a command as Ctrl-C does, from its first line on: what it has opened is closed, and what it has
   started ends with it.
2. A command that can stop cleanly takes the signals over (`stopped_by_signals`).
3. The second signal ends the process at once, with all processes below it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []
"""Signals that interrupted the command."""


@contextmanager
def stopped_by_signals(stop: Callable[[], None], what: str) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C call `stop`. A second signal ends the process at once."""
    from fedmq.schemas.local.signals import handled_by

    seen = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            _leave_at_once(number)
        os.write(2, f"\n{signal.Signals(number).name}: stopping {what} (again to leave at once)\n".encode())
        stop()

    with handled_by(handle):
        yield


def terminate_as_interrupt() -> None:
    """Let SIGTERM and Ctrl-C raise KeyboardInterrupt, until `stopped_by_signals` takes over.

    A Ctrl-C that this process ignores, as a job in the background does, stays ignored.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if number in _received:
            _leave_at_once(number)
        _received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # fedmq.cli.start
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ended_by_signal() -> int | None:
    """Return the exit status for the signal that interrupted the command; None if there was none but Ctrl-C."""
    return 128 + _received[-1] if _received else None


def _leave_at_once(number: int) -> None:
    from fedmq.schemas.local.leaving import kill_descendants

    kill_descendants()
    os._exit(128 + number)
