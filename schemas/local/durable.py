"""Files that are either old or new, and never in between, after a crash of the process or of the machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from fedmq.schemas.local.files import open_new


def write_whole(path: Path, pieces: Iterable[bytes | bytearray | memoryview], *, sync: bool = True) -> None:
    """Write the file beside its place, for this user alone, sync it, and rename it. Raises OSError if the disk
    refuses, and the old file stays. Without `sync` the system brings the file to the disk when it likes."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open_new(beside) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a removal inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
