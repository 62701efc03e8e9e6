"""The ledger's reader: the state and the history of a run, for the coordinator itself, for people and for studies.

Any number of `LedgerReader`s can read while one `Ledger` (coordinator.state.ledger.writer) writes. Each one is used
from the thread that opened it.

A reader believes nothing: the ledger is a plain file, its tables are those that this fedmq makes (so that no view and
no trigger of somebody else's runs), and a value that fedmq did not write is a LedgerError.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from fedmq.coordinator.decisions.events import Carried, ClosedTask
from fedmq.coordinator.decisions.records import OPEN_STATES, ParticipantRecord, TaskRecord
from fedmq.coordinator.decisions.tasks.generations import SetBack, set_backs_in
from fedmq.coordinator.state.ledger import epochs
from fedmq.coordinator.state.ledger.archive_tables import ArchiveReader, file_name
from fedmq.coordinator.state.ledger.distillations import DistillationsReader
from fedmq.coordinator.state.ledger.memories import from_rows
from fedmq.coordinator.state.ledger.opening import ReadOnly
from fedmq.coordinator.state.ledger.rows import (
    BrokerRow,
    CheckpointRow,
    EpochRow,
    EvaluationRow,
    FederatedMetricsRow,
    ParticipantRow,
    RunRow,
    UpdateRow,
    Verdict,
    VersionRow,
)
from fedmq.coordinator.state.ledger.schema import (
    APPLICATION_ID,
    CONNECTIONS_SINCE,
    LEDGER_VERSION,
    OLDEST_VERSION,
    TIMEOUTS_SINCE,
)
from fedmq.coordinator.state.ledger.traffic import TrafficReader
from fedmq.coordinator.state.ledger.trust import (
    ADVICE,
    believed,
    check_files,
    format_of,
    is_empty,
    own_tables,
    tables_of,
    unusable,
)
from fedmq.schemas.errors import LedgerError, shown
from fedmq.schemas.local.files import parse_json
from fedmq.schemas.parameters import Array

LAST_TASKS = 10_000
"""Number of tasks, the newest ones, in which the participants' last answers are looked for."""
_TASK_FIELDS = tuple(TaskRecord.__dataclass_fields__)
_UPDATE_FIELDS = tuple(name for name in UpdateRow.__dataclass_fields__ if name not in Carried._fields)


