"""The properties of a message that a stranger wrote: read within limits, and what cannot be read is left out.

Rules
1. Nothing in a message ends the connection. The broker delivers such a message again on the next connection, so it
   would end that one as well.
2. The header table is read only if it has at most `MOST_TABLE_BYTES`, `MOST_VALUES` and `MOST_DEPTH`. Otherwise the
   message comes without headers. The I/O thread reads the table, and heartbeats and all other deliveries wait for it.
3. A table that cannot be read costs the message only its headers. Its other properties are read all the same: the
   sender's user is among them.
4. An id that is not UTF-8 is left out.

fedmq's own messages have a table of some 200 bytes, without tables in it. RabbitMQ adds `x-death`, an array of tables,
when it dead-letters a message.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pika
from pika import data

MOST_TABLE_BYTES = 16 * 1024
MOST_VALUES = 512
MOST_DEPTH = 8
"""Tables and arrays inside each other, the header table included."""

_SHORT_TEXTS = ("content_type", "content_encoding")
_MORE_SHORT_TEXTS = ("correlation_id", "reply_to", "expiration", "message_id")
_LAST_SHORT_TEXTS = ("type", "user_id", "app_id", "cluster_id")
_FIXED_BYTES = {b"t": 1, b"b": 1, b"B": 1, b"U": 2, b"u": 2, b"s": 2, b"I": 4, b"i": 4, b"f": 4, b"L": 8, b"l": 8,
                b"d": 8, b"T": 8, b"D": 5, b"V": 0}  # fmt: skip
"""Bytes of a value, by its kind."""


class _Unreadable(Exception):
    """A table beyond the limits, or not a table."""


class BoundedProperties(pika.BasicProperties):  # type: ignore[misc]
    """Properties as pika gives them, within the limits of the module docstring. `decode` never raises."""

    def decode(self, encoded: bytes, offset: int = 0) -> Any:
        """Read the properties from the body of a content header, and return this object."""
        self.__init__()  # type: ignore[misc]
        with contextlib.suppress(struct.error, _Unreadable):  # it ends too soon: what was read before stands
            self._read(encoded, offset)
        return self

    def _read(self, encoded: bytes, offset: int) -> None:
        flags = at = 0
        while True:
            part = struct.unpack_from(">H", encoded, offset)[0]
            offset += 2
            flags |= part << (16 * at)
            at += 1
            if not part & 1:
                break

        def texts(names: tuple[str, ...]) -> None:
            nonlocal offset
            for name in names:
                if flags & getattr(self, f"FLAG_{name.upper()}"):
                    text, offset = _short_text(encoded, offset)
                    setattr(self, name, text)

        texts(_SHORT_TEXTS)
        if flags & self.FLAG_HEADERS:
            end = offset + 4 + struct.unpack_from(">I", encoded, offset)[0]
            self.headers = read_table(encoded, offset)
            offset = end
        if flags & self.FLAG_DELIVERY_MODE:
            self.delivery_mode = struct.unpack_from("B", encoded, offset)[0]
            offset += 1
        if flags & self.FLAG_PRIORITY:
            self.priority = struct.unpack_from("B", encoded, offset)[0]
            offset += 1
        texts(_MORE_SHORT_TEXTS)
        if flags & self.FLAG_TIMESTAMP:
            self.timestamp = struct.unpack_from(">Q", encoded, offset)[0]
            offset += 8
        texts(_LAST_SHORT_TEXTS)


def read_table(encoded: bytes, offset: int) -> dict[str, Any] | None:
    """Return the header table at `offset`; None if it is beyond the limits or cannot be read."""
    try:
        num_bytes = struct.unpack_from(">I", encoded, offset)[0]
        if num_bytes > MOST_TABLE_BYTES:
            return None
        table = encoded[offset : offset + 4 + num_bytes]
        _check_table(table)
        return data.decode_table(table, 0)[0]  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001  a timestamp in the year 10^11, for example: a stranger may write anything
        return None


def _short_text(encoded: bytes, offset: int) -> tuple[str | None, int]:
    end = offset + 1 + struct.unpack_from("B", encoded, offset)[0]
    if end > len(encoded):
        raise _Unreadable
    try:
        return encoded[offset + 1 : end].decode(), end
    except UnicodeDecodeError:
        return None, end


def _check_table(table: bytes) -> None:
    """Raise unless this is a table within the limits. It makes no object for a value, and does not call itself."""
    at, left = 4, MOST_VALUES
    ends, keyed = [len(table)], [True]
    while ends:
        if at == ends[-1]:
            ends.pop()
            keyed.pop()
            continue
        left -= 1
        if left < 0:
            raise _Unreadable
        if keyed[-1]:
            at += 1 + table[at]
        kind = table[at : at + 1]
        at += 1
        fixed = _FIXED_BYTES.get(kind)
        if fixed is not None:
            at += fixed
        elif kind in {b"S", b"x"}:
            at += 4 + struct.unpack_from(">I", table, at)[0]
        elif kind in {b"F", b"A"} and len(ends) < MOST_DEPTH:
            end = at + 4 + struct.unpack_from(">I", table, at)[0]
            if end > ends[-1]:
                raise _Unreadable
            at += 4
            ends.append(end)
            keyed.append(kind == b"F")
        else:
            raise _Unreadable
        if at > ends[-1]:
            raise _Unreadable
