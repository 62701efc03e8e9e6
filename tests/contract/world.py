"""The world around a transport, for the contract tests of both transports.

Nothing here sleeps. A test waits for an item of a queue, or asks until the answer is right, each within WAIT_S.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from queue import Empty, Queue
from typing import Any, Literal, TypeVar

import pika
from pika.exceptions import ChannelClosedByBroker

from fedmq.broker_config import topology
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.rights import Rights
from fedmq.broker_config.transport import (
    Delivery,
    HeaderValue,
    Message,
    Offset,
    OnDelivery,
    OnState,
    Transport,
    TransportState,
)
from fedmq.schemas.errors import PublishError
from fedmq.schemas.local.backoff import Backoff
from tests.chaos.proxy import Proxy
from tests.support.asking import ask_until

WAIT_S = 20.0
QUICK = Backoff(base_s=0.02, cap_s=0.2)
T = TypeVar("T")
Kind = Literal["classic", "quorum", "stream"]


class Received(Queue[Delivery]):
    """Deliveries of a consumer: pass its `put` to consume()."""

    def next(self) -> Delivery:
        return self.get(timeout=WAIT_S)

    def next_ones(self, count: int) -> list[Delivery]:
        return [self.next() for _ in range(count)]


class States(Queue[TransportState]):
    """States of a transport: pass its `put` to open() as on_state."""

    def wait_for(self, name: str) -> TransportState:
        """Return the next state of this name, and skip others."""
        seen = []
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                state = self.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except Empty:
                raise AssertionError(f"no state {name!r} within {WAIT_S} s, only {seen}") from None
            if state.name == name:
                return state
            seen.append(state)


def outcome(future: Future[None]) -> type[BaseException] | None:
    """Return the type of error that a publish ended with; None for a confirm."""
    error = future.exception(WAIT_S)
    return None if error is None else type(error)


class World(ABC):
    """A broker, or a corner of a shared one, in which all names start with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.exchange = topology.Exchange(f"{prefix}.x")
        self.dead_exchange = topology.Exchange(f"{prefix}.dead")
        self._transports: list[Transport] = []

    # Names and values

    def queue(self, name: str = "q", kind: Kind = "classic", **limits: Any) -> topology.Queue:
        """Return a queue that the routing key `name` feeds."""
        return topology.Queue(
            name=f"{self.prefix}.{name}", kind=kind, exchange=self.exchange.name, routing_key=name, **limits
        )

    def queue_to_dead(
        self, name: str = "q", kind: Literal["classic", "quorum"] = "classic", **limits: Any
    ) -> topology.Queue:
        """Return such a queue with a dead-letter exchange."""
        return self.queue(
            name, kind, dead_letter_exchange=self.dead_exchange.name, dead_letter_routing_key="dead", **limits
        )

    @property
    def dead_queue(self) -> topology.Queue:
        return topology.Queue(
            name=f"{self.prefix}.dead", kind="classic", exchange=self.dead_exchange.name, routing_key="dead"
        )

    def message(
        self,
        message_id: str,
        key: str = "q",
        body: bytes = b"body",
        correlation_id: str | None = None,
        headers: dict[str, HeaderValue] | None = None,
        expiration_s: float | None = None,
    ) -> Message:
        return Message(
            self.exchange.name, key, body, message_id, correlation_id, {} if headers is None else headers, expiration_s
        )

    # Transports

    def make_transport(self, name: str = "one") -> Transport:
        """Return a transport that is not open yet. It is closed when the test ends."""
        transport = self._new_transport(name)
        self._transports.append(transport)
        return transport

    def make_transport_of(self, user: str, rights: Rights) -> Transport:
        """Return a transport, called `user` too, of a user with just these rights in this world's broker."""
        self._add_user(user, rights)
        transport = self._new_transport(user, user)
        self._transports.append(transport)
        return transport

    def open(self, name: str, *queues: topology.Queue, on_state: OnState | None = None) -> Transport:
        transport = self.make_transport(name)
        transport.open((self.exchange, self.dead_exchange), queues, on_state, WAIT_S)
        return transport

    def publish(self, transport: Transport, *message_ids: str, key: str = "q") -> None:
        """Publish messages one after another, each confirmed."""
        for message_id in message_ids:
            transport.publish(self.message(message_id, key)).result(WAIT_S)

    def consume(
        self,
        transport: Transport,
        queue: topology.Queue,
        prefetch: int = 10,
        then: OnDelivery | None = None,
        offset: Offset | None = None,
    ) -> Received:
        """Consume into a Received. `then` is called first, on the transport's thread."""
        received = Received()

        def on_delivery(delivery: Delivery) -> None:
            if then is not None:
                then(delivery)
            received.put(delivery)

        transport.consume(queue.name, on_delivery, prefetch, offset)
        return received

    def await_depth(self, transport: Transport, queue: topology.Queue, depth: int) -> None:
        ask_until(lambda: transport.depth(queue.name), lambda found: found == depth)

    def publish_until_rejected(self, transport: Transport, limit: int) -> list[str]:
        """Return the ids that were confirmed before the first error of the expected kind."""
        accepted: list[str] = []
        while len(accepted) < limit:
            try:
                self.publish(transport, str(len(accepted)))
            except PublishError:
                return accepted
            accepted.append(str(len(accepted)))
        raise AssertionError(f"{limit} messages and no rejection")

    def close(self) -> None:
        for transport in self._transports:
            transport.close()

    # Faults

    @abstractmethod
    def _new_transport(self, name: str, user: str = "guest") -> Transport: ...

    @abstractmethod
    def _add_user(self, name: str, rights: Rights) -> None: ...

    @abstractmethod
    def sever(self, name: str) -> None:
        """Cut the transport's connection, which must exist. It may connect again at once."""

    @abstractmethod
    def down(self) -> None:
        """Take the broker away from all transports. Its messages stay."""

    @abstractmethod
    def up(self) -> None: ...

    @abstractmethod
    def withhold_confirms(self, name: str) -> None:
        """Hold back all confirms of a transport until it is severed. Its messages arrive."""

    @abstractmethod
    def delete_queue(self, queue: topology.Queue) -> None:
        """Delete a queue behind everybody's back."""

    @abstractmethod
    def replace_queue(self, queue: topology.Queue) -> None:
        """Delete a queue behind everybody's back, and make this one of the same name before anybody else can."""

    @abstractmethod
    def delete_exchange(self, exchange: topology.Exchange) -> None:
        """Delete an exchange behind everybody's back."""


