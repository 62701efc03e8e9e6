"""The one form of a log line, on both sides: `event=update_accepted participant=p0 staleness=3`, known as logfmt.

Rules
1. A line begins with its event; its fields follow in the order in which they were given.
2. A value may come from a peer. It is quoted if it is empty, or if it holds a space, an equals sign, a quote, a
   backslash or a character that does not print. A quoted value is a JSON string, which any JSON parser reads.
3. Therefore no value can make a second field or a second line.
4. Nothing is formatted if the level is off. A value that costs something to make may be a function without arguments:
   it is called only if the line is written.
5. A value that cannot be shown does not raise: its type is written instead.
6. No line holds a secret (fedmq.schemas.redaction).

The lines go through the standard `logging` module, by a logger of the module's own name. Numbers print as `str` prints
them; a caller that wants fewer digits formats the number itself.
"""

from __future__ import annotations

import logging

from fedmq.schemas.redaction import redacted
from fedmq.schemas.texts import escape

_QUOTED_FOR = frozenset(" =\"'\\")
_CALLER = 3
"""Frames from `logging` up to the caller of `info` and its like: a record names the caller's file and line."""


class EventLog:
    """A module's log. Create it with `log = EventLog(__name__)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Write an error and, on lines of its own, the traceback of the exception that is being handled."""
        self._write(logging.ERROR, event, fields, traceback=True)

    def log(self, level: int, event: str, /, **fields: object) -> None:
        """Write at a level that is known only at run time, `logging.INFO` for example."""
        self._write(level, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, object], *, traceback: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, line(event, fields), exc_info=traceback, stacklevel=_CALLER)


def line(event: str, fields: dict[str, object]) -> str:
    """Return the line of an event and its fields."""
    parts = ["event=" + _shown(event)]
    parts += [f"{key}={_shown(value() if callable(value) else value)}" for key, value in fields.items()]
    return " ".join(parts)


def _shown(value: object) -> str:
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001  a line in the log ends no process, as with `logging` itself
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    text = redacted(text)
    if text and text.isprintable() and _QUOTED_FOR.isdisjoint(text):
        return text
    # Escape only where JSON must, or where the character would not show: names in other scripts stay readable.
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else escape(c) for c in text) + '"'
