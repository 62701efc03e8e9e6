"""Standard streams that a process can always use, however it was started.

Rules
1. A stream that is closed (`fedmq … >&-`, some supervisors and schedulers) becomes /dev/null. Otherwise the next file
   that is opened gets its number: what is printed would go into the ledger.
2. What the stream's encoding does not have (ASCII in cron, in containers, over serial lines) is printed as a
   replacement, and ends nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

_NAMES = ("stdin", "stdout", "stderr")


def prepare_streams() -> None:
    """Make the three streams usable. It has to come before any other file is opened."""
    for number, name in enumerate(_NAMES):
        if not _is_open(number):
            _open_nothing(number)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for printed in (sys.stdout, sys.stderr):
        if isinstance(printed, io.TextIOWrapper) and printed.errors in ("strict", "surrogateescape"):
            with contextlib.suppress(ValueError):  # it is closed
                printed.reconfigure(errors="backslashreplace" if printed is sys.stderr else "replace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_nothing(number: int) -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
    os.set_inheritable(number, True)