class LedgerReader(DistillationsReader, ArchiveReader, TrafficReader):
    """Read-only access to a ledger, also while a coordinator writes it.

    Raises LedgerError if the file is missing, corrupt, not a ledger, or in another format than this fedmq's.
    """

    _opened: ReadOnly | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = self._connect()
        with self._guarded():
            application_id = self._db.execute("PRAGMA application_id").fetchone()[0]
            ledger_version = format_of(self._db)
        if application_id != APPLICATION_ID:
            self.close()
            raise LedgerError(f"{path} is not a fedmq ledger: name the folder of a run")
        if not OLDEST_VERSION <= ledger_version <= LEDGER_VERSION:
            self.close()
            raise LedgerError(
                f"ledger {path} has format {ledger_version}, this fedmq reads {OLDEST_VERSION} to {LEDGER_VERSION}: "
                "use the fedmq that wrote it"
            )
        with self._guarded():
            tables = tables_of(self._db)
        if tables != own_tables(ledger_version):
            self.close()
            raise LedgerError(f"ledger {path} has other tables than fedmq makes. {ADVICE}")

    def _connect(self) -> sqlite3.Connection:
        if not check_files(self.path):
            raise LedgerError(f"there is no ledger at {self.path}: the run has not started yet, or the folder is wrong")
        try:
            self._opened = ReadOnly(self.path)
        except OSError as error:
            raise LedgerError(f"ledger {self.path} cannot be copied to be read: {error}") from error
        return self._opened.db

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._db.close()
        if self._opened is not None:
            self._opened.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise unusable(self.path, error) from error

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    def _format(self) -> int:
        with self._guarded():
            return format_of(self._db)

    def _object(self, text: str) -> dict[str, Any]:
        with believed(self.path):
            found = parse_json(text)
            if not isinstance(found, dict):
                raise TypeError(f"{shown(text)}, expected an object")
        return found

    def _metrics(self, text: str) -> dict[str, float]:
        found = self._object(text)
        if any(type(value) not in (int, float) for value in found.values()):
            raise LedgerError(f"ledger {self.path} has metrics that are no numbers: {shown(text)}. {ADVICE}")
        return found

    def run(self) -> RunRow:
        """Return the run's own row."""
        rows = self._rows(
            "SELECT run_id, run_uid, settings, created_wall_s, elapsed_s, committed_wall_s, finished FROM run"
        )
        if not rows:
            raise LedgerError(f"ledger {self.path} holds no run: it was never filled; remove it and start again")
        run_id, run_uid, settings, *rest = rows[0]
        if not all(math.isfinite(moment) for moment in rest[:3]) or rest[1] < 0:
            raise LedgerError(f"ledger {self.path} holds times that no clock shows: {rest[:3]}. {ADVICE}")
        return RunRow(run_id, run_uid, self._object(settings), *rest)

    def is_new(self) -> bool:
        """Return True if no run was created in this ledger yet."""
        return not self._rows("SELECT 1 FROM run")

    def newest_epoch(self) -> EpochRow | None:
        """Return the epoch of the coordinator that is active, or was the last one; None before the first."""
        with self._guarded():
            return epochs.newest(self._db)

    def broker(self) -> BrokerRow | None:
        """Return the last change of the newest epoch's connection to the broker; None if there was none."""
        older = self._format() < CONNECTIONS_SINCE
        with self._guarded():
            return None if older else epochs.broker(self._db)

    def checkpoints(self) -> list[CheckpointRow]:
        """Return the kept checkpoints, newest first. The first one is the run's state."""
        rows = self._rows("SELECT seq, file, digest, version, accepted, scalars FROM checkpoints ORDER BY seq DESC")
        return [
            CheckpointRow(seq, file_name(file), digest, v, n, self._object(scalars))
            for seq, file, digest, v, n, scalars in rows
        ]

    def version(self) -> int:
        """Return the newest committed version; 0 is the initial model."""
        return int(self._rows("SELECT coalesce(max(version), 0) FROM versions")[0][0])

    def versions(self, after: int = 0) -> list[VersionRow]:
        """Return the versions above `after`, in order."""
        query = "SELECT version, num_updates, run_s, wall_s FROM versions WHERE version > ? ORDER BY version"
        rows = self._rows(query, after)
        by_timeout = set(self._timeouts("version", after))  # read last: it has all of these versions
        plain = self.distillations(after)
        return [VersionRow(n, count, run_s, at_s, n in by_timeout, plain.get(n)) for n, count, run_s, at_s in rows]

    def timeouts(self) -> int:
        """Count the versions that the timeout of a buffer made, which was not full."""
        return sum(self._timeouts("count(*)", 0))

    def _timeouts(self, column: str, after: int) -> list[int]:
        if self._format() < TIMEOUTS_SINCE:
            return []
        return [n for (n,) in self._rows(f"SELECT {column} FROM timeouts WHERE version > ?", after)]  # noqa: S608

    def evaluations(self) -> list[EvaluationRow]:
        """Return all central evaluations in the order of their arrival."""
        rows = self._rows("SELECT version, metrics, detail, run_s, wall_s FROM evaluations ORDER BY id")
        return [EvaluationRow(row[0], self._metrics(row[1]), *row[2:]) for row in rows]

    def updates(self, after: int = 0, limit: int = -1) -> list[UpdateRow]:
        """Return the accepted updates whose order is above `after`, in order; a limit of -1 means no limit."""
        return self._updates("accepted_order > ?", after, limit=limit)

    def _updates(self, where: str, *values: object, limit: int = -1) -> list[UpdateRow]:
        fields = ", ".join(_UPDATE_FIELDS)
        query = f"SELECT {fields} FROM updates WHERE {where} ORDER BY accepted_order LIMIT ?"  # noqa: S608
        rows = (dict(zip(_UPDATE_FIELDS, row, strict=True)) for row in self._rows(query, *values, limit))
        return [UpdateRow(**{**row, "metrics": self._metrics(row["metrics"])}) for row in rows]

    def federated_metrics(self, after: int = 0) -> list[FederatedMetricsRow]:
        """Return the mean metrics of the updates in each version above `after`, in order of the versions."""
        rows = self._rows(
            "SELECT version, num_examples, metrics FROM updates WHERE version > ? ORDER BY version, accepted_order",
            after,
        )
        return [
            FederatedMetricsRow(version, len(updates), _means([(n, self._metrics(text)) for _, n, text in updates]))
            for version, updates in ((version, list(group)) for version, group in groupby(rows, lambda row: row[0]))
        ]

    def updates_in(self, version: int) -> list[UpdateRow]:
        """Return the updates that made a version, in the order of their acceptance."""
        rows, sizes = self._updates("version = ?", version), self.bytes_of(version)
        return [replace(row, **sizes[at]._asdict()) if (at := row.accepted_order) in sizes else row for row in rows]

    def accepted_tasks(self) -> list[TaskRecord]:
        """Return the tasks whose update was accepted, in order of issue."""
        query = f"SELECT {', '.join(_TASK_FIELDS)} FROM tasks WHERE state = 'accepted' ORDER BY seq"  # noqa: S608
        return [TaskRecord(*row) for row in self._rows(query)]

    def tasks_without_update(self) -> dict[str, dict[str, int]]:
        """Count the tasks of each participant that it `declined`, and those that `lapsed` and gave no update."""
        rows = self._rows(
            "SELECT participant_id, iif(state = 'declined', 'declined', 'lapsed'), count(*) FROM tasks "
            "WHERE state IN ('declined', 'lapsed') OR (state = 'withdrawn' AND "
            "(detail LIKE 'lapsed, and too stale%' OR detail LIKE 'more than % lapsed tasks')) GROUP BY 1, 2"
        )
        found: dict[str, dict[str, int]] = {}
        for participant_id, kind, count in rows:
            found.setdefault(participant_id, {})[kind] = count
        return found

    def last_declines(self) -> dict[str, str]:
        """Return why each participant declined the last task that it answered. Participants that did not are left out,
        and so is whatever is older than the newest LAST_TASKS tasks."""
        rows = self._rows(
            "SELECT participant_id, state, detail, max(seq) FROM tasks WHERE state IN ('accepted', 'discarded', "
            "'declined') AND seq > (SELECT max(seq) FROM tasks) - ? GROUP BY participant_id",
            LAST_TASKS,
        )
        return {participant_id: detail for participant_id, state, detail, _ in rows if state == "declined"}

    def discarded_updates(self) -> list[tuple[str, str]]:
        """Return (update_id, reason) of the discarded updates that could be decoded, in the order of their arrival."""
        return self._rows("SELECT update_id, reason FROM discards WHERE update_id IS NOT NULL ORDER BY id")

    def discard_claims(self) -> list[tuple[str, str, str, str]]:
        """Return (update_id, reason, task_id, participant_id) of the discarded updates that could be decoded. The ids
        are what the sender claimed."""
        columns = "update_id, reason, task_id, participant_id"
        return self._rows(f"SELECT {columns} FROM discards WHERE update_id IS NOT NULL ORDER BY id")  # noqa: S608

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Make all reads inside this context see the same commit, whatever a coordinator writes meanwhile."""
        with self._guarded():
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    def accepted(self) -> int:
        """Return the number of accepted updates."""
        return int(self._rows("SELECT count(*) FROM updates")[0][0])

    def accepted_by_participant(self) -> dict[str, int]:
        """Count the accepted updates of each participant that has any."""
        return dict(self._rows("SELECT participant_id, count(*) FROM updates GROUP BY participant_id ORDER BY 1"))

    def discarded(self) -> dict[str, int]:
        """Count the discarded updates by reason, most frequent reason first. Not each of them has a row."""
        checkpoints = self.checkpoints()
        counts = checkpoints[0].scalars.get("discarded", {}) if checkpoints else {}
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def discard_rows(self) -> dict[str, int]:
        """Count the rows of discarded updates, by reason."""
        return dict(self._rows("SELECT reason, count(*) FROM discards GROUP BY reason ORDER BY reason"))

    def clamped(self) -> dict[str, int]:
        """Count the accepted updates in which a claim was clamped, by the claim's name (decisions.updates.claims)."""
        checkpoints = self.checkpoints()
        return dict(checkpoints[0].scalars.get("clamped", {})) if checkpoints else {}

    def set_backs(self) -> list[SetBack]:
        """Return the times at which the ledger turned out to be older than its run, oldest first."""
        checkpoints = self.checkpoints()
        with believed(self.path):
            return set_backs_in(checkpoints[0].scalars) if checkpoints else []

    def staleness(self) -> dict[int, int]:
        """Count the accepted updates by staleness."""
        return dict(self._rows("SELECT staleness, count(*) FROM updates GROUP BY staleness ORDER BY staleness"))

    def participants(self) -> list[ParticipantRow]:
        """Return all known participants, sorted by id.

        Each was last seen `run().elapsed_s - record.last_seen_s` seconds before the last commit.
        """
        rows = self._rows("SELECT record, wall_s FROM participants ORDER BY participant_id")
        with believed(self.path):
            return [ParticipantRow(_participant(record), wall_s) for record, wall_s in rows]

    def open_tasks(self) -> list[TaskRecord]:
        """Return the tasks whose update is still welcome, in order of issue."""
        states = ", ".join(repr(state) for state in sorted(OPEN_STATES))
        query = f"SELECT {', '.join(_TASK_FIELDS)} FROM tasks WHERE state IN ({states}) ORDER BY seq"  # noqa: S608
        return [TaskRecord(*row) for row in self._rows(query)]

    def memories(self) -> dict[str, dict[str, Array]]:
        """Return the strategy's memories of participants, as `Changes.memories` gave them.

        Raises LedgerError if they are damaged.
        """
        return from_rows(
            self._rows("SELECT participant_id, tensor, dtype, shape, crc32, bytes FROM memories ORDER BY rowid")
        )

    def has_task(self, task_id: str) -> bool:
        """Return True if a task of this id was ever issued."""
        return bool(self._rows("SELECT 1 FROM tasks WHERE task_id = ?", task_id))

    def closed_task(self, task_id: str) -> ClosedTask | None:
        """Return a task that ended; None if it is open, or never existed."""
        rows = self._rows("SELECT participant_id, state FROM tasks WHERE task_id = ?", task_id)
        if not rows or rows[0][1] in OPEN_STATES:
            return None
        return ClosedTask(task_id, *rows[0])

    def verdict(self, task_id: str) -> Verdict | None:
        """Return the verdict that a receipt for this task carries; None if it is open, or never existed."""
        task = self.closed_task(task_id)
        if task is None:
            return None
        found = self._rows("SELECT update_id, version FROM updates WHERE task_id = ?", task_id)
        if found:
            return Verdict(task_id, task.participant_id, "accepted", *found[0])
        found = self._rows("SELECT update_id, reason FROM discards WHERE task_id = ? ORDER BY id LIMIT 1", task_id)
        if found:
            return Verdict(task_id, task.participant_id, "discarded", found[0][0], None, found[0][1])
        detail = self._rows("SELECT detail FROM tasks WHERE task_id = ?", task_id)[0][0]
        return Verdict(task_id, task.participant_id, task.state, detail=detail)


def open_if_made(path: Path) -> LedgerReader | None:
    """Open a reader; None if there is no ledger yet, or if another process is just making it."""
    if not check_files(path):
        return None
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        if is_empty(db):
            return None
    except sqlite3.DatabaseError:
        pass  # the reader raises an error that says what is wrong
    finally:
        db.close()
    return LedgerReader(path)


def _means(updates: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return each metric's mean, weighted by `num_examples`. The weights are parts of 1, so that no sum overflows."""
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for _, metrics in updates for name in metrics):
        values = [(n, metrics[name]) for n, metrics in updates if name in metrics]
        total = sum(n for n, _ in values)
        means[name] = math.fsum(n / total * value for n, value in values)
    return means


def _participant(text: str) -> ParticipantRecord:
    fields = parse_json(text)
    codecs = tuple(fields.get("codecs", ()))  # a ledger of an older fedmq does not have them
    return ParticipantRecord(**{**fields, "replies": tuple(fields["replies"]), "codecs": codecs})
