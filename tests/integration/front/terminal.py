"""A command in a terminal of its own. Its output is collected, and a test waits for lines with a deadline."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

DEADLINE_S = 90.0


class Terminal:
    """A process of `python -m fedmq ARGUMENTS`."""

    program: tuple[str, ...] = (sys.executable, "-m", "fedmq")

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        self.name = " ".join(arguments)
        self._process = subprocess.Popen(
            [*self.program, *arguments],
            cwd=folder,
            env={**clean, "PYTHONUNBUFFERED": "1", "FEDMQ_TF_THREADS": "1", **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status; None while the process runs."""
        return self._process.poll()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Return the match of the `times`-th line with the pattern, once it is there."""

        def found() -> list[re.Match[str]]:
            return [match for line in self._lines if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= times or not self._reader.is_alive(), DEADLINE_S)
            matches = found()
        assert len(matches) >= times, f"{self.name}: no {times} lines with {pattern!r} in\n{self.text}"
        return matches[times - 1]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end, and return the exit status."""
        try:
            status = self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended in {DEADLINE_S:g} s:\n{self.text}") from None
        self._reader.join(DEADLINE_S)
        return status

    def kill(self) -> int:
        """Kill the process with SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        return self.ended()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
