"""The processes beside a private node: Erlang's port mapper, and a watchdog that ends them all with this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from fedmq.schemas.errors import ConfigError


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """True if somebody listens on this port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def spawn(command: list[str], env: Mapping[str, str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that a Ctrl-C for us does not reach it. Its files are ours alone."""
    return subprocess.Popen(  # noqa: S603  the command is ours
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,
    )


def end(process: subprocess.Popen[bytes] | None) -> None:
    """Kill a process and its children. Return when it is gone."""
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Watchdog:
    """A process that kills another one's group when we die, even by SIGKILL. It reads a pipe that only we hold open.

    PR_SET_PDEATHSIG is no use: it fires when the *thread* that started the process ends.
    """

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603  the script is ours
            ["/bin/sh", "-c", 'read -r _; kill -KILL -"$1" 2>/dev/null', "fedmq-node-watchdog", str(pid)],
            env={},  # it needs nothing of ours, and least of all a password
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the watch. Call it before the process is reaped: its id may then belong to another process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class PortMapper:
    """An epmd of our own on a free port. Node names are unique per epmd, and the nodes of a cluster share one."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    def start(self, sbin: Path, env: Mapping[str, str], out: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start epmd, unless it runs already. Raises ConfigError if there is no epmd."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = spawn([_find_epmd(sbin), "-port", str(self.port), "-address", "127.0.0.1"], env, out)
            self._watchdog = Watchdog(self._process.pid)
        return self._process

    def stop(self) -> None:
        if self._watchdog is not None:
            self._watchdog.dismiss()
        end(self._process)
        self._process = self._watchdog = None


def _find_epmd(sbin: Path) -> str:
    if (beside := sbin / "epmd").is_file():  # a server that brings its own Erlang, as in tests/rabbitmq4.sh
        return str(beside)
    if found := shutil.which("epmd"):
        return found
    erl = shutil.which("erl")
    for place in sorted(Path(erl).resolve().parents[1].glob("**/bin/epmd")) if erl else ():
        return str(place)
    raise ConfigError("no epmd on the PATH: it comes with Erlang; install Erlang, or add its bin directory to PATH")
