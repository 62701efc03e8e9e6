"""The copy of a bad message that goes to the dead-letter queue, with its reason.

The sender of a bad message wrote its headers, so two kinds of them are left out. The broker would refuse a value that
AMQP can deliver but not publish, and the message would be given back again and again. Headers longer than a frame would
cost the connection each time.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from fedmq.broker_config.transport import Delivery, Message
from fedmq.schemas.redaction import redacted
from fedmq.schemas.texts import escaped

DEAD_ROUTING_KEY = "dead"
MOST_HEADER_CHARS, MOST_DETAIL_CHARS = 16_384, 4000
"""Limits of the copied headers and of the detail: all headers have to fit into one frame, 128 KiB by default."""


def dead_letter_of(delivery: Delivery, exchange: str, reason: str, detail: str) -> Message:
    """Return the copy, with all headers that can be sent on, and with `reason`, `detail` and `from_queue`."""
    kept: dict[str, object] = {}
    left = MOST_HEADER_CHARS
    for name, value in delivery.headers.items():
        left -= len(str(name)) + len(repr(value))
        if left >= 0 and _goes_both_ways(value):
            kept[name] = value
    told = escaped(redacted(detail))[:MOST_DETAIL_CHARS]
    headers = {**kept, "reason": reason, "detail": told, "from_queue": delivery.queue}
    return Message(
        exchange=exchange,
        routing_key=DEAD_ROUTING_KEY,
        body=delivery.body,
        message_id=delivery.message_id or uuid.uuid4().hex,
        correlation_id=delivery.correlation_id,
        headers=cast(Any, headers),
    )


def _goes_both_ways(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_goes_both_ways(one) for one in value.values())
    if isinstance(value, list):
        return all(_goes_both_ways(one) for one in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str | bytes | datetime)
