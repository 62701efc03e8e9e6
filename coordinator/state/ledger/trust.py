"""Trust in a ledger: its files are plain, its tables are ours, and what fedmq did not write in it is a LedgerError."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fedmq.coordinator.state.ledger.schema import OLDEST_VERSION, TABLES, tables_since
from fedmq.schemas.errors import LedgerError, shown
from fedmq.schemas.local.files import check_plain

ADVICE = "Restore the run folder from a backup, or start a new run_id."
_OF_THE_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)


def unusable(path: Path, error: sqlite3.DatabaseError) -> LedgerError:
    """Return the error for a ledger that SQLite cannot use."""
    advice = "Make room on its disk, or let it be written." if of_the_disk(error) else ADVICE
    return LedgerError(f"ledger {path} cannot be used: {error}. {advice}")


def of_the_disk(error: sqlite3.DatabaseError) -> bool:
    """True if the disk refuses, and the ledger is whole."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _OF_THE_DISK


@contextlib.contextmanager
def believed(path: Path) -> Iterator[None]:
    """Raise LedgerError for whatever goes wrong inside with values that no fedmq wrote."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise LedgerError(
            f"ledger {path} holds values that fedmq did not write ({type(error).__name__}: "
            f"{shown(str(error), 200)}). {ADVICE}"
        ) from error


def check_files(path: Path) -> bool:
    """Return True if there is a ledger that SQLite may open. Raises LedgerError if one of its files is no plain one."""
    try:
        made = check_plain(path)
        for suffix in ("-wal", "-shm", "-journal"):
            check_plain(path.with_name(path.name + suffix))
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be used: {error}") from error
    return made


def tables_of(db: sqlite3.Connection) -> list[tuple[str, ...]]:
    """Return type, name and text of all that the database's schema has."""
    db.execute("PRAGMA trusted_schema = OFF")
    return sorted(db.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"))


@cache
def own_tables(ledger_version: int) -> list[tuple[str, ...]]:
    """Return what `tables_of` gives for a ledger that fedmq made in this format."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(TABLES + tables_since(OLDEST_VERSION, ledger_version))
        return tables_of(db)


def format_of(db: sqlite3.Connection) -> int:
    """Return the format of a ledger's tables."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def is_empty(db: sqlite3.Connection) -> bool:
    """Return True if the database has no tables yet."""
    return bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)
