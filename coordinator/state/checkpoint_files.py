"""Where a run's checkpoint files lie: `checkpoints/`, and the newest one a second time in another folder.

A commit writes both before its transaction, so that whatever happens to one of the two afterwards (a flipped bit, a
torn or deleted file, with `commit.copy_dir` a whole disk) leaves the same state in the other
(docs/decisions/0010-damaged-checkpoints.md). A copy on the same disk is left to the system to bring there: by then the
next commit has often taken its place, and nothing was written twice. Older files are kept once.
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
from fedmq.schemas.parameters import Array

log = EventLog(__name__)


class CheckpointFiles:
    """The files of one run, by name. `copies` is the second folder; None keeps each checkpoint once."""

    def __init__(self, main: Path, copies: Path | None) -> None:
        self.main = main
        self.copies = copies

    @classmethod
    def of(cls, folder: RunFolder, settings: CommitSettings, run_id: str, run_uid: str) -> CheckpointFiles:
        """As the settings have it. In a `copy_dir` each run has a folder of its own, whatever else lies there."""
        if settings.checkpoint_copies == 1:
            return cls(folder.checkpoints, None)
        if settings.copy_dir is None:
            return cls(folder.checkpoints, folder.path / "copies")
        return cls(folder.checkpoints, Path(settings.copy_dir) / f"{run_id}-{run_uid}")

    @classmethod
    def of_run(cls, folder: RunFolder, run: RunRow) -> CheckpointFiles:
        """As the run was created or last resumed."""
        settings = CommitSettings.model_validate(run.settings.get("commit", {}))
        return cls.of(folder, settings, run.run_id, run.run_uid)

    def prepare(self) -> None:
        """Make the folders. Raises CheckpointError where that is refused, as where a disk is not mounted."""
        for folder in self._folders():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"checkpoints cannot be written to {folder}: {error}. Mount or repair the disk, or set "
                    "commit.copy_dir to another folder"
                ) from error

    @cached_property
    def _on_two_disks(self) -> bool:
        return self.copies is not None and self.copies.stat().st_dev != self.main.stat().st_dev

    def write(self, name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> str:
        """Both files, the first one durably, and the second one where it is on another disk; the digest. Raises OSError
        where either disk refuses."""
        copy = None if self.copies is None else self.copies / name
        return checkpoint.write(self.main / name, arrays, meta, copy=copy, sync_copy=self._on_two_disks)

    def read(self, row: CheckpointRow, former: CheckpointFiles | None = None) -> Checkpoint:
        """The first file that is whole, aloud where it is not the first one; what is damaged or missing is written
        again. `former`: where the last coordinator kept its copies. Raises CheckpointError where none is whole."""
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
        """Its header and its length only: a start need not read everything twice. `fedmq verify` does."""
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

    def places(self, name: str, newest: bool) -> list[Path]:
        """Where a checkpoint lies: the newest one twice."""
        return [folder / name for folder in (self._folders() if newest else [self.main])]

    def left_over(self, kept: Iterable[str], epoch: int) -> list[str]:
        """Names of files, in any of the folders, that are not among those `kept`, and no newer than `epoch`."""
        found = {path.name for folder in self._folders() if folder.is_dir() for path in folder.iterdir()}
        return sorted(name for name in found.difference(kept) if epoch_of(name) <= epoch)

    def remove(self, names: Iterable[str]) -> None:
        """A file too many does no harm, the next start removes it."""
        for name in names:
            for folder in self._folders():
                with contextlib.suppress(OSError):
                    (folder / name).unlink()

    def supersede_copy(self, name: str) -> None:
        """This checkpoint is not the newest any more: one file of it is enough."""
        if self.copies is not None:
            with contextlib.suppress(OSError):
                (self.copies / name).unlink()

    def _folders(self) -> list[Path]:
        return [self.main] if self.copies is None else [self.main, self.copies]


def file_name(seq: int, epoch: int, again: int = 0) -> str:
    """Of a checkpoint. Two coordinators never write files of one name: each has its own epoch
    (coordinator.state.ledger.epochs).
    `again` counts the names that one `seq` had before, and that must not be written over."""
    return f"{seq:08d}-e{epoch:04d}" + (f"-{again}" if again else "") + ".safetensors"


def epoch_of(name: str) -> int:
    """The epoch in the name of a checkpoint, or of another file that has one, also while it is half written; 0 for a
    file that is none of ours."""
    found = re.search(r"-e(\d{4,})[-.]", name)
    return int(found[1]) if found else 0
