"""Tables on how the versions of a strategy that distils came about (coordinator.decisions.versions.distilling).

Each of them has a row that says if it was distilled, or why it is the plain mean. The tensors of a distilled version
are what a process has made with floating-point operations of its own. Another machine need not make the same bits, so
the archive keeps them, and a replay takes them from there.
"""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from fedmq.coordinator.decisions.commands import NewVersion
from fedmq.coordinator.state.ledger.archive_tables import file_name
from fedmq.coordinator.state.ledger.rows import ArchivedVersion

DISTILLATIONS_SINCE = 10
"""The ledger's format that added the tables."""

TABLES = """
CREATE TABLE distillations(         -- versions of a strategy that distils
    version INTEGER PRIMARY KEY,
    plain TEXT NOT NULL             -- why it is the plain mean; empty if it was distilled
) STRICT;
CREATE TABLE archive_versions(      -- tensors of distilled versions
    version INTEGER PRIMARY KEY,
    file TEXT NOT NULL,             -- inside archive/
    offset INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    crc32 INTEGER NOT NULL
) STRICT;
"""


class DistillationsReader:
    """The part of a LedgerReader that reads about distillations. A ledger of an older format has none."""

    @abstractmethod
    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def _format(self) -> int: ...

    def distillations(self, after: int = 0) -> dict[int, str]:
        """Return version -> why it is the plain mean, "" if it was distilled, for the versions above `after`."""
        if self._format() < DISTILLATIONS_SINCE:
            return {}
        return dict(self._rows("SELECT version, plain FROM distillations WHERE version > ? ORDER BY 1", after))

    def plain_versions(self) -> tuple[int, str]:
        """Return the number of versions that could not be distilled, and why the newest of them could not."""
        if self._format() < DISTILLATIONS_SINCE:
            return 0, ""
        rows = self._rows("SELECT count(*), max(version) FROM distillations WHERE plain != ''")
        count, newest = rows[0]
        return count, self._rows("SELECT plain FROM distillations WHERE version = ?", newest)[0][0] if count else ""

    def archived_versions(self, after: int = 0) -> dict[int, ArchivedVersion]:
        """Return the places of the distilled tensors of versions above `after`, by version."""
        if self._format() < DISTILLATIONS_SINCE:
            return {}
        rows = self._rows("SELECT * FROM archive_versions WHERE version > ? ORDER BY 1", after)
        return {version: ArchivedVersion(version, file_name(file), *rest) for version, file, *rest in rows}


def put_distillations(db: sqlite3.Connection, made: Iterable[NewVersion], archived: Iterable[ArchivedVersion]) -> None:
    """Insert the rows of new versions, in the transaction of their commit."""
    rows = [(new.version, new.plain) for new in made if new.plain is not None]
    db.executemany("INSERT INTO distillations VALUES (?, ?)", rows)
    places = [(row.version, row.file, row.offset, row.num_bytes, row.crc32) for row in archived]
    db.executemany("INSERT INTO archive_versions VALUES (?, ?, ?, ?, ?)", places)
