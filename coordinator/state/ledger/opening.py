"""A ledger is opened to be read where nothing can be written: a copy on read-only media, or somebody else's folder.

SQLite keeps an index of the write-ahead log beside the ledger (`-shm`), which a copy may lack. If it cannot make the
index, it does not open the file. Then nobody writes the ledger either: without a log, it is read as it is; with one,
from a copy in a private folder, because SQLite would pass the log over.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory


class ReadOnly:
    """A connection that writes nothing to the ledger. Raises sqlite3.DatabaseError, and OSError if a copy is needed and
    cannot be made."""

    def __init__(self, path: Path) -> None:
        """Open the ledger, which is there."""
        self._copy: TemporaryDirectory[str] | None = None
        self.db = _connect(path, "mode=ro")
        try:
            self.db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.DatabaseError as error:
            shm = path.with_name(f"{path.name}-shm")
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CANTOPEN or shm.exists():
                return  # the first question of the reader says what is wrong
            self.db.close()
            self.db = self._without_index(path)

    def _without_index(self, path: Path) -> sqlite3.Connection:
        log = path.with_name(f"{path.name}-wal")
        if not log.exists() or not log.stat().st_size:
            return _connect(path, "immutable=1")
        self._copy = TemporaryDirectory(prefix="fedmq-ledger-")
        for file in (path, log):
            shutil.copyfile(file, Path(self._copy.name) / file.name)
        return _connect(Path(self._copy.name) / path.name, "mode=ro")

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.db.close()
        if self._copy is not None:
            with suppress(OSError):
                self._copy.cleanup()


def _connect(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
