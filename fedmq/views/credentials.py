"""The doctor's findings on identity, on our certificate, and on who else can read our files."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.security import IdentityKind
from fedmq.broker_config.settings import BrokerSettings
from fedmq.schemas.errors import ConfigError
from fedmq.views.finding import Finding, Role

_OTHERS = 0o077
_OUTLIVES = "a connection that is open then goes on"


def identity(kind: IdentityKind) -> Finding:
    """Return the finding on the rule by which senders are believed."""
    if kind == "user":
        return Finding("ok", "identity: user. The broker vouches for who sent a message")
    return Finding(
        "warning",
        "identity: open. Whoever may publish on the broker is believed",
        'leave it so for a demo on one machine; else set [security] identity = "user" (docs/security.md)',
    )


def certificate(settings: BrokerSettings, role: Role | None, now: datetime) -> Iterator[Finding]:
    """Yield the finding on our certificate, if we have one."""
    if settings.cert_file is None:
        return
    files = TlsFiles.of(settings)
    try:
        user, (begin, end) = files.user(), files.lifetime()
    except ConfigError as error:
        yield Finding("wrong", f"certificate: {error}", "put [broker] cert_file and key_file right", error)
        return
    until = end.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    renewed = "fedmq fleet renew" if role == "coordinator" else f"fedmq fleet enrol {user} --again"
    renew = f"renew it; for a fleet's certificate on the coordinator's host: {renewed}"
    if now >= end:
        what = f"certificate: that of {user!r} ended at {until}. The broker takes no new connection with it"
        yield Finding("wrong", what, renew)
    elif now < begin:
        since = begin.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
        yield Finding("wrong", f"certificate: that of {user!r} begins at {since}", "set this machine's clock right")
    elif end - now < (end - begin) / 3:
        yield Finding("warning", f"certificate: user {user!r} until {until}; {_OUTLIVES}", renew)
    else:
        yield Finding("ok", f"certificate: user {user!r} until {until}; {_OUTLIVES}")


def modes(paths: Iterable[Path]) -> Iterator[Finding]:
    """Yield a finding on the files and folders that are there and must be closed to other users."""
    there, open_ones = 0, []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        there += 1
        if found.st_mode & _OTHERS:
            open_ones.append((path, stat.S_IMODE(found.st_mode)))
    for path, mode in open_ones:
        advice = f"chmod -R go-rwx {path}" if path.is_dir() else f"chmod 600 {path}"
        yield Finding("warning", f"modes: {path} is open to other users ({mode:04o})", advice)
    if there and not open_ones:
        yield Finding("ok", "modes: keys, spool and run folder are closed to other users")
