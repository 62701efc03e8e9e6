"""The file of a model's frozen part: checkpoints/frozen/<digest>.safetensors, and a copy where copies are kept.

It is written once, before the ledger knows the run, and never again, unless one of the two is damaged. The digest is in
the scalars of every checkpoint (`Core.frozen`), so the checkpoints themselves hold only the tensors that move. Tensors
that begin to move later stay in it: which ones are frozen follows from the version (FrozenParts).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.checkpoint_files import FROZEN, CheckpointFiles
from fedmq.schemas.errors import CheckpointError, SpecMismatch
from fedmq.schemas.frozen import Frozen, frozen_part
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import make_folder, remove
from fedmq.schemas.parameters import Parameters

log = EventLog(__name__)


def write_frozen(files: CheckpointFiles, part: Frozen) -> None:
    """Write a new run's frozen part. Parts of a start that ended before its ledger knew the run are removed.

    Raises OSError if a disk refuses.
    """
    for folder in files.folders():
        make_folder(folder / FROZEN)
        for left_over in (folder / FROZEN).iterdir():
            remove(left_over)
        checkpoint.write(_path(folder, part.digest), part.tensors)


def read_frozen(files: CheckpointFiles, digest: str, *, mend: bool = True) -> Frozen:
    """Read the frozen part from the first file that is whole, and write the others again unless `mend` is False.

    Raises CheckpointError.
    """
    damage: dict[Path, CheckpointError] = {}
    for folder in files.folders():
        path = _path(folder, digest)
        try:
            part = _read(path, digest)
        except CheckpointError as error:
            damage[path] = error
            continue
        for bad, fault in damage.items():
            log.error("frozen_part_damaged", file=bad, whole=path, detail=checkpoint.fault_of(fault))
        for other in files.folders():
            bad = _path(other, digest)
            if mend and (bad in damage or not bad.exists()):
                _mend(bad, part)
        return part
    *first, last = damage.values()
    raise CheckpointError("; ".join([*map(checkpoint.fault_of, first), str(last)]))


def frozen_in(files: CheckpointFiles, scalars: Mapping[str, Any], *, mend: bool = True) -> FrozenParts | None:
    """Return the frozen part that a checkpoint's scalars name, with its schedule; None if they name none.

    Raises CheckpointError.
    """
    digest = scalars.get("frozen")
    return None if digest is None else FrozenParts.restored(read_frozen(files, digest, mend=mend), scalars)


def check_frozen(files: CheckpointFiles, digest: str) -> list[CheckpointError]:
    """Return what is wrong with the files of the frozen part, without mending anything."""
    found = []
    for folder in files.folders():
        try:
            _read(_path(folder, digest), digest)
        except CheckpointError as error:
            found.append(error)
    return found


def _path(folder: Path, digest: str) -> Path:
    return folder / FROZEN / f"{digest}.safetensors"


def _read(path: Path, digest: str) -> Frozen:
    arrays = checkpoint.read(path).arrays
    try:
        part = frozen_part(Parameters(arrays, set(arrays)))
    except SpecMismatch as error:
        raise CheckpointError(f"the frozen part in {path} is not whole: {error}") from None
    if part.digest != digest:
        raise CheckpointError(f"the frozen part in {path} is another one: its digest is {part.digest}")
    return part


def _mend(path: Path, part: Frozen) -> None:
    try:
        make_folder(path.parent)
        checkpoint.write(path, part.tensors)
    except OSError as error:
        log.warning("frozen_part_not_mended", file=path, error=error)
    else:
        log.warning("frozen_part_mended", file=path)
