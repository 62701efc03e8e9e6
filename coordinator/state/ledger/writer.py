"""The ledger: a SQLite file that says which updates, with which staleness and weight, made each model version.

One `Ledger` writes, from the thread that opened it: WAL, synchronous=FULL, one transaction a commit, in its own epoch
(coordinator.state.ledger.epochs). Any number of `LedgerReader`s (coordinator.state.ledger.reader) read meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmq.coordinator.decisions.records import ParticipantRecord, TaskRecord
from fedmq.coordinator.state.ledger import epochs, traffic
from fedmq.coordinator.state.ledger.archive_tables import ArchiveWriter, put_archived
from fedmq.coordinator.state.ledger.distillations import put_distillations
from fedmq.coordinator.state.ledger.memories import to_rows
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import ArchivedUpdate, ArchivedVersion, BrokerRow, CheckpointRow, CommitGroup
from fedmq.coordinator.state.ledger.schema import APPLICATION_ID, LEDGER_VERSION, OLDEST_VERSION, TABLES, tables_since
from fedmq.coordinator.state.ledger.trust import check_files, format_of, is_empty, of_the_disk, unusable
from fedmq.schemas.errors import LedgerError, LedgerLocked
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.local.files import FILE_MODE, tighten

log = EventLog(__name__)

_WAL_TRIES, _WAL_PAUSE_S = 100, 0.02
_PARTICIPANT_FIELDS = tuple(ParticipantRecord.__dataclass_fields__)
_TASK_FIELDS = tuple(TaskRecord.__dataclass_fields__)


class Ledger(LedgerReader, ArchiveWriter):
    """The one writer, from `take_over` until another coordinator takes over. Then every transaction raises Deposed."""

    epoch = 0
    """The epoch of this writer; 0 before `take_over`."""
    _written: Mapping[Path, tuple[int, int]] = {}
    """Device and inode of the files that this writer writes, since `take_over`."""

    def _connect(self) -> sqlite3.Connection:
        _prepare(self.path)
        db = sqlite3.connect(self.path, isolation_level=None)
        try:
            _turn_to_wal(db)
            db.execute("PRAGMA synchronous = FULL")
            if is_empty(db):
                _fill(db)
        except sqlite3.DatabaseError as error:
            db.close()
            if of_the_disk(error):
                raise OSError(f"ledger {self.path}: {error}") from error
            raise unusable(self.path, error) from error
        return db

    def take_over(self, host: str, pid: int, wall_s: float) -> int:
        """Begin an epoch, which belongs to this writer from now on, and return it.

        Call it before you read anything that a decision rests on. `host`, `pid` and `wall_s` are for people. A ledger
        of an older format gets the tables that it lacks.

        Raises OSError if the disk refuses, and LedgerLocked if another process is stuck in the middle of a
        transaction.
        """
        try:
            with self._transaction(fenced=False) as db:
                _make(db, tables_since(format_of(db)))
                epoch = epochs.begin(db, host, pid, wall_s)
        except OSError as error:
            if getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise LedgerLocked(str(error)) from error
            raise
        self.epoch = epoch
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        self._written = {file: place for file in files if (place := _place(file)) is not None}
        return epoch

    def in_place(self) -> bool:
        """False if a file that this writer writes was moved, replaced or removed since `take_over`.

        SQLite goes on writing it all the same, and nobody finds it again.
        """
        try:
            return all(_place(file) == place for file, place in self._written.items())
        except OSError:  # a disk that does not answer has lost nothing yet
            return True

    def check_epoch(self) -> None:
        """Raise Deposed if another coordinator has taken over."""
        with self._guarded():
            epochs.check(self._db, self.epoch)

    def note_broker(self, row: BrokerRow) -> None:
        """Note a change of the connection to the broker. Raises OSError if the disk refuses, and Deposed."""
        with self._transaction() as db:
            epochs.note_broker(db, self.epoch, row)

    def leave(self, wall_s: float) -> None:
        """Note that this coordinator leaves on purpose, even if another one has begun the next epoch meanwhile.

        The note is for people and says nothing about the run.
        """
        with self._transaction(fenced=False) as db:
            epochs.end(db, self.epoch, wall_s)

    def create(
        self, run_id: str, run_uid: str, settings: Mapping[str, Any], wall_s: float, first: CheckpointRow
    ) -> None:
        """Write the run's row and its version 0, in one transaction."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO run VALUES (1, ?, ?, ?, ?, 0.0, ?, NULL)",
                (run_id, run_uid, json.dumps(settings), wall_s, wall_s),
            )
            self._put_checkpoint(db, first, 0.0, wall_s)

    def resume(self, settings: Mapping[str, Any]) -> None:
        """Store the settings that the run goes on with."""
        with self._transaction() as db:
            db.execute("UPDATE run SET settings = ?", (json.dumps(settings),))

    def commit(self, group: CommitGroup, state: CheckpointRow, run_s: float, wall_s: float, keep: int = 2) -> None:
        """Write everything in one transaction.

        A `state` with the newest checkpoint's `seq` renews that row's scalars; one with a higher `seq` is a new row.
        The newest `keep` checkpoints stay.

        Raises OSError if the disk refuses (if it is full, for example); nothing was written, so the caller can try
        again. Raises LedgerError if the file is damaged. Raises Deposed if another coordinator has taken over; nothing
        was written then either.
        """
        with self._transaction() as db:
            self._put_checkpoint(db, state, run_s, wall_s)
            db.execute("DELETE FROM checkpoints WHERE seq <= ?", (state.seq - keep,))
            db.executemany(
                "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?, ?, ?, ?, ?, ?)",
                _update_values(group),
            )
            db.executemany(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                [(n.version, len(n.update_ids), at.run_s, at.wall_s, state.seq) for n, at in group.versions],
            )
            db.executemany("INSERT INTO timeouts VALUES (?)", [(n.version,) for n, _ in group.versions if n.by_timeout])
            db.executemany(
                "UPDATE updates SET version = ?, weight = ? WHERE update_id = ?",
                [
                    (new.version, weight, update_id)
                    for new, _ in group.versions
                    for update_id, weight in zip(new.update_ids, new.weights, strict=True)
                ],
            )
            db.executemany("INSERT INTO discards VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _discard_values(group))
            db.executemany(
                "INSERT INTO discards SELECT NULL, ?, ?, update_id, task_id, participant_id, base_version, staleness, "
                "?, ? FROM updates WHERE update_id = ?",
                [
                    (drop.reason, drop.detail, at.run_s, at.wall_s, update_id)
                    for drop, at in group.drops
                    for update_id in drop.update_ids
                ],
            )
            db.executemany(
                "INSERT INTO evaluations VALUES (NULL, ?, ?, ?, ?, ?)",
                [
                    (e.version, json.dumps(dict(e.metrics)), e.detail, at.run_s, at.wall_s)
                    for e, at in group.evaluations
                ],
            )
            db.executemany(
                "INSERT OR REPLACE INTO tasks VALUES (:seq, :task_id, :participant_id, :base_version, :issued_s, "
                ":lease_until_s, :state, :detail, :sent_s, :repeats)",
                [{name: getattr(task, name) for name in _TASK_FIELDS} for task in group.tasks.values()],
            )
            db.executemany("DELETE FROM participants WHERE participant_id = ?", [(gone,) for gone in group.forgotten])
            db.executemany(
                "INSERT OR REPLACE INTO participants VALUES (?, ?, ?)",
                [
                    (p.participant_id, json.dumps({name: getattr(p, name) for name in _PARTICIPANT_FIELDS}), wall_s)
                    for p in group.participants.values()
                ],
            )
            db.executemany("INSERT OR REPLACE INTO memories VALUES (?, ?, ?, ?, ?, ?)", to_rows(group.memories))
            put_archived(db, [row for row in group.archived if isinstance(row, ArchivedUpdate)])
            put_distillations(
                db,
                (made for made, _ in group.versions),
                (row for row in group.archived if isinstance(row, ArchivedVersion)),
            )
            traffic.put_up(db, ((a.order, *a.carried) for a, _ in group.accepted if a.carried is not None))
            traffic.put_down(db, group.sent)
            traffic.put_models(db, group.models)
            db.execute(
                "UPDATE run SET elapsed_s = ?, committed_wall_s = ?, finished = ?", (run_s, wall_s, group.finished)
            )

    @staticmethod
    def _put_checkpoint(db: sqlite3.Connection, row: CheckpointRow, run_s: float, wall_s: float) -> None:
        db.execute(
            "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (row.seq, row.file, row.digest, row.version, row.accepted, json.dumps(row.scalars), run_s, wall_s),
        )
        db.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (row.accepted, row.version, row.digest))

    @contextlib.contextmanager
    def _transaction(self, *, fenced: bool = True) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if fenced:
                epochs.check(self._db, self.epoch)
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"ledger {self.path}: {error}") from error
            if isinstance(error, sqlite3.DatabaseError):
                raise LedgerError(f"ledger {self.path} refused a commit: {error}") from error
            raise


