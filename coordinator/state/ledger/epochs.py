"""Fencing epochs: which coordinator may write the run.

Whoever becomes the active coordinator begins a new epoch in the ledger, and every transaction checks that its own is
still the newest. A coordinator that was paused, or cut off, while another one took over finds a newer epoch when it
goes on: its transaction is refused, and what was not committed is not acked. Epoch 0 is that of a ledger in which
none has begun.

The functions take the ledger's connection, inside a transaction of its own.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime

from fedmq.coordinator.state.ledger.rows import EpochRow
from fedmq.schemas.errors import Deposed


def newest(db: sqlite3.Connection) -> EpochRow | None:
    """The one that may write; None where none has begun."""
    row = db.execute(
        "SELECT epoch, host, pid, began_wall_s, ended_wall_s FROM epochs ORDER BY epoch DESC LIMIT 1"
    ).fetchone()
    return None if row is None else EpochRow(*row)


def begin(db: sqlite3.Connection, host: str, pid: int, wall_s: float) -> int:
    """Depose whoever was active; returns the new epoch."""
    last = newest(db)
    epoch = 1 if last is None else last.epoch + 1
    db.execute("INSERT INTO epochs VALUES (?, ?, ?, ?, NULL)", (epoch, host, pid, wall_s))
    return epoch


def check(db: sqlite3.Connection, own: int) -> None:
    """Raise Deposed where `own` is not the newest epoch any more."""
    last = newest(db)
    if last is not None and last.epoch != own:
        raise Deposed(
            f"the run has been taken over by {shown(last)}; this coordinator had epoch {own}. What it had not "
            "committed is with the broker, which gives it to the active one"
        )


def end(db: sqlite3.Connection, own: int, wall_s: float) -> None:
    """Note that `own` is left on purpose. It may go on all the same: an epoch ends when the next one begins. What is
    written is its own row, so that this is the one thing that may be written after that."""
    db.execute("UPDATE epochs SET ended_wall_s = ? WHERE epoch = ?", (wall_s, own))


def shown(row: EpochRow) -> str:
    """For a person: who, and since when."""
    since = datetime.fromtimestamp(row.began_wall_s).astimezone().isoformat(" ", "seconds")
    return f"the coordinator with pid {row.pid} on {row.host} (epoch {row.epoch}, since {since})"
