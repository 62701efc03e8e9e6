"""Properties that a stranger wrote: what can be read is read, and nothing raises."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal

import pika
import pytest

from fedmq.broker_config.amqp.properties import MOST_DEPTH, MOST_TABLE_BYTES, MOST_VALUES, BoundedProperties, read_table

CONTENT_TYPE, HEADERS, CORRELATION_ID, MESSAGE_ID, USER_ID = 1 << 15, 1 << 13, 1 << 10, 1 << 7, 1 << 4


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(*entries: bytes) -> bytes:
    return struct.pack(">I", sum(map(len, entries))) + b"".join(entries)


def with_headers(headers: bytes) -> BoundedProperties:
    encoded = struct.pack(">H", HEADERS | CORRELATION_ID | USER_ID) + headers + short(b"t-1") + short(b"sensor")
    properties = BoundedProperties()
    assert properties.decode(encoded) is properties
    return properties


def nested(depth: int, kind: bytes = b"F") -> bytes:
    inner = table()
    for _ in range(depth - 1):
        inner = table((short(b"a") if kind == b"F" or _ == depth - 2 else b"") + kind + inner)
    return inner


def test_every_property_that_pika_can_write_is_read_as_pika_reads_it():
    sent = pika.BasicProperties(
        content_type="a", content_encoding="b", delivery_mode=2, priority=3, correlation_id="c", reply_to="d",
        expiration="60000", message_id="e", timestamp=2**40, type="f", user_id="g", app_id="h", cluster_id="i",
        headers={
            "text": "é", "bytes": b"\x00\xff", "on": True, "n": -(2**40), "none": None, "d": Decimal("1.5"),
            "at": datetime(2026, 1, 1, tzinfo=UTC), "in": {"a": [1, {"b": "c"}, []]},
        },
    )  # fmt: skip
    encoded = b"".join(sent.encode())
    got = BoundedProperties().decode(encoded)
    assert vars(got) == vars(pika.BasicProperties().decode(encoded))
    assert got.headers["in"] == {"a": [1, {"b": "c"}, []]}


def test_a_message_without_properties_has_none():
    assert vars(BoundedProperties(user_id="former").decode(b"\0\0")) == vars(pika.BasicProperties())


UNREADABLE = {
    "a timestamp in the year 10^11": table(short(b"when") + b"T" + b"\xff" * 8),
    "an unknown kind": table(short(b"a") + b"?"),
    "a text longer than its table": table(short(b"a") + b"S" + struct.pack(">I", 100) + b"x"),
    "a text of four gigabytes": table(short(b"a") + b"S" + b"\xff" * 4),
    "a table longer than its table": table(short(b"a") + b"F" + struct.pack(">I", 100)),
    "a key longer than its table": table(b"\xffa"),
    "a number that is cut off": table(short(b"a") + b"l\0\0"),
    "a key without a value": table(short(b"a")),
    "an infinite number": table(short(b"a") + b"d" + struct.pack(">d", float("inf"))),
    "ten thousand tables inside each other": nested(2500),
    "arrays inside each other": nested(400, b"A"),
}


@pytest.mark.parametrize("headers", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_headers_that_cannot_be_read_cost_only_the_headers(headers):
    got = with_headers(headers)
    assert (got.headers, got.correlation_id, got.user_id) == (None, "t-1", "sensor")


def test_the_limits_of_the_header_table_are_inclusive():
    values = [short(b"%d" % i) + b"V" for i in range(MOST_VALUES)]
    assert len(with_headers(table(*values)).headers) == MOST_VALUES
    assert with_headers(table(*values, short(b"more") + b"V")).headers is None
    room = MOST_TABLE_BYTES - len(short(b"a") + b"S") - 4
    assert with_headers(table(short(b"a") + b"S" + struct.pack(">I", room) + bytes(room))).headers is not None
    assert with_headers(table(short(b"a") + b"S" + struct.pack(">I", room + 1) + bytes(room + 1))).headers is None
    for kind in (b"F", b"A"):
        assert with_headers(nested(MOST_DEPTH, kind)).headers is not None
        assert with_headers(nested(MOST_DEPTH + 1, kind)).headers is None


def test_a_header_table_of_a_whole_frame_is_not_even_looked_at():
    assert read_table(struct.pack(">I", 120_000) + b"\x01aV" * 40_000, 0) is None
    # Nor is one whose length is a lie: the rest of the properties then lies behind the end.
    got = with_headers(struct.pack(">I", 2**32 - 1))
    assert (got.headers, got.correlation_id, got.user_id) == (None, None, None)


def test_an_id_that_is_not_utf_8_is_left_out_and_the_others_stay():
    encoded = struct.pack(">H", CORRELATION_ID | MESSAGE_ID | USER_ID) + short(b"\xff") + short(b"m") + short(b"\xc3")
    got = BoundedProperties().decode(encoded)
    assert (got.correlation_id, got.message_id, got.user_id) == (None, "m", None)


def test_properties_cut_anywhere_are_read_as_far_as_they_go():
    sent = pika.BasicProperties(content_type="a", headers={"b": 1}, correlation_id="c", message_id="d", user_id="e")
    encoded = b"".join(sent.encode())
    seen = [vars(BoundedProperties().decode(encoded[:length])) for length in range(len(encoded) + 1)]
    assert seen[0]["content_type"] is None
    assert seen[-2]["message_id"] == "d"
    assert seen[-2]["user_id"] is None
    assert seen[-1] == vars(sent)
