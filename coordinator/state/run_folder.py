"""A run's folder on disk, and the lock that keeps it for the coordinators of one broker and prefix.

The folder is this user's alone, with everything in it: also the final model, because it says something about the data
that it was trained on. Whoever wants to give it away copies it.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.schemas.errors import LedgerError, StateError
from fedmq.schemas.local.files import make_folder
from fedmq.schemas.local.locks import FileLock, holders

FINAL_MODELS = ("final.keras", "final.pt")
"""Names of an exported model, one for each framework."""
TRIES = 3
"""Attempts at the lock. One that finds another place in it may have met a coordinator that was just leaving."""


def unwritable(path: Path, error: OSError) -> StateError:
    """Return the error for a run folder that the disk refuses, at the start and at the end of a run."""
    return StateError(
        f"the run in {path} cannot be written: {error}. Nothing was acked that is not on disk. Make room, then run the "
        "same command again"
    )


def place_of(broker_id: str, prefix: str) -> str:
    """Return the place that the coordinators of one broker and prefix have in common."""
    return f"{broker_id} with prefix {prefix}"


class RunFolder:
    """The paths of one run: ledger.sqlite, checkpoints/, copies/, archive/, the final model, and the folder's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def lock(self) -> Path:
        return self.path / "coordinator.lock"

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
    def final_model(self) -> Path | None:
        """The exported model; None if there is none."""
        return next((path for name in FINAL_MODELS if (path := self.path / name).exists()), None)

    def acquire(self, place: str) -> None:
        """Make the folder and keep it for the coordinators of one place, which is a broker and a prefix.

        It is kept until `release` or the end of the process, even a sudden one. This does not decide which of the
        coordinators is active.

        Raises LedgerError if coordinators of another place have it.
        """
        self.release()
        for folder in (self.path, self.checkpoints):
            make_folder(folder)
        lock = FileLock(self.lock)
        try:
            for _ in range(TRIES):
                if (found := _share(lock, place)) == place:
                    self._lock = lock
                    return
        finally:
            if self._lock is None:
                lock.close()
        raise LedgerError(
            f"a coordinator that works over {found} has the run in {self.path}, and this one would work over {place}. "
            f"The other one is {holders(lock.path)}. Stop it first, use the same [broker] table, or start this one "
            "with another run_id"
        )

    def check(self, ledger: Ledger) -> None:
        """Raise StateError if the folder that `acquire` has kept was moved, replaced or removed, or a part of it.

        `ledger` is the open one of this folder.
        """
        if self._lock is None:
            return
        if self._lock.in_place() and self.checkpoints.is_dir() and ledger.in_place():
            return
        raise StateError(
            f"the run folder {self.path} was moved, replaced or removed while its coordinator ran. Nothing was acked "
            "since that is not on disk. Put the folder back in its place, then run the same command again"
        )

    def alone(self) -> bool:
        """Return True if no other coordinator keeps this very folder. One that works on a copy keeps the copy."""
        assert self._lock is not None, "acquire comes first"
        found = self._lock.take()
        self._lock.share()  # in any case: a change that was refused may have given the lock up
        return found

    def release(self) -> None:
        """Give the folder back. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _share(lock: FileLock, place: str) -> str:
    """Share the lock and return the place whose coordinators have it. A coordinator that is alone writes its own."""
    assert lock.handle is not None
    if lock.take():
        os.ftruncate(lock.handle, 0)
        os.pwrite(lock.handle, place.encode(), 0)
    # The change from exclusive to shared is not atomic. Another coordinator may have come in between, so read it again.
    lock.share()
    return os.pread(lock.handle, 4096, 0).decode(errors="replace")
