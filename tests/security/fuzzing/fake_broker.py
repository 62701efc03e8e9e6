"""A broker in one thread for one process: it takes what is published, and hands over what the script puts in.

The transport is called and calls back on the caller's own thread. Each delivery takes the way that it takes over AMQP:
its properties are decoded from bytes, and `Consumer` makes the delivery of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pika

from fedmq.broker_config.amqp.consumer import Consumer, Hold, Token
from fedmq.broker_config.amqp.properties import BoundedProperties
from fedmq.broker_config.dead_letters import dead_letter_of
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import Delivery, Message, OnDelivery, OnState, TransportState
from fedmq.schemas.errors import BrokerError


def encoded(user: str | None, headers: dict[str, Any] | None = None, task_id: str | None = None) -> list[bytes]:
    """Return the properties of an ordinary message, as bytes."""
    properties = pika.BasicProperties(
        content_type="application/x-msgpack", delivery_mode=2, message_id="m-1", correlation_id=task_id, user_id=user,
        headers={"schema_version": 1} if headers is None else headers,
    )  # fmt: skip
    return list(properties.encode())


def done(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class FakeTransport:
    """The `Transport` of one process. `published` has all messages that it sent, for the script to take away."""

    broker_id = "fuzz"

    def __init__(self) -> None:
        self.published: deque[tuple[str, Message]] = deque()
        """Pairs of the queue (or the routing key, if no queue is bound) and the message."""
        self.settled = 0
        self.dead: list[str] = []
        """Reasons of the dead letters, newest last."""
        self.failed: list[Delivery] = []
        """Deliveries whose handler raised."""
        self._bound: dict[tuple[str, str], str] = {}
        self._consumers: dict[str, tuple[Consumer, Hold]] = {}
        self._waiting: dict[str, deque[tuple[bytes, bytes]]] = {}
        self._unsettled: dict[int, tuple[str, bytes, bytes]] = {}
        self._tag = 0

    # The script's side

    def bind(self, queue: Queue) -> None:
        """Know a queue that another process would declare."""
        self._bound[queue.exchange, queue.routing_key] = queue.name

    def put(self, queue: str, properties: bytes, body: bytes) -> None:
        """Put a message into a queue, and deliver it if the queue is consumed."""
        self._waiting.setdefault(queue, deque()).append((properties, body))
        self._deliver(queue)

    @property
    def unsettled(self) -> int:
        return len(self._unsettled)

    def _deliver(self, queue: str) -> None:
        found, waiting = self._consumers.get(queue), self._waiting.get(queue)
        while found and waiting:
            properties, body = waiting.popleft()
            self._tag += 1
            self._unsettled[self._tag] = (queue, properties, body)
            consumer, hold = found
            method = SimpleNamespace(delivery_tag=self._tag, redelivered=False)
            consumer._arrived(hold, None, method, BoundedProperties().decode(properties), body)

    # The transport's

    def open(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        on_state: OnState | None = None,
        timeout_s: float | None = None,
        **_others: object,
    ) -> None:
        for queue in queues:
            self.bind(queue)
        if on_state is not None:
            on_state(TransportState("connected"))

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        queue = self._bound.get((message.exchange, message.routing_key), message.routing_key)
        if queue in self._consumers:  # a token for ourselves
            self.put(queue, b"".join(encoded("coordinator", dict(message.headers))), bytes(message.body))
        elif ".payload." in queue:  # nobody reads it here, and its sender counts them
            self._waiting.setdefault(queue, deque()).append((b"", b""))
        else:
            self.published.append((queue, message))
        return done()

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int) -> None:
        self.stop_consuming(queue)
        consumer = Consumer(queue, on_delivery, prefetch, on_lost=lambda *_: None, on_failed=self.failed.append)
        hold = consumer._hold = Hold(SimpleNamespace(is_open=True))
        self._consumers[queue] = (consumer, hold)
        self._deliver(queue)

    def stop_consuming(self, queue: str) -> None:
        found = self._consumers.pop(queue, None)
        if found is None:
            return
        found[1].clear()
        back = [tag for tag, (of, *_) in self._unsettled.items() if of == queue]
        for tag in reversed(back):
            self._waiting.setdefault(queue, deque()).appendleft(self._unsettled.pop(tag)[1:])

    def declare(self, queue: Queue, timeout_s: float = 30.0) -> Future[int]:
        self.bind(queue)
        return done(len(self._waiting.get(queue.name, ())))

    def declare_exchange(self, exchange: Exchange, timeout_s: float = 30.0) -> Future[int]:
        return done(0)

    def delete_queue(self, name: str, timeout_s: float = 30.0) -> Future[int]:
        self.stop_consuming(name)
        return done(len(self._waiting.pop(name, ())))

    def forget_queue(self, name: str) -> None:
        self._waiting.pop(name, None)

    def ack(self, delivery: Delivery) -> bool:
        return self._settle(delivery) is not None

    def nack(self, delivery: Delivery, requeue: bool = True) -> bool:
        taken = self._settle(delivery)
        if taken is not None and requeue:
            self.put(*taken)
        return taken is not None

    def dead_letter(self, delivery: Delivery, exchange: str, reason: str, detail: str) -> None:
        copy = dead_letter_of(delivery, exchange, reason, detail)
        pika.BasicProperties(headers=dict(copy.headers), correlation_id=copy.correlation_id).encode()
        assert str(copy.headers["detail"]).isprintable(), copy.headers["detail"]
        self.dead.append(reason)
        self.ack(delivery)

    def depth(self, queue: str) -> int:
        if queue not in self._waiting and queue not in self._consumers:
            raise BrokerError(f"no queue {queue!r}")
        return len(self._waiting.get(queue, ()))

    def close(self, timeout_s: float = 5.0) -> None:
        self._consumers.clear()

    def _settle(self, delivery: Delivery) -> tuple[str, bytes, bytes] | None:
        token = delivery.token
        assert isinstance(token, Token)
        if not token.hold.claim(token.tag):
            return None
        self.settled += 1
        return self._unsettled.pop(token.tag)


class FakeTime:
    """The module `time` for the services: the clock goes on when nothing happens, and a little with every message."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


Callback = Callable[[Any], None]
