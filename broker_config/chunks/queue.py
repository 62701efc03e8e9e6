"""What both receivers of chunks ask about a payload's queue."""

from __future__ import annotations

from typing import Literal

from fedmq.broker_config.transport import Transport
from fedmq.schemas.errors import BrokerError, BrokerUnavailable


def state_of(transport: Transport, queue: str) -> Literal["filled", "empty", "gone", "unknown"]:
    """Whether chunks are ready in it; `empty` says nothing about those that a consumer holds. Blocks for a few
    seconds at most."""
    try:
        return "filled" if transport.depth(queue) else "empty"
    except BrokerUnavailable:
        return "unknown"  # no connection, or none soon
    except BrokerError:
        return "gone"
