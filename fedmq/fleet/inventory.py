"""The inventory: a SQLite file that says which devices there are, their certificates, tokens and requests.

Rules
1. A row is on the disk (synchronous=FULL) before anything outside this file follows from it: a broker's user, a bundle,
   a certificate that leaves this host.
2. Every step may be done again. A command that was killed is run again, and goes on from the rows.
3. A device's state only goes forward: enrolling, enrolled, revoking, revoked. A revoked id never comes back, because
   the broker knows a certificate by its common name alone.
4. Several processes use one file: the coordinator and the commands. Each write is one transaction that begins with the
   lock.
5. Any thread may call an inventory. A thread that must not wait has one of its own: a write waits for those of other
   processes, and holds the others of its inventory back meanwhile.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmq.fleet.rows import TABLES, CertificateRow, Device, Request, Standing, State, Token
from fedmq.schemas.errors import ConfigError, FleetError

APPLICATION_ID = 0x666C6571
VERSION = 1
BUSY_S = 30.0
"""Longest wait for another process's transaction."""


class Inventory:
    """An open inventory. Close it, or use it as a context manager."""

    def __init__(self, path: Path, look_s: float = 0.0) -> None:
        """Open the file. `standing` and `max_examples` look at it for changes of other processes at most once in
        `look_s`, because a look takes as long as a small message.

        Raises FleetError if there is none, or if it cannot be used.
        """
        self.path = path
        self._look_s = look_s
        self._look_at = float("-inf")
        self._lock = threading.RLock()
        if not path.is_file():
            raise FleetError(f"There is no inventory {path}: make a fleet with `fedmq fleet init`, or name its folder.")
        self._db = self._connect()
        self._seen_version = -1
        self._standings: dict[str, tuple[State, int | None]] = {}

    @classmethod
    def create(cls, path: Path) -> Inventory:
        """Make the file (mode 0600), if it is not there, and open it."""
        if not path.exists():
            path.touch(mode=0o600)
        return cls(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Inventory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
        db.row_factory = sqlite3.Row
        try:
            db.execute("PRAGMA journal_mode = WAL")  # whoever reads waits for nobody
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")
            application, version = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if (application, version) == (0, 0) and not db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            elif (application, version) != (APPLICATION_ID, VERSION):
                raise FleetError(f"{self.path} is no inventory of this version of fedmq: restore it from a backup.")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            db.close()
            raise FleetError(f"The inventory {self.path} cannot be used: {error}.") from error
        except FleetError:
            db.close()
            raise
        return db

    # Facts of the whole fleet

    def fact(self, name: str) -> str | None:
        """Return a value that `set_fact` stored."""
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        return None if row is None else str(row["value"])

    def set_fact(self, name: str, value: str) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
            )

    # Devices

    def device(self, device_id: str) -> Device | None:
        row = self._one("SELECT * FROM devices WHERE id = ?", device_id)
        return None if row is None else _device(row)

    def devices(self) -> list[Device]:
        """Return all devices, by id."""
        return [_device(row) for row in self._all("SELECT * FROM devices ORDER BY id")]

    def begin_enrolment(self, device_id: str, now_s: float, max_examples: int | None = None) -> Device:
        """Add a device in the state "enrolling", or return the one that is there.

        Raises ConfigError if the id was revoked, or differs from another one by capitals alone.
        """
        with self._transaction() as db:
            other = db.execute("SELECT id FROM devices WHERE folded = ?", (device_id.casefold(),)).fetchone()
            if other is not None and other["id"] != device_id:
                raise ConfigError(
                    f'"{device_id}" differs from the device "{other["id"]}" by capitals alone: choose another id.'
                )
            db.execute(
                "INSERT INTO devices (id, folded, state, created_s) VALUES (?, ?, 'enrolling', ?) "
                "ON CONFLICT DO NOTHING",
                (device_id, device_id.casefold(), now_s),
            )
            if max_examples is not None:
                db.execute("UPDATE devices SET max_examples = ? WHERE id = ?", (max_examples, device_id))
            device = _device(db.execute("SELECT * FROM devices WHERE id = ?", (device_id,)).fetchone())
            if device.state in ("revoking", "revoked"):  # the transaction changes nothing then
                raise ConfigError(
                    f'"{device_id}" was revoked. The broker knows a device by its name alone, so a revoked id is never '
                    "enrolled again: choose another id."
                )
            return device

    def enrolled(self, device_id: str) -> None:
        """Note that a device has its user and its bundle. A device that is revoked meanwhile stays so."""
        with self._transaction() as db:
            db.execute("UPDATE devices SET state = 'enrolled' WHERE id = ? AND state = 'enrolling'", (device_id,))

    def begin_revocation(self, device_id: str, now_s: float) -> Device:
        """Take a device's standing. Raises ConfigError if there is no such device."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM devices WHERE id = ?", (device_id,)).fetchone()
            if row is None:
                raise ConfigError(f'There is no device "{device_id}": `fedmq fleet list` shows those that there are.')
            db.execute(
                "UPDATE devices SET state = 'revoking', revoked_s = ? "
                "WHERE id = ? AND state NOT IN ('revoking', 'revoked')",
                (now_s, device_id),
            )
            db.execute("DELETE FROM requests WHERE device_id = ?", (device_id,))
            return _device(row)

    def revoked(self, device_id: str) -> None:
        """Note that a device's user and objects are gone from the broker."""
        with self._transaction() as db:
            db.execute("UPDATE devices SET state = 'revoked' WHERE id = ? AND state = 'revoking'", (device_id,))
            db.execute("UPDATE tokens SET state = 'closed' WHERE device_id = ?", (device_id,))

    # The coordinator's questions

    def standing(self, participant_id: str) -> Standing:
        """Return whether a participant is one of the fleet. Reads the rows only if another process changed the file."""
        found = self._standing_of(participant_id)
        if found is None:
            return "unknown"
        return "revoked" if found[0] in ("revoking", "revoked") else "enrolled"

    def max_examples(self, participant_id: str) -> int | None:
        """Return the most examples that a device may claim; None if the fleet sets no limit for it."""
        found = self._standing_of(participant_id)
        return None if found is None else found[1]

    def _standing_of(self, participant_id: str) -> tuple[State, int | None] | None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look()
            self._look_at = now + self._look_s
        return self._standings.get(participant_id)

    def _look(self) -> None:
        with self._guarded() as db:
            # Counts the commits of other connections; those of ours set _seen_version back.
            version = db.execute("PRAGMA data_version").fetchone()[0]
            if version != self._seen_version:
                rows = db.execute("SELECT id, state, max_examples FROM devices").fetchall()
                self._standings = {row["id"]: (row["state"], row["max_examples"]) for row in rows}
                self._seen_version = version

    # Certificates

    def add_certificate(self, row: CertificateRow) -> CertificateRow:
        """Note a certificate, before it leaves this host, and return the one of its key: another process may have
        signed meanwhile. The key's request waits no more."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key_id) DO NOTHING",
                (
                    row.serial, row.device_id, row.key_id, row.certificate, row.not_before_s, row.not_after_s,
                    row.installed_s,
                ),
            )  # fmt: skip
            db.execute("DELETE FROM requests WHERE key_id = ?", (row.key_id,))
            return CertificateRow(*db.execute("SELECT * FROM certificates WHERE key_id = ?", (row.key_id,)).fetchone())

    def certificate_of_key(self, key_id: str) -> CertificateRow | None:
        row = self._one("SELECT * FROM certificates WHERE key_id = ?", key_id)
        return None if row is None else CertificateRow(*row)

    def certificates(self, device_id: str) -> list[CertificateRow]:
        """Return a device's certificates, the one that ends last at the end."""
        rows = self._all("SELECT * FROM certificates WHERE device_id = ? ORDER BY not_after_s, rowid", device_id)
        return [CertificateRow(*row) for row in rows]

    def installed(self, device_id: str, key_id: str, now_s: float) -> None:
        """Note that a device uses a certificate."""
        with self._transaction() as db:
            db.execute(
                "UPDATE certificates SET installed_s = ? WHERE device_id = ? AND key_id = ? AND installed_s IS NULL",
                (now_s, device_id, key_id),
            )

    def forget_certificates(self, ended_before_s: float) -> None:
        """Drop the rows of certificates that ended before this time."""
        with self._transaction() as db:
            db.execute("DELETE FROM certificates WHERE not_after_s < ?", (ended_before_s,))

    # Tokens

    def begin_token(self, user: str, device_id: str, now_s: float, expires_s: float) -> None:
        """Add a token in the state "making"."""
        with self._transaction() as db:
            db.execute("INSERT INTO tokens VALUES (?, ?, 'making', ?, ?, NULL)", (user, device_id, now_s, expires_s))

    def token(self, user: str) -> Token | None:
        row = self._one("SELECT * FROM tokens WHERE user = ?", user)
        return None if row is None else Token(*row)

    def tokens(self) -> list[Token]:
        """Return all tokens, the oldest first."""
        return [Token(*row) for row in self._all("SELECT * FROM tokens ORDER BY created_s, user")]

    def open_token(self, user: str) -> None:
        """Note that a token's user and file are made."""
        with self._transaction() as db:
            db.execute("UPDATE tokens SET state = 'open' WHERE user = ? AND state = 'making'", (user,))

    def bind_token(self, user: str, key_id: str, now_s: float) -> Token | None:
        """Bind a key to an open token that has not expired, if no key is bound to it yet. Return the token as it is
        then; None if there is none.

        Two devices that come at once get the same answer: the token of whoever came first.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE tokens SET key_id = ?, state = 'used' "
                "WHERE user = ? AND key_id IS NULL AND state = 'open' AND expires_s > ?",
                (key_id, user, now_s),
            )
            row = db.execute("SELECT * FROM tokens WHERE user = ?", (user,)).fetchone()
            return None if row is None else Token(*row)

    def close_token(self, user: str) -> None:
        """Note that a token's user is gone from the broker."""
        with self._transaction() as db:
            db.execute("UPDATE tokens SET state = 'closed' WHERE user = ?", (user,))

    # Requests that wait for the authority's key

    def add_request(self, request: Request, at_most: int) -> bool:
        """Keep a request until the authority's key is there; False if `at_most` of this device wait already."""
        with self._transaction() as db:
            waiting = db.execute(
                "SELECT COUNT(*) FROM requests WHERE device_id = ? AND key_id <> ?", (request.device_id, request.key_id)
            ).fetchone()[0]
            if waiting >= at_most:
                return False
            db.execute(
                "INSERT INTO requests VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (request.key_id, request.device_id, request.request, request.asked_s),
            )
            return True

    def requests(self) -> list[Request]:
        """Return the requests that wait, the oldest first."""
        return [Request(*row) for row in self._all("SELECT * FROM requests ORDER BY asked_s, key_id")]

    # The database

    def _one(self, sql: str, *values: object) -> Any:
        with self._guarded() as db:
            return db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: object) -> list[Any]:
        with self._guarded() as db:
            return db.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise FleetError(f"The inventory {self.path} cannot be used: {error}.") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
            self._seen_version = -1
            self._look_at = float("-inf")


def _device(row: sqlite3.Row) -> Device:
    return Device(row["id"], row["state"], row["max_examples"], row["created_s"], row["revoked_s"])
