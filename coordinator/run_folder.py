"""A run's folder on disk, and the lock that lets one coordinator write it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from schemas.errors import LedgerError


class RunFolder:
    """Where everything of one run lies: ledger.sqlite, checkpoints/, copies/, archive/, the final model, its lock."""

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

    def acquire(self) -> None:
        """Make the folder and take its lock until `release` or the end of the process, however that comes.

        Raises LedgerError, naming the holder, where another coordinator writes this run.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "coordinator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise LedgerError(
                f"another coordinator (pid {holder}) is writing the run in {self.path}: stop it first, or start this "
                "one with another run_id"
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
