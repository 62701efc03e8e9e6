"""The bytes that tasks took down and accepted updates took up, as they travelled and as floats.

    wire      bodies of the messages: tensors in their codec, the envelopes' headers, manifest and chunks included
    decoded   the tensors as the coordinator computes with them

An update's bytes are written with its row, in one transaction, so they are there exactly once. A task's bytes are known
when the broker has it, and are written with the next commit, at the latest after `commit_interval_s`: a coordinator
that is killed in between has not counted them. A task that was sent again counts again.

A task that refers to a model in the stream of models (coordinator.service.outgoing.references) counts with the model:
its participant downloads it. The coordinator sent it once. `model_bytes` has what was sent, and what the tasks count.
"""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedmq.coordinator.decisions.events import Carried

TRAFFIC_SINCE = 8
"""The ledger's format that added the tables."""

MODELS_SINCE = 9
"""The format that added the table of models."""

MODEL_TABLES = """
CREATE TABLE model_bytes(           -- models that the coordinator published to the stream of models
    version INTEGER PRIMARY KEY,
    sent_bytes INTEGER NOT NULL,    -- by the coordinator, each publication once
    tasks INTEGER NOT NULL,         -- tasks that refer to one
    read_bytes INTEGER NOT NULL     -- what these tasks count for it in task_bytes
) STRICT;
"""
TABLES = """
CREATE TABLE update_bytes(          -- accepted updates
    accepted_order INTEGER PRIMARY KEY,
    wire_bytes INTEGER NOT NULL,
    decoded_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE task_bytes(            -- tasks that the broker has taken, repeats included
    seq INTEGER PRIMARY KEY,
    wire_bytes INTEGER NOT NULL,
    decoded_bytes INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of some messages together."""

    messages: int
    wire_bytes: int
    decoded_bytes: int

    @property
    def ratio(self) -> float | None:
        """Decoded bytes for each byte that travelled; None if nothing did."""
        return self.decoded_bytes / self.wire_bytes if self.wire_bytes else None


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """Bytes of models in the stream, and of the tasks that refer to them."""

    version: int
    """Version of the model; -1 for several together."""
    sent_bytes: int = 0
    """Bytes that the coordinator sent."""
    tasks: int = 0
    read_bytes: int = 0
    """Bytes that the participants of these tasks download."""

    @classmethod
    def read(cls, version: int, num_bytes: int) -> ModelBytes:
        """Return the entry of one task."""
        return cls(version, tasks=1, read_bytes=num_bytes)


NO_MODELS = ModelBytes(-1)


class TrafficReader:
    """The part of a LedgerReader that reads about bytes. A ledger of an older format has counted none."""

    @abstractmethod
    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def _format(self) -> int: ...

    def bytes_up(self) -> Traffic:
        """Return the bytes of the accepted updates, as far as they were counted."""
        return self._total("update_bytes")

    def bytes_down(self) -> Traffic:
        """Return the bytes of the tasks, as far as they were counted."""
        return self._total("task_bytes")

    def bytes_of_models(self, version: int | None = None) -> ModelBytes:
        """Return the bytes of the models in the stream, of one version or of all, as far as they were counted."""
        if self._format() < MODELS_SINCE:
            return ModelBytes(-1)
        query = "SELECT sum(sent_bytes), sum(tasks), sum(read_bytes) FROM model_bytes WHERE ? IN (version, -1)"
        asked = -1 if version is None else version
        return ModelBytes(asked, *(value or 0 for value in self._rows(query, asked)[0]))

    def bytes_of(self, version: int) -> dict[int, Carried]:
        """Return the bytes of each update in a version, by its order, as far as they were counted."""
        if self._format() < TRAFFIC_SINCE:
            return {}
        query = "SELECT accepted_order, wire_bytes, decoded_bytes FROM update_bytes JOIN updates USING (accepted_order)"
        return {order: Carried(*sizes) for order, *sizes in self._rows(f"{query} WHERE version = ?", version)}

    def counted_orders(self) -> list[int]:
        """Return the orders of the updates whose bytes were counted, in order."""
        if self._format() < TRAFFIC_SINCE:
            return []
        return [order for (order,) in self._rows("SELECT accepted_order FROM update_bytes ORDER BY 1")]

    def _total(self, table: str) -> Traffic:
        if self._format() < TRAFFIC_SINCE:
            return Traffic(0, 0, 0)
        query = f"SELECT count(*), coalesce(sum(wire_bytes), 0), coalesce(sum(decoded_bytes), 0) FROM {table}"  # noqa: S608
        return Traffic(*self._rows(query)[0])


def put_up(db: sqlite3.Connection, rows: Iterable[tuple[int, int, int]]) -> None:
    """Insert (order, wire bytes, decoded bytes) of accepted updates."""
    db.executemany("INSERT INTO update_bytes VALUES (?, ?, ?)", rows)


def put_down(db: sqlite3.Connection, rows: Iterable[tuple[int, int, int]]) -> None:
    """Add (seq, wire bytes, decoded bytes) of tasks that were sent."""
    db.executemany(
        "INSERT INTO task_bytes VALUES (?, ?, ?) ON CONFLICT(seq) DO UPDATE SET "
        "wire_bytes = wire_bytes + excluded.wire_bytes, decoded_bytes = decoded_bytes + excluded.decoded_bytes",
        rows,
    )


def put_models(db: sqlite3.Connection, rows: Iterable[ModelBytes]) -> None:
    """Add the bytes of models that were published, and of tasks that refer to one."""
    db.executemany(
        "INSERT INTO model_bytes VALUES (?, ?, ?, ?) ON CONFLICT(version) DO UPDATE SET "
        "sent_bytes = sent_bytes + excluded.sent_bytes, tasks = tasks + excluded.tasks, "
        "read_bytes = read_bytes + excluded.read_bytes",
        ((row.version, row.sent_bytes, row.tasks, row.read_bytes) for row in rows),
    )
