"""The doctor's findings on the folders of a role: can its files be made there, and is there room for them?

Nothing is left behind: a look makes a file without a name.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmq.broker_config.amqp.handshake import MIB
from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.participant.spool.spool import folders_of
from fedmq.schemas.local.files import UnfitFile, check_plain
from fedmq.views.finding import Finding, Role

SPARE_BYTES = MIB
"""Room for a ledger, logs and notes at the beginning."""
LOW = 5
"""A disk with less than so many times the room that the beginning needs is warned of."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that a role writes to."""

    setting: str
    """The key of the federation file that names it."""
    path: Path
    """The folder that the setting names."""
    inside: tuple[Path, ...]
    """Folders that the role makes in it, the outermost first."""
    files: tuple[Path, ...] = ()
    """Files that the role opens in place, if they are there."""
    models: int = 0
    """Number of models that it holds at the beginning of a run."""


def places(config: FederationConfig | DeviceConfig, participant_id: str, role: Role | None) -> list[Place]:
    """Return the folders of a role, or of both."""
    found = []
    if isinstance(config, FederationConfig) and role != "participant":
        folder = RunFolder(config.run_dir)
        inside = [folder.path, folder.checkpoints, config.run_dir / "model", folder.path / "copies"]
        if config.archive.on:
            inside.append(folder.archive)
        files = (folder.ledger, folder.lock, config.run_dir / "model" / "model.log")
        # Two checkpoints are kept and a third one is made. Each may hold as much beside the model.
        found.append(
            Place("runs_dir", Path(config.runs_dir), tuple(inside), files, 2 * (config.commit.keep_checkpoints + 2))
        )
        if config.commit.copy_dir is not None:
            found.append(Place("commit.copy_dir", Path(config.commit.copy_dir), (), models=4))
    if role != "coordinator":
        spool = Path(config.participant.spool_dir)
        inside_spool = folders_of(spool, participant_id)
        # The task, its update, and a method's memory in float64.
        found.append(Place("participant.spool_dir", spool, inside_spool, (inside_spool[0] / "lock",), models=4))
    return found


def writable(place: Place) -> Finding:
    """Return the finding on the rights in a folder, and in those of ours inside that are there."""
    for folder in (place.path, *place.inside):
        try:
            _try_folder(folder, named_by_user=folder == place.path)
        except OSError as error:
            shown = error.strerror or str(error)
            advice = f"let this user write there, or set {place.setting} to another folder"
            return Finding("wrong", f"{place.setting}: {folder} cannot be written ({shown})", advice)
    for file in place.files:
        try:
            if check_plain(file) and not os.access(file, os.R_OK | os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            what = f"{place.setting}: {file} cannot be written ({error.strerror or error})"
            return Finding("wrong", what, f"give the files in {file.parent} to this user: chown -R")
    return Finding("ok", f"{place.setting}: {place.path} can be written")


def _try_folder(folder: Path, *, named_by_user: bool) -> None:
    """Raise OSError if the folder cannot be written, or could not be made. A link is for folders that a user names."""
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    found = existing.stat() if named_by_user or existing != folder else existing.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnfitFile(20, f"{existing} is no folder")
    with tempfile.TemporaryFile(dir=existing):
        pass


def room(place: Place, model_bytes: int) -> Iterator[Finding]:
    """Yield the finding on the room on the folder's disk. A model of 0 bytes is one that is not known."""
    existing = place.path
    while not existing.exists():
        existing = existing.parent
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        return
    needed = place.models * model_bytes + SPARE_BYTES
    said = f"room: {_mib(free)} free for {place.setting} ({place.path}), the first minutes need {_mib(needed)}"
    advice = f"make room, or set {place.setting} to a folder on another disk"
    if free < needed:
        yield Finding("wrong", said, advice)
    elif free < LOW * needed:
        yield Finding("warning", said, advice)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f} MiB" if num_bytes >= MIB else f"{num_bytes / 1024:,.0f} KiB"
