"""Files that an app reads, such as a backbone's weights, checked by their digests before the app is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.files import open_to_read

_READ_BYTES = 2**20
MOST_BYTES = 2**40
"""Largest file that is read to the end, once at a start."""


def check_files(files: Mapping[str, str]) -> None:
    """Raise ConfigError unless each file, by its path, has its SHA-256."""
    for path, expected in files.items():
        try:
            found = _digest(Path(path))
        except OSError as error:
            raise ConfigError(
                f"the app needs the file {path}, which [files] names, and it cannot be read "
                f"({error.strerror or error}): copy it from the coordinator's machine"
            ) from None
        if found != expected:
            raise ConfigError(
                f"{path} is not the federation's file: its SHA-256 is {found}, and [files] says {expected}. Copy it "
                "from the coordinator's machine, or start a new run with the new file's digest"
            )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_to_read(path, MOST_BYTES, named_by_user=True) as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
