"""Named points at which a test may kill or stop a process of either role.

The variable FEDMQ_FAULT arms a point: `<name>`, or `<name>:<n>` for the n-th time that the point is passed, or
`<name>:<n>:stop` for SIGSTOP instead of SIGKILL. Without it a point costs one comparison. The names are in the calls
of `fault` and in tests/chaos.
"""

from __future__ import annotations

import os
import signal

_armed, _count, _action = (*os.environ.get("FEDMQ_FAULT", "").split(":"), "", "")[:3]
_left = int(_count or 1)
_signal = signal.SIGSTOP if _action == "stop" else signal.SIGKILL


def fault(name: str, pid: int | None = None) -> None:
    """Die here by SIGKILL, or stop until SIGCONT, if this is the armed point.

    With `pid` it is that process to which it happens. This one, which must end with it, waits for that.
    """
    global _left  # noqa: PLW0603
    if name != _armed:
        return
    _left -= 1
    if _left == 0:
        os.write(2, f"fault point {name}\n".encode())  # unbuffered, because the process dies here
        os.kill(os.getpid() if pid is None else pid, _signal)
        if pid is not None:
            signal.pause()
