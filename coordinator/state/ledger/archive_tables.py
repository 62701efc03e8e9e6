"""The ledger's tables of the archive: the bases that a replay starts from, and the digests that it is compared with."""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from typing import Any

from fedmq.coordinator.state.ledger.rows import ArchivedUpdate, ArchivedVersion, Base
from fedmq.schemas.errors import LedgerError, shown
from fedmq.schemas.local.clocks import Moment

TABLES = """
CREATE TABLE states(                -- the state after each commit that changed it, for ever
    accepted INTEGER NOT NULL,      -- number of updates inside
    version INTEGER NOT NULL,
    digest TEXT NOT NULL,           -- of its checkpoint
    PRIMARY KEY (accepted, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE archive_bases(
    accepted INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    file TEXT NOT NULL,             -- inside archive/
    digest TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    wall_s REAL NOT NULL,           -- when it was made: schemas.local.clocks.Moment
    boot_s REAL NOT NULL,
    boot_id TEXT NOT NULL
) STRICT;
CREATE TABLE archive_updates(
    accepted_order INTEGER PRIMARY KEY,
    file TEXT NOT NULL,             -- inside archive/
    offset INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    crc32 INTEGER NOT NULL
) STRICT;
"""


def file_name(name: str) -> str:
    """Return a file's name. Raises LedgerError if it leads out of its folder: fedmq writes names alone."""
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise LedgerError(f"the ledger names the file {shown(name)}, which is not in the run's folder")
    return name


class ArchiveReader:
    """The part of a LedgerReader that reads about the archive."""

    @abstractmethod
    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]: ...

    def states(self) -> dict[tuple[int, int], str]:
        """Return the digest of every state that was committed: (updates inside, version) -> digest."""
        return {(n, version): digest for n, version, digest in self._rows("SELECT * FROM states")}

    def bases(self) -> list[Base]:
        """Return the bases, oldest first."""
        rows = self._rows("SELECT * FROM archive_bases ORDER BY accepted")
        return [
            Base(accepted, version, file_name(file), digest, num_bytes, Moment(*made))
            for accepted, version, file, digest, num_bytes, *made in rows
        ]

    def archived(self, after: int, up_to: int) -> list[ArchivedUpdate]:
        """Return the places of the tensors of updates above `after`, up to `up_to`, as far as they are kept."""
        query = "SELECT * FROM archive_updates WHERE accepted_order > ? AND accepted_order <= ? ORDER BY 1"
        rows = self._rows(query, after, up_to)
        return [ArchivedUpdate(order, file_name(file), *rest) for order, file, *rest in rows]

    def archived_up_to(self) -> int:
        """Return the order of the last update that the archive holds, in its newest base or after it."""
        updates = self._rows("SELECT coalesce(max(accepted_order), 0) FROM archive_updates")[0][0]
        return max(int(updates), *(base.accepted for base in self.bases()), 0)

    @abstractmethod
    def archived_versions(self, after: int = 0) -> Mapping[int, ArchivedVersion]: ...

    def archived_bytes(self, after: int = 0, after_version: int = 0) -> int:
        """Return the size of the updates above `after` and the versions above `after_version`, in bytes."""
        query = "SELECT coalesce(sum(num_bytes), 0) FROM archive_updates WHERE accepted_order > ?"
        versions = sum(row.num_bytes for row in self.archived_versions(after_version).values())
        return int(self._rows(query, after)[0][0]) + versions

    def archive_files(self) -> set[str]:
        """Return the names of all files that a row names."""
        named = self._rows("SELECT file FROM archive_bases UNION SELECT file FROM archive_updates")
        return {file_name(name) for (name,) in named} | {row.file for row in self.archived_versions().values()}


class ArchiveWriter(ArchiveReader):
    """The part of a Ledger that writes about the archive, apart from the rows of a commit."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]: ...

    def add_base(self, base: Base) -> None:
        """Add a state from which replays can start."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO archive_bases VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (base.accepted, base.version, base.file, base.digest, base.num_bytes, *astuple(base.made)),
            )

    def forget_archived(self, base: int) -> set[str]:
        """Drop the rows from before the base that holds `base` updates; return the files that no row names any more."""
        before = self.archive_files()
        with self._transaction() as db:
            db.execute(
                "DELETE FROM archive_versions WHERE version <= (SELECT version FROM archive_bases WHERE accepted = ?)",
                (base,),
            )
            db.execute("DELETE FROM archive_bases WHERE accepted < ?", (base,))
            db.execute("DELETE FROM archive_updates WHERE accepted_order <= ?", (base,))
        return before - self.archive_files()


def put_archived(db: sqlite3.Connection, rows: Sequence[ArchivedUpdate]) -> None:
    """Insert the rows of archived updates, in the transaction of their commit."""
    db.executemany(
        "INSERT INTO archive_updates VALUES (?, ?, ?, ?, ?)",
        [(row.accepted_order, row.file, row.offset, row.num_bytes, row.crc32) for row in rows],
    )
