"""The end of a process that has loaded an app: nothing that it started outlives it.

Rules
1. Processes below this one get SIGTERM, and SIGKILL after a grace: workers of multiprocessing, and whatever else the
   app has started.
2. What multiprocessing ends by itself at the exit is left to it: its two servers, and daemonic workers, those of a Pool
   for example, which a Pool would only replace.
3. A thread that never ends does not keep the process. Python waits for it and for its pool of workers, so a process
   that has not left after PATIENCE_S is cut short.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_S = 1.0
PATIENCE_S = 3.0
_SERVERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def end_descendants(grace_s: float = GRACE_S) -> None:
    """End all processes below this one, and return when they are gone."""
    found = _left_to_us()
    if not found:
        return
    import psutil

    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(found, grace_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, grace_s)


def kill_descendants() -> None:
    """Kill all processes below this one at once."""
    import psutil

    for process in _descendants():
        with contextlib.suppress(psutil.Error):
            process.kill()


def leave(status: int) -> None:
    """End what this process has started, and see to it that the process itself leaves with this exit status soon."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(number, signal.SIG_IGN)
    end_descendants()
    threading.Thread(target=_cut_short, args=(status,), name="leaving", daemon=True).start()


def _cut_short(status: int) -> None:
    time.sleep(PATIENCE_S)
    kill_descendants()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _descendants() -> list[psutil.Process]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    import psutil

    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _left_to_us() -> list[psutil.Process]:
    found = _descendants()
    if not found:
        return []
    import multiprocessing

    import psutil

    daemonic = {child.pid for child in multiprocessing.active_children() if child.daemon}
    left = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.pid not in daemonic and not any(one in word for one in _SERVERS for word in process.cmdline()):
                left.append(process)
    return left
