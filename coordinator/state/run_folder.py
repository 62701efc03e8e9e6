"""A run's folder on disk, and the lock that keeps it for the coordinators of one broker and prefix."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedmq.schemas.errors import LedgerError

TRIES = 3
"""Attempts at the lock. One that finds another place in it may have met a coordinator that was just leaving."""


class RunFolder:
    """The paths of one run: ledger.sqlite, checkpoints/, copies/, archive/, the final model, and the folder's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def archive(self) -> Path:
        return self.path / "archive"

    @property
    def final_parameters(self) -> Path:
        return self.path / "final.safetensors"

    @property
    def final_model(self) -> Path:
        return self.path / "final.keras"

    def acquire(self, place: str) -> None:
        """Make the folder and keep it for the coordinators of one place, which is a broker and a prefix.

        It is kept until `release` or the end of the process, even a sudden one. This does not decide which of the
        coordinators is active.

        Raises LedgerError if coordinators of another place have it.
        """
        self.release()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "coordinator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for _ in range(TRIES):
                if (found := _share(lock, place)) == place:
                    self._lock = lock
                    return
        finally:
            if self._lock is None:
                os.close(lock)
        raise LedgerError(
            f"a coordinator that works over {found} has the run in {self.path}, and this one would work over {place}: "
            "stop the other one first, use the same [broker] table, or start this one with another run_id"
        )

    def release(self) -> None:
        """Give the folder back. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _share(lock: int, place: str) -> str:
    """Share the lock and return the place whose coordinators have it. A coordinator that is alone writes its own."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        os.ftruncate(lock, 0)
        os.pwrite(lock, place.encode(), 0)
    # The change from exclusive to shared is not atomic. Another coordinator may have come in between, so read it again.
    fcntl.flock(lock, fcntl.LOCK_SH)
    return os.pread(lock, 4096, 0).decode(errors="replace")
