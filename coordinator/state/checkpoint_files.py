"""The places of a run's checkpoint files: `checkpoints/`, and for the newest one a second folder too.

A commit writes both files before its transaction. If one of them is damaged afterwards (a flipped bit, a torn or
deleted file, or a whole disk if `commit.copy_dir` is set), the other has the same state
(docs/decisions/0010-damaged-checkpoints.md). A copy on the same disk is not synced: the operating system writes it
later. By then the next commit has often replaced it, and nothing was written twice. Older checkpoints are kept once.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmq.coordinator.settings import CommitSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.checkpoint import Checkpoint
from fedmq.coordinator.state.ledger.rows import CheckpointRow, RunRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import make_folder
from fedmq.schemas.parameters import Array

log = EventLog(__name__)

FROZEN = "frozen"
"""Folder inside of each place with the model's frozen part (coordinator.state.frozen_file)."""


class CheckpointFiles:
    """The checkpoint files of one run, by name. `copies` is the second folder; None keeps each checkpoint once."""

    def __init__(self, main: Path, copies: Path | None) -> None:
        self.main = main
        self.copies = copies

    @classmethod
    def of(cls, folder: RunFolder, settings: CommitSettings, run_id: str, run_uid: str) -> CheckpointFiles:
        """Return the places that the settings give. In a `copy_dir` each run has a folder of its own."""
        if settings.checkpoint_copies == 1:
            return cls(folder.checkpoints, None)
        if settings.copy_dir is None:
            return cls(folder.checkpoints, folder.path / "copies")
        return cls(folder.checkpoints, Path(settings.copy_dir) / f"{run_id}-{run_uid}")

    @classmethod
    def of_run(cls, folder: RunFolder, run: RunRow) -> CheckpointFiles:
        """Return the places with which the run was created or last resumed."""
        settings = CommitSettings.model_validate(run.settings.get("commit", {}))
        return cls.of(folder, settings, run.run_id, run.run_uid)

    def prepare(self) -> None:
        """Make the folders. Raises CheckpointError if that is refused, for example because a disk is not mounted."""
        for folder in self._folders():
            try:
                make_folder(folder)
            except OSError as error:
                raise CheckpointError(
                    f"checkpoints cannot be written to {folder}: {error}. Mount or repair the disk, or set "
                    "commit.copy_dir to another folder"
                ) from error

    @cached_property
    def _on_two_disks(self) -> bool:
        return self.copies is not None and self.copies.stat().st_dev != self.main.stat().st_dev

    def write(self, name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> str:
        """Write both files and return the digest. The first one is synced, the second one only if its disk is another.

        Raises OSError if either disk refuses.
        """
        copy = None if self.copies is None else self.copies / name
        return checkpoint.write(self.main / name, arrays, meta, copy=copy, sync_copy=self._on_two_disks)

    def read(self, row: CheckpointRow, former: CheckpointFiles | None = None) -> Checkpoint:
        """Return the content of the first file that is whole, and log it if others before it are not.

        Files that are damaged or missing are written again. `former` has the places of the last coordinator's copies.
        Raises CheckpointError if no file is whole.
        """
        damage: dict[Path, CheckpointError] = {}
        folders = [*self._folders(), *(former._folders() if former else ())]
        for path in (folder / row.file for folder in dict.fromkeys(folders)):
            try:
                found = checkpoint.read(path, row.digest)
            except CheckpointError as error:
                damage[path] = error
                continue
            for bad, found_wrong in damage.items():
                detail = f"{checkpoint.fault_of(found_wrong)}; the run goes on from the whole file"
                log.error("checkpoint_damaged", file=bad, whole=path, detail=detail)
                if bad.parent in self._folders():
                    self._mend(bad, found)
            if not damage and self.copies is not None:
                self._look_at_copy(self.copies / row.file, row.digest, found)
            return found
        *first, last = damage.values()
        raise CheckpointError("; ".join([*map(checkpoint.fault_of, first), str(last)]))

    def _look_at_copy(self, path: Path, digest: str, whole: Checkpoint) -> None:
        """Check the copy's header and length only: a start need not read everything twice. `fedmq verify` does."""
        try:
            checkpoint.look(path, digest)
        except CheckpointError as error:
            log.warning("checkpoint_copy_damaged", file=path, detail=checkpoint.fault_of(error))
            self._mend(path, whole)

    @staticmethod
    def _mend(path: Path, whole: Checkpoint) -> None:
        try:
            checkpoint.write(path, whole.arrays, whole.meta)
        except OSError as error:
            log.warning("checkpoint_not_mended", file=path, error=error, detail="the next commit writes both")
        else:
            log.warning("checkpoint_mended", file=path)

    def folders(self) -> list[Path]:
        """Return the places: one, or two if copies are kept."""
        return self._folders()

    def places(self, name: str, newest: bool) -> list[Path]:
        """Return the paths of a checkpoint: two for the newest one, if copies are kept."""
        return [folder / name for folder in (self._folders() if newest else [self.main])]

    def left_over(self, kept: Iterable[str], epoch: int) -> list[str]:
        """Return the names of files in any of the folders that are not `kept` and are no newer than `epoch`."""
        found = {
            path.name
            for folder in self._folders()
            if folder.is_dir()
            for path in folder.iterdir()
            if path.name != FROZEN
        }
        return sorted(name for name in found.difference(kept) if epoch_of(name) <= epoch)

    def newest_of_a_run(self) -> Path | None:
        """Return the newest checkpoint that a commit has written; None if there is at most that of a run's creation."""
        found = [path for folder in self._folders() if folder.is_dir() for path in folder.iterdir()]
        return max(
            (path for path in found if _seq_of(path.name) > 0), key=lambda path: _seq_of(path.name), default=None
        )

    def remove(self, names: Iterable[str]) -> None:
        """Remove files. One that stays does no harm, and the next start removes it."""
        for name in names:
            for folder in self._folders():
                with contextlib.suppress(OSError):
                    (folder / name).unlink()

    def supersede_copy(self, name: str) -> None:
        """Remove the copy of a checkpoint that is not the newest any more: one file of it is enough."""
        if self.copies is not None:
            with contextlib.suppress(OSError):
                (self.copies / name).unlink()

    def _folders(self) -> list[Path]:
        return [self.main] if self.copies is None else [self.main, self.copies]


def file_name(seq: int, epoch: int, again: int = 0) -> str:
    """Return a checkpoint's name. Two coordinators never use the same one, because each has an epoch of its own
    (coordinator.state.ledger.epochs).

    `again` counts the earlier names of the same `seq`, whose files must not be overwritten.
    """
    return f"{seq:08d}-e{epoch:04d}" + (f"-{again}" if again else "") + ".safetensors"


def epoch_of(name: str) -> int:
    """Return the epoch in a file's name, also while the file is half written; 0 if the file is not ours."""
    found = re.search(r"-e(\d{4,})[-.]", name)
    return int(found[1]) if found else 0


def _seq_of(name: str) -> int:
    found = re.fullmatch(r"(\d{8,})-e\d{4,}(-\d+)?\.safetensors", name)
    return int(found[1]) if found else 0
