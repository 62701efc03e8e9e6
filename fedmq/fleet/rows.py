"""The inventory's tables, and their rows as frozen values. Times are in seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["enrolling", "enrolled", "revoking", "revoked"]
Standing = Literal["enrolled", "revoked", "unknown"]

TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE devices (
    id TEXT PRIMARY KEY,
    folded TEXT NOT NULL UNIQUE,  -- the id without the difference of capitals
    state TEXT NOT NULL,
    max_examples INTEGER,
    created_s REAL NOT NULL,
    revoked_s REAL
) STRICT;
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    device_id TEXT NOT NULL REFERENCES devices (id),
    key_id TEXT NOT NULL UNIQUE,
    certificate TEXT NOT NULL,
    not_before_s REAL NOT NULL,
    not_after_s REAL NOT NULL,
    installed_s REAL
) STRICT;
CREATE INDEX certificates_of ON certificates (device_id);
CREATE TABLE tokens (
    user TEXT PRIMARY KEY,
    device_id TEXT NOT NULL REFERENCES devices (id),
    state TEXT NOT NULL,
    created_s REAL NOT NULL,
    expires_s REAL NOT NULL,
    key_id TEXT
) STRICT;
CREATE TABLE requests (
    key_id TEXT PRIMARY KEY,
    device_id TEXT NOT NULL REFERENCES devices (id),
    request TEXT NOT NULL,
    asked_s REAL NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One row of the devices. Times in seconds since 1970."""

    id: str
    state: State
    max_examples: int | None
    created_s: float
    revoked_s: float | None


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate that was issued to a device."""

    serial: str
    device_id: str
    key_id: str
    certificate: str
    not_before_s: float
    not_after_s: float
    installed_s: float | None = None
    """Time at which the device said that it uses this certificate."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token: one device may join with it, once, by a temporary user of the broker."""

    user: str
    device_id: str
    state: Literal["making", "open", "used", "closed"]
    """"making" until its file is written, "open" until a key is bound to it, "used" until its user is deleted."""
    created_s: float
    expires_s: float
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a certificate that waits for the authority's key."""

    key_id: str
    device_id: str
    request: str
    asked_s: float
