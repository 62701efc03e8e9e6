"""Connections between an embedded broker and its transports, and the items in their inboxes."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

from fedmq.broker_config.embedded.queue import Consumer
from fedmq.broker_config.embedded.stream import Model
from fedmq.broker_config.transport import Delivery, OnDelivery


@dataclass(slots=True, eq=False)
class Connection:
    """The broker's side of one connected transport. A new one after each reconnect makes older deliveries stale."""

    name: str
    inbox: SimpleQueue[Any]
    user: str | None
    alive: bool = True
    mute: bool = False
    """True if the broker takes its messages over without ever confirming."""
    consumers: list[tuple[Model, Consumer]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Subscription:
    """The owner of a `Consumer`, with its callback."""

    connection: Connection
    on_delivery: OnDelivery


class Token(NamedTuple):
    """The `Delivery.token` of the embedded broker. A tag is never used twice, so that a stale one settles nothing."""

    queue: Model
    tag: int


# Items of a connection's inbox, beside the transport's own. None only wakes it.


class Arrived(NamedTuple):
    connection: Connection
    delivery: Delivery
    on_delivery: OnDelivery


class Lost(NamedTuple):
    connection: Connection
    detail: str


class Cancelled(NamedTuple):
    """A basic.cancel: the queue was deleted under its consumers."""

    connection: Connection
    queue: str


class Disconnected(Exception):
    """The connection was severed before the operation. It never leaves the embedded transport."""
