"""Helpers of the broker tests: transports that reconnect fast, and news that a test can wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import Delivery, Message, TransportState
from fedmq.schemas.local.backoff import Backoff

WAIT_S = 30.0
"""Longest wait for an event that must happen. Only a failing test waits this long."""


def alive(pid: int) -> bool:
    """True if the process runs. One that only waits to be reaped does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class News:
    """The deliveries and states of a transport's callbacks, which a test can wait for."""

    def __init__(self) -> None:
        self.states: list[TransportState] = []
        self.deliveries: list[Delivery] = []
        self._changed = threading.Condition()

    def on_state(self, state: TransportState) -> None:
        with self._changed:
            self.states.append(state)
            self._changed.notify_all()

    def on_delivery(self, delivery: Delivery) -> None:
        with self._changed:
            self.deliveries.append(delivery)
            self._changed.notify_all()

    def wait_for(self, what: Callable[[News], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what(self), WAIT_S), f"only {self.states}, {len(self.deliveries)}"

    def wait_for_state(self, name: str, times: int = 1) -> TransportState:
        self.wait_for(lambda news: news.count(name) >= times)
        return [state for state in self.states if state.name == name][times - 1]

    def count(self, name: str) -> int:
        return sum(state.name == name for state in self.states)

    @property
    def ids(self) -> set[str | None]:
        return {delivery.message_id for delivery in self.deliveries}


class Corner:
    """An exchange and a queue of a test's own."""

    def __init__(self, prefix: str, **queue: Any) -> None:
        self.exchange = Exchange(f"{prefix}.x")
        values: dict[str, Any] = {"kind": "quorum", **queue}
        self.queue = Queue(name=f"{prefix}.q", exchange=self.exchange.name, routing_key="k", **values)

    def message(self, message_id: str, body: bytes = b"body", key: str = "k") -> Message:
        return Message(self.exchange.name, key, body, message_id)

    def open(self, url: str, news: News | None = None, name: str = "test") -> AmqpTransport:
        transport = AmqpTransport(url, name=name, backoff=Backoff(0.05, 0.5), heartbeat_s=5)
        transport.open((self.exchange,), (self.queue,), news.on_state if news else None, timeout_s=WAIT_S)
        return transport
