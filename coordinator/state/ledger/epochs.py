"""Fencing epochs: which coordinator may write the run.

A coordinator that becomes the active one begins a new epoch in the ledger. Every transaction checks that its
coordinator's epoch is still the newest. A coordinator may be paused or cut off while another one takes over. When it
goes on, it finds the newer epoch: its transaction is refused, so updates that were not committed are not acked. Epoch
0 means that none has begun in this ledger.

The functions take the ledger's connection and run inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime

from fedmq.coordinator.state.ledger.rows import BrokerRow, EpochRow
from fedmq.schemas.errors import Deposed


def newest(db: sqlite3.Connection) -> EpochRow | None:
    """Return the epoch that may write; None if none has begun."""
    row = db.execute(
        "SELECT epoch, host, pid, began_wall_s, ended_wall_s FROM epochs ORDER BY epoch DESC LIMIT 1"
    ).fetchone()
    return None if row is None else EpochRow(*row)


def begin(db: sqlite3.Connection, host: str, pid: int, wall_s: float) -> int:
    """Depose the active coordinator, if there is one, and return the new epoch."""
    last = newest(db)
    epoch = 1 if last is None else last.epoch + 1
    db.execute("INSERT INTO epochs VALUES (?, ?, ?, ?, NULL)", (epoch, host, pid, wall_s))
    return epoch


def check(db: sqlite3.Connection, own: int) -> None:
    """Raise Deposed if `own` is not the newest epoch any more."""
    last = newest(db)
    if last is not None and last.epoch != own:
        raise Deposed(
            f"the run has been taken over by {shown(last)}; this coordinator had epoch {own}. The broker still has "
            "the updates that it had not committed, and gives them to the active one"
        )


def end(db: sqlite3.Connection, own: int, wall_s: float) -> None:
    """Note that the coordinator of epoch `own` leaves on purpose.

    This does not end the epoch: that happens when the next one begins. It is the one thing that may be written even
    after that, because it only changes the epoch's own row.
    """
    db.execute("UPDATE epochs SET ended_wall_s = ? WHERE epoch = ?", (wall_s, own))


def note_broker(db: sqlite3.Connection, own: int, row: BrokerRow) -> None:
    """Note a change of the connection to the broker, in place of the last one."""
    db.execute("INSERT OR REPLACE INTO connections VALUES (?, ?, ?, ?)", (own, row.state, row.detail, row.wall_s))


def broker(db: sqlite3.Connection) -> BrokerRow | None:
    """Return the last change of the newest epoch's connection; None if there was none."""
    row = db.execute(
        "SELECT state, detail, wall_s FROM connections WHERE epoch = (SELECT max(epoch) FROM epochs)"
    ).fetchone()
    return None if row is None else BrokerRow(*row)


def shown(row: EpochRow) -> str:
    """Name the epoch's coordinator for a person, with the time at which it became active."""
    try:
        since = datetime.fromtimestamp(row.began_wall_s).astimezone().isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        since = "a time that no clock shows"
    return f"the coordinator with pid {row.pid} on {row.host} (epoch {row.epoch}, since {since})"
