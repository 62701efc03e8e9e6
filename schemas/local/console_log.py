"""The form of a log line on the console and in the demo's log:

2026-11-29T13:30:01.123+00:00 INFO fedmq.run.coordinator event=app_loading app=app.py

The time is RFC 3339 with the zone of this machine. Every logger of ours is below `fedmq`, and what follows the logger's
name is written by fedmq.schemas.local.event_log.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from fedmq.schemas.texts import escaped

FORM = "%(asctime)s %(levelname)s %(name)s %(message)s"
FORM_WITH_THREAD = "%(asctime)s %(levelname)s %(name)s %(threadName)s %(message)s"
"""The embedded demo's participants are threads of one process."""
CHATTY = ("matplotlib", "PIL", "h5py", "tensorflow", "absl")


class Formatter(logging.Formatter):
    """Formats a record's time by RFC 3339, to the millisecond."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802, ARG002 (logging's)
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's)
        """Indent a traceback, and escape it: the exception's text may quote a peer, and must not look like a record."""
        return "\n".join(f"    {escaped(line)}" for line in super().formatException(ei).split("\n"))


def log_to(handler: logging.Handler, *, form: str = FORM, debug: bool = False) -> None:
    """Send every log line to this handler alone, without secrets."""
    from fedmq.schemas.local.log_filter import RedactingFilter

    handler.setFormatter(Formatter(form))
    handler.addFilter(RedactingFilter())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pika").setLevel(logging.INFO if debug else logging.CRITICAL)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def debugging() -> bool:
    """Return True if --debug was given."""
    return logging.getLogger().isEnabledFor(logging.DEBUG)
