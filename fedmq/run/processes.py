"""Child processes that never outlive us: we stop them on the way out, and a watchdog kills them if we are killed."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from fedmq.app.children import Watchdog, importable, kill_session, python
from fedmq.schemas.local.files import make_folder, open_log, tail
from fedmq.schemas.redaction import redacted

GRACE_S = 8.0
TAIL_BYTES = 64 * 1024


class Children:
    """A group of `python -m fedmq …` processes, by name. As a context manager, it ends them all."""

    def __init__(self, log_dir: Path, environ: Mapping[str, str]) -> None:
        """Make an empty group. Each process will write to log_dir/<name>.log."""
        make_folder(log_dir)
        self._log_dir = log_dir
        self._environ = importable(environ)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdogs: list[Watchdog] = []

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Run `python -P -m fedmq ARGUMENTS` in a session of its own. A Ctrl-C is ours to pass on."""
        with open_log(self.log_path(name)) as log:
            process = subprocess.Popen(  # noqa: S603 (this interpreter, our own module)
                python("fedmq", *arguments),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = process
        self._watchdogs.append(Watchdog(process.pid))

    def log_path(self, name: str) -> Path:
        """Return the path of its output."""
        return self._log_dir / f"{name}.log"

    def status(self, name: str) -> int | None:
        """Return the exit status; None while it runs."""
        return self._processes[name].poll()

    def wait(self, name: str, timeout_s: float) -> int | None:
        """Wait for its end. Returns the exit status, or None after `timeout_s`."""
        try:
            return self._processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def tail(self, name: str, lines: int = 8) -> str:
        """Return the last lines of its output."""
        text = tail(self.log_path(name), TAIL_BYTES).strip().splitlines()
        return redacted("\n".join(text[-lines:]))

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Send SIGTERM to all at once, and SIGKILL to those that are left after the grace. Idempotent."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + grace_s
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for watchdog in self._watchdogs:
            watchdog.close()
        self._watchdogs.clear()
        for process in self._processes.values():
            kill_session(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