def in_doubt(error: OSError) -> bool:
    """Return True if the refused transaction may be in the ledger after all, once another process opens it.

    SQLite may have written the transaction's end without being able to sync it. As long as this process lives, the
    ledger does not have the transaction.
    """
    code = getattr(error.__cause__, "sqlite_errorcode", sqlite3.SQLITE_IOERR)
    return code & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)


def _prepare(path: Path) -> None:
    """Make the file if it is missing, and close the ledger's files to other users: SQLite gives -wal and -shm the mode
    of the ledger itself.

    No file that is there is opened: closing it again would drop the locks of this process's other connections.
    """
    try:
        if not check_files(path):
            with contextlib.suppress(FileExistsError):  # another coordinator has just made it
                path.touch(FILE_MODE, exist_ok=False)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                tighten(path.with_name(path.name + suffix))
    except PermissionError as error:
        log.warning("ledger_open_to_others", file=path, error=error, detail="its owner should close it: chmod go-rwx")


def _turn_to_wal(db: sqlite3.Connection) -> None:
    """Turn WAL on. SQLite does not wait for this change as it does for others: if two coordinators make the ledger at
    the same moment, one is told at once that it is locked. The other one's change then serves both."""
    for tries_left in reversed(range(_WAL_TRIES)):
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not tries_left:
                raise
            time.sleep(_WAL_PAUSE_S)
        else:
            return


def _fill(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    if is_empty(db):  # check again: another coordinator may have started at the same moment
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _make(db, TABLES + tables_since(OLDEST_VERSION))
    db.execute("COMMIT")


def _make(db: sqlite3.Connection, tables: str) -> None:
    """Make tables inside a transaction; the ledger then has the newest format."""
    for statement in tables.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {LEDGER_VERSION}")


def _update_values(group: CommitGroup) -> list[tuple[Any, ...]]:
    return [
        (
            a.order, a.update.update_id, a.update.task_id, a.update.participant_id, a.update.base_version, a.staleness,
            a.client_weight, a.update.num_examples, a.update.num_steps, json.dumps(a.update.metrics), a.update.train_s,
            at.run_s, at.wall_s, a.group,
        )
        for a, at in group.accepted
    ]  # fmt: skip


def _discard_values(group: CommitGroup) -> list[tuple[Any, ...]]:
    return [
        (
            d.reason, d.detail, *((u.update_id, u.task_id, u.participant_id, u.base_version) if u else (None,) * 4),
            d.staleness, at.run_s, at.wall_s,
        )
        for d, at in group.discards
        for u in (d.update,)
    ]  # fmt: skip


def _place(file: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None if it is not there."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