class EmbeddedWorld(World):
    """A world in RAM."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.broker = EmbeddedBroker()

    def _new_transport(self, name: str, user: str = "guest") -> Transport:
        return EmbeddedTransport(self.broker, name=name, user=user)

    def _add_user(self, name: str, rights: Rights) -> None:
        self.broker.set_rights(name, rights)

    def sever(self, name: str) -> None:
        assert self.broker.drop_connections(name) == 1

    def down(self) -> None:
        self.broker.pause()

    def up(self) -> None:
        self.broker.resume()

    def withhold_confirms(self, name: str) -> None:
        self.broker.withhold_confirms(name)

    def delete_queue(self, queue: topology.Queue) -> None:
        self.broker.delete_queue(queue.name)

    def replace_queue(self, queue: topology.Queue) -> None:
        self.broker.delete_queue(queue.name, queue)

    def delete_exchange(self, exchange: topology.Exchange) -> None:
        self.broker.delete_exchange(exchange.name)


class AmqpWorld(World):
    """A private RabbitMQ, with each transport behind a proxy of its own."""

    def __init__(self, prefix: str, node: PrivateNode) -> None:
        super().__init__(prefix)
        self._node = node
        self._url = url = node.url
        self._users: list[str] = []
        self._port = pika.URLParameters(url).port
        self._proxies: dict[str, Proxy] = {}
        self._names = {f"{prefix}.dead"}
        self._is_up = True

    def _add_user(self, name: str, rights: Rights) -> None:
        self._node.ctl("add_user", name, "secret")
        self._users.append(name)
        self._node.ctl("set_permissions", "-p", "/", name, rights.configure, rights.write, rights.read)

    def _new_transport(self, name: str, user: str = "guest") -> Transport:
        from fedmq.broker_config.amqp.transport import AmqpTransport

        proxy = self._proxies[name] = Proxy(self._port)
        proxy.set_up(self._is_up)
        url = self._url if user == "guest" else self._node.url_for(user=user, password="secret")
        return AmqpTransport(url.replace(f":{self._port}/", f":{proxy.port}/"), name=name, backoff=QUICK)

    def sever(self, name: str) -> None:
        assert self._proxies[name].sever() > 0

    def down(self) -> None:
        self._set_up(False)

    def up(self) -> None:
        self._set_up(True)

    def _set_up(self, up: bool) -> None:
        self._is_up = up
        for proxy in self._proxies.values():
            proxy.set_up(up)

    def withhold_confirms(self, name: str) -> None:
        self._proxies[name].blackhole("down", new=False)

    def delete_queue(self, queue: topology.Queue) -> None:
        self._delete_queues(queue.name)

    def replace_queue(self, queue: topology.Queue) -> None:
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            for _ in range(20):
                channel = connection.channel()
                channel.queue_delete(queue.name)
                with contextlib.suppress(ChannelClosedByBroker):  # its consumer was quicker
                    channel.queue_declare(queue.name, durable=True, arguments=queue.arguments())
                    return
        raise AssertionError(f"queue {queue.name} was made by others 20 times")

    def delete_exchange(self, exchange: topology.Exchange) -> None:
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            connection.channel().exchange_delete(exchange.name)

    def queue(self, name: str = "q", kind: Kind = "classic", **limits: Any) -> topology.Queue:
        queue = super().queue(name, kind, **limits)
        self._names.add(queue.name)
        return queue

    def close(self) -> None:
        super().close()
        for proxy in self._proxies.values():
            proxy.close()
        self._delete_queues(*self._names)
        for user in self._users:
            self._node.ctl("delete_user", user)

    def _delete_queues(self, *names: str) -> None:
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            channel = connection.channel()
            for name in names:
                channel.queue_delete(name)
