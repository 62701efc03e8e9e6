"""The fleet's folder on the coordinator's host, and secrets in files.

Rules
1. The folder has mode 0700 and every file in it 0600.
2. A file is either old or new, and never in between, also after a crash.
3. The authority's key may be away: on another machine, or on a stick. Only what signs certificates needs it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fedmq.fleet.certificates import Credential
from fedmq.schemas.errors import FleetError
from fedmq.schemas.local.durable import write_whole
from fedmq.schemas.local.files import decoded

MOST_BYTES = 256 * 1024
"""Size of the largest file that is read here."""


@dataclass(frozen=True, slots=True)
class FleetFolder:
    """The paths in a fleet's folder."""

    path: Path

    @property
    def inventory(self) -> Path:
        return self.path / "inventory.sqlite"

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca.pem"

    @property
    def ca_key(self) -> Path:
        return self.path / "ca.key"

    @property
    def server(self) -> Path:
        """The broker's certificate and key in one file, which is replaced at once."""
        return self.path / "server.pem"

    @property
    def coordinator(self) -> Path:
        """The coordinator's certificate and key in one file."""
        return self.path / "coordinator.pem"

    @property
    def signing_key(self) -> Path:
        """The coordinator's Ed25519 key, with which it signs tasks."""
        return self.path / "signing.key"

    def exists(self) -> bool:
        return self.inventory.is_file()

    def make(self) -> None:
        """Make the folder. Raises FleetError if it cannot be made, or if it is somebody else's."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise FleetError(f"The fleet's folder {self.path} cannot be made: {error}.") from error

    def authority(self, key: Path | None = None) -> Credential:
        """Return the authority with its key, from `key` or from the folder. Raises FleetError if either is missing."""
        place = key or self.ca_key
        if not place.is_file():
            raise FleetError(
                f"There is no key of the authority at {place}. It signs certificates: give its path with --ca-key if "
                "it is kept elsewhere."
            )
        return Credential(read_text(self.ca), read_text(place))


def read_text(path: Path) -> str:
    """Return the text of a regular file of bounded size. Raises FleetError for anything else, without its contents."""
    try:
        # O_NONBLOCK: a FIFO would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):  # fdopen itself refuses a folder, and names no path
            os.close(handle)
            raise FleetError(f"{path} is no regular file.")
        with os.fdopen(handle, "rb") as file:
            if found.st_size > MOST_BYTES:
                raise FleetError(f"{path} has {found.st_size} bytes, expected at most {MOST_BYTES}.")
            return decoded(file.read(MOST_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error
        raise FleetError(f"{path} cannot be read: {why}.") from None


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read, sync it, and put it in place at once. Raises FleetError."""
    try:
        write_whole(path, [text.encode()])
    except OSError as error:
        raise FleetError(f"{path} cannot be written: {error}.") from error
