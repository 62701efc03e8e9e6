"""Another Python process that runs fedmq: this very fedmq, with no folder of a user's in front of it.

A child leads a session of its own, so a Ctrl-C does not reach it, and it can be ended with all that it has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
"""Folder that this fedmq lies in."""


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of fedmq. `-P` keeps the current folder off sys.path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without settings of a federation: one of them is the broker's URL, with its password.

    FEDMQ_TF_THREADS and FEDMQ_FAULT stay, because they are about processes.
    """
    return {k: v for k, v in environ.items() if not k.startswith("FEDMQ_") or k in ("FEDMQ_TF_THREADS", "FEDMQ_FAULT")}


def importable(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a child finds this fedmq, also from a clone that is not installed."""
    found = dict(environ)
    if str(ROOT) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), str(ROOT))))
    return found


class Watchdog:
    """A process that kills a session of processes as soon as this process is gone, however that happens."""

    def __init__(self, leader: int) -> None:
        """Watch over the session of the process `leader`."""
        # `read` returns when we close the pipe or die.
        self._process = subprocess.Popen(  # noqa: S603 (a constant script)
            ["/bin/sh", "-c", 'read -r _; kill -KILL -"$1" 2>/dev/null', "fedmq-watchdog", str(leader)],
            env={},  # it needs nothing of ours, and least of all a password
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """End it. Do this before the leader is waited for: its number may be somebody else's afterwards."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def kill_session(leader: subprocess.Popen[Any]) -> None:
    """Kill a child with all that it has started, unless it has been waited for."""
    if leader.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


def end_session(leader: subprocess.Popen[Any], grace_s: float) -> None:
    """Wait for a child that was told to leave. After the grace, kill it with all that it has started."""
    try:
        leader.wait(grace_s)
    except subprocess.TimeoutExpired:
        kill_session(leader)
