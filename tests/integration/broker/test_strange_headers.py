"""A stranger's headers cost neither the connection nor the message's way to the dead-letter queue."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pika
import pytest

from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.topology import Queue
from tests.integration.broker.traffic import WAIT_S, Corner, News

pytestmark = pytest.mark.broker
PLACE = 0x0123456789ABCDEF


class Raw(pika.BasicProperties):  # type: ignore[misc]
    """Replace a header's value by bytes that pika does not write."""

    def __init__(self, value: bytes, **properties: Any) -> None:
        super().__init__(headers={"strange": PLACE}, **properties)
        self._value = value

    def encode(self) -> list[bytes]:
        whole = b"".join(super().encode())
        assert whole.count(b"l" + struct.pack(">q", PLACE)) == 1
        return [whole.replace(b"l" + struct.pack(">q", PLACE), self._value)]


class RawTable(pika.BasicProperties):  # type: ignore[misc]
    """Send these bytes as the entries of the header table."""

    def __init__(self, entries: bytes, **properties: Any) -> None:
        super().__init__(headers={}, **properties)
        self._entries = entries

    def encode(self) -> list[bytes]:
        flags, length, *rest = super().encode()
        assert length == bytes(4)
        return [flags, struct.pack(">I", len(self._entries)), self._entries, *rest]


def nested(depth: int) -> bytes:
    """Return an entry with tables inside each other."""
    entries = b""
    for _ in range(depth):
        entries = b"\x01aF" + struct.pack(">I", len(entries)) + entries
    return entries


STRANGE = {
    "a time after the year 9999": Raw(b"T" + struct.pack(">Q", 2**62), message_id="1"),
    "a number that is too large": Raw(b"d" + struct.pack(">d", 1e300), message_id="2"),
    "headers of nearly a frame": pika.BasicProperties(headers={"long": "x" * 130_900}, message_id="3"),
    "ten thousand tables inside each other": RawTable(nested(10_000), message_id="5"),
    "forty thousand values": RawTable(b"\x01aV" * 40_000, message_id="6"),
    "an id that is not UTF-8": pika.BasicProperties(correlation_id=b"\xff\xfe", message_id="7"),
    "as it should be": pika.BasicProperties(headers={"kept": datetime(2026, 1, 1, tzinfo=UTC)}, message_id="4"),
}


def test_messages_with_strange_headers_are_delivered_and_can_be_dead_lettered(
    rabbitmq_node: PrivateNode, prefix: str
) -> None:
    corner, news, graves = Corner(prefix), News(), News()
    dead = Queue(name=f"{prefix}.dead", kind="quorum", exchange=corner.exchange.name, routing_key="dead")
    transport = corner.open(rabbitmq_node.url, news)
    transport.declare(dead).result(WAIT_S)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_node.url)) as stranger:
        channel = stranger.channel()
        channel.confirm_delivery()
        for properties in STRANGE.values():
            channel.basic_publish(corner.exchange.name, corner.queue.routing_key, b"body", properties, mandatory=True)
    transport.consume(corner.queue.name, news.on_delivery, prefetch=10)
    transport.consume(dead.name, graves.on_delivery, prefetch=10)
    news.wait_for(lambda found: len(found.deliveries) == len(STRANGE))
    for delivery in news.deliveries:
        transport.dead_letter(delivery, corner.exchange.name, "malformed", "y" * 100_000)
    graves.wait_for(lambda found: len(found.deliveries) == len(STRANGE))
    assert {delivery.message_id for delivery in news.deliveries} == {str(number) for number in range(1, 8)}
    assert graves.ids == {str(number) for number in range(1, 8)}
    assert [d.headers["reason"] for d in graves.deliveries] == ["malformed"] * len(STRANGE)
    assert [d.headers["kept"] for d in graves.deliveries if "kept" in d.headers] == [datetime(2026, 1, 1, tzinfo=UTC)]
    assert (news.count("disconnected"), len(news.deliveries)) == (0, len(STRANGE))
    transport.close()
