"""The embedded broker: exchanges, bindings and queues in RAM, shared by the transports of one process.

It lets every user do everything, unless `set_rights` says otherwise. Then it asks for the same rights as RabbitMQ.

It has no thread of its own. Operations run on the caller's thread under one lock, and push deliveries and news into the
inboxes of the connections concerned. Expiry falls due by time alone: the dispatcher of the oldest connection, the
timekeeper, does it. Messages survive `drop_connections` and `pause`, as durable ones survive a broker's restart.
"""

from __future__ import annotations

import heapq
import itertools
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Literal

from fedmq.broker_config.embedded.connection import (
    Arrived,
    Cancelled,
    Connection,
    Disconnected,
    Lost,
    Subscription,
    Token,
)
from fedmq.broker_config.embedded.queue import Consumer, Content, Handout, Position, dead_lettered
from fedmq.broker_config.embedded.stream import Model, model_of
from fedmq.broker_config.rights import Rights
from fedmq.broker_config.topology import DEFAULT_EXCHANGE, Exchange, Queue
from fedmq.broker_config.transport import Delivery, Message, OnDelivery
from fedmq.schemas.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    PublishError,
    PublishRejected,
    TopologyConflict,
    Unroutable,
)

Settlement = Literal["ack", "requeue", "reject"]
Confirm = Literal["confirmed", "withheld"]


class EmbeddedBroker:
    """A broker in RAM. `clock` (seconds, never backwards) is the only source of time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.broker_id = f"embedded {uuid.uuid4().hex}"
        self._lock = threading.RLock()
        self._up = True
        self._exchanges: set[str] = set()
        self._queues: dict[str, Model] = {}
        self._bindings: dict[tuple[str, str], list[str]] = {}
        self._connections: list[Connection] = []
        self._waiting: list[SimpleQueue[Any]] = []
        self._due: list[tuple[float, int, Model]] = []
        self._armed: dict[Model, float] = {}
        self._numbers = itertools.count()
        self._rights: dict[str, Rights] = {}

    # Faults and views, for tests and demonstrations

    def drop_connections(self, name: str | None = None, detail: str = "connection reset by peer") -> int:
        """Sever all connections, or those of the transports called `name`. They reconnect by themselves.

        Return their number, so that a test can assert that its fault happened.
        """
        with self._lock:
            severed = [c for c in self._connections if name is None or c.name == name]
            self._sever(severed, detail)
            return len(severed)

    def pause(self) -> None:
        """Go down and keep the messages. Nobody can connect until `resume`."""
        with self._lock:
            self._up = False
            self._sever(list(self._connections), "the broker went down")

    def resume(self) -> None:
        """Come up again. Waiting transports connect."""
        with self._lock:
            self._up = True
            for model in self._queues.values():
                model.touch(self.clock())
            self._advance(self._queues.values())
            self._wake()

    def withhold_confirms(self, name: str | None = None) -> None:
        """Take messages over from the connections that are open now, or from those of one name, without ever confirming
        them. The messages time out, or are sent again once the connections are dropped."""
        with self._lock:
            for connection in self._connections:
                connection.mute = connection.mute or name is None or connection.name == name

    def delete_queue(self, name: str, successor: Queue | None = None) -> None:
        """Delete a queue with its messages, and tell its consumers (basic.cancel). `successor` takes its place before
        anybody else can."""
        with self._lock:
            self._delete(self._queues[name])
            if successor is not None:
                self._declare_queue("guest", successor)

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings."""
        with self._lock:
            self._exchanges.remove(name)
            self._bindings = {key: bound for key, bound in self._bindings.items() if key[0] != name}

    def set_rights(self, user: str, rights: Rights | None) -> None:
        """Give a user these rights from now on; None gives all rights. Nothing that is open ends by that."""
        with self._lock:
            if rights is None:
                self._rights.pop(user, None)
            else:
                self._rights[user] = rights
            self._wake()

    def run_due(self) -> None:
        """Do all that has fallen due by a clock that a test advances, the deadlines of publishes included."""
        with self._lock:
            self.do_due()
            for inbox in [*(connection.inbox for connection in self._connections), *self._waiting]:
                inbox.put(None)

    def unsettled(self, queue: str) -> int:
        """Return the number of messages that are delivered and not settled yet."""
        with self._lock:
            return self._queues[queue].num_unsettled

    @property
    def queue_names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._queues)

    # What transports use

    def connect(
        self,
        name: str,
        inbox: SimpleQueue[Any],
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        user: str | None = "guest",
    ) -> Connection | None:
        """Declare everything and return a new connection. None while the broker is down.

        Raises BrokerRefused, TopologyConflict, or BrokerUnavailable if a passive object is missing. If there is no
        connection, the inbox gets a None once trying again may help.
        """
        with self._lock:
            if not self._up:
                self._wake_later(inbox)
                return None
            self._declare(inbox, user, exchanges, queues, again=True)
            connection = Connection(name, inbox, user)
            self._connections.append(connection)
            return connection

    def disconnect(self, connection: Connection | None, inbox: SimpleQueue[Any]) -> None:
        """End a connection. Unsettled deliveries go back."""
        with self._lock:
            if inbox in self._waiting:
                self._waiting.remove(inbox)
            if connection is not None and connection.alive:
                self._sever([connection], "closed")

    def declare(
        self, connection: Connection, exchanges: Iterable[Exchange], queues: Iterable[Queue], *, again: bool = False
    ) -> None:
        """Declare on a live connection. Raises as `connect` does.

        If it is done `again`, a queue may be bound to an exchange that is gone and is not among `exchanges`: it stays
        unbound.
        """
        with self._lock:
            self._check(connection)
            self._declare(connection.inbox, connection.user, exchanges, queues, again=again)

    def remove(self, connection: Connection, name: str) -> int:
        """Delete a queue, if it is there. Return the number of messages that were ready in it."""
        with self._lock:
            self._check(connection)
            self._ask(connection.user, "configure", name)
            model = self._queues.get(name)
            if model is None:
                return 0
            count = len(model)
            self._delete(model)
            return count

    def consume(
        self,
        connection: Connection,
        queue: str,
        on_delivery: OnDelivery,
        prefetch: int,
        position: Position | None = None,
    ) -> bool:
        """Start consuming; `position` follows the consumer in a stream. False if the queue does not exist. Raises
        BrokerRefused."""
        with self._lock:
            self._check(connection)
            self._wake_later(connection.inbox)  # if it is refused
            self._ask(connection.user, "read", queue)
            self._waiting.remove(connection.inbox)
            model = self._queues.get(queue)
            if model is None:
                return False
            consumer = Consumer(Subscription(connection, on_delivery), prefetch, position=position or Position(None))
            connection.consumers.append((model, consumer))
            model.attach(consumer)
            self._advance([model])
            return True

    def cancel(self, connection: Connection, queue: str) -> None:
        """Stop consuming a queue. Unsettled deliveries go back."""
        with self._lock:
            for model, consumer in [found for found in connection.consumers if found[0].queue.name == queue]:
                connection.consumers.remove((model, consumer))
                model.detach(consumer, self.clock())
                self._advance([model])

    def publish(self, connection: Connection, message: Message) -> PublishError | BrokerRefused | Confirm:
        """Route a persistent, mandatory message. Return the broker's answer."""
        content = Content(
            exchange=message.exchange,
            routing_key=message.routing_key,
            body=bytes(message.body),  # bytes stay themselves, without a copy
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            user_id=connection.user,
            headers=dict(message.headers),
            expiration_s=message.expiration_s,
        )
        unwritable = [name for name, value in message.headers.items() if isinstance(value, float)]
        if unwritable:
            return PublishError(f"message {message.message_id} has headers that AMQP cannot carry: {unwritable}")
        with self._lock:
            self._check(connection)
            try:
                self._ask(connection.user, "write", message.exchange)
            except BrokerRefused as refused:
                return refused
            targets = self._targets(content)
            accepted = [model for model in targets if model.push(content, self.clock())]
            self._advance(accepted)
            if connection.mute:
                return "withheld"
        if not targets:
            return Unroutable(
                f"message {message.message_id} to exchange {message.exchange!r} with routing key "
                f"{message.routing_key!r} reached no queue: declare and bind one first"
            )
        if len(accepted) < len(targets):
            full = ", ".join(sorted(model.queue.name for model in targets if model not in accepted))
            return PublishRejected(
                f"message {message.message_id} was refused by the full queue {full}: send it again once it has drained"
            )
        return "confirmed"

    def settle(self, token: Token, how: Settlement) -> bool:
        """Settle. False if it was settled before, or if its connection (which gave it back) or its queue is gone."""
        with self._lock:
            model = token.queue
            settled = {"ack": model.ack, "requeue": model.give_back, "reject": model.reject}[how](token.tag)
            self._advance([model])
            return settled

    def depth(self, queue: str) -> int:
        """Return the number of ready messages."""
        with self._lock:
            if not self._up:
                raise BrokerUnavailable(f"the broker is down, so the depth of queue {queue!r} is unknown: ask later")
            if queue not in self._queues:
                raise BrokerError(f"queue {queue!r} does not exist: declare it with open()")
            self._advance([self._queues[queue]])
            return len(self._queues[queue])

    def do_due(self) -> None:
        """Let all that has fallen due expire."""
        with self._lock:
            now = self.clock()
            due: list[Model] = []
            while self._due and self._due[0][0] <= now:
                model = heapq.heappop(self._due)[2]
                self._armed.pop(model, None)
                due.append(model)
            self._advance(due)

    def seconds_until_due(self, connection: Connection) -> float | None:
        """Return the time that the timekeeper may sleep; None for every other connection."""
        with self._lock:
            if not self._due or not self._connections or self._connections[0] is not connection:
                return None
            return max(0.0, self._due[0][0] - self.clock())

    # All below runs under the lock

    def _check(self, connection: Connection) -> None:
        if not connection.alive:
            raise Disconnected

    def _sever(self, connections: list[Connection], detail: str) -> None:
        touched: dict[Model, None] = {}
        for connection in connections:
            connection.alive = False
            self._connections.remove(connection)
            for model, consumer in connection.consumers:
                model.detach(consumer, self.clock())
                touched[model] = None
            connection.consumers.clear()  # its transport may still want to cancel them, before it hears of this
            connection.inbox.put(Lost(connection, detail))
        self._advance(touched)
        if self._connections:
            self._connections[0].inbox.put(None)  # it may be the timekeeper from now on

    def _ask(self, user: str | None, right: Literal["configure", "write", "read"], name: str) -> None:
        """Raise BrokerRefused if the user lacks a right. RabbitMQ searches a name for the right's expression."""
        rights = self._rights.get(user or "")
        if rights is not None and not re.search(getattr(rights, right), name or "amq.default"):
            raise BrokerRefused(
                f"user {user!r} may not {right} {name or 'amq.default'!r} (its right: {getattr(rights, right)!r})"
            )

    def _wake_later(self, inbox: SimpleQueue[Any]) -> None:
        if inbox not in self._waiting:
            self._waiting.append(inbox)

    def _wake(self) -> None:
        """Wake those that wait for the broker, or for a change of its objects and rights."""
        for inbox in self._waiting:
            inbox.put(None)
        self._waiting.clear()

    def _declare(
        self,
        inbox: SimpleQueue[Any],
        user: str | None,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        *,
        again: bool,
    ) -> None:
        exchanges = tuple(exchanges)
        ours = {exchange.name for exchange in exchanges}
        known = len(self._exchanges) + len(self._queues)
        try:
            for exchange in exchanges:
                self._declare_exchange(user, exchange)
            for queue in queues:
                self._declare_queue(user, queue)
                if not (again and queue.exchange not in ours and queue.exchange not in self._exchanges):
                    self._bind(user, queue)
        except BrokerError:
            self._wake_later(inbox)
            raise
        finally:
            if len(self._exchanges) + len(self._queues) > known:
                self._wake()

    def _declare_exchange(self, user: str | None, exchange: Exchange) -> None:
        if not exchange.passive:
            self._ask(user, "configure", exchange.name)
            self._exchanges.add(exchange.name)
        elif exchange.name not in self._exchanges:
            raise _not_made(f"exchange {exchange.name!r}")

    def _declare_queue(self, user: str | None, queue: Queue) -> None:
        if queue.passive:
            if queue.name not in self._queues:
                raise _not_made(f"queue {queue.name!r}")
            self._queues[queue.name].touch(self.clock())
            return
        self._ask(user, "configure", queue.name)
        if queue.dead_letter_exchange is not None:
            self._ask(user, "read", queue.name)
            self._ask(user, "write", queue.dead_letter_exchange)
        model = self._queues.get(queue.name)
        if model is None:
            model = self._queues[queue.name] = model_of(queue, self.clock())
        theirs, ours = model.queue.arguments(), queue.arguments()
        for argument in sorted(theirs.keys() | ours.keys()):
            if theirs.get(argument) != ours.get(argument):
                raise TopologyConflict(
                    f"queue {queue.name!r} exists with {argument} = {theirs.get(argument)!r}, expected "
                    f"{ours.get(argument)!r}: delete the queue once it is empty, or use another prefix"
                )
        model.touch(self.clock())
        self._arm(model)

    def _bind(self, user: str | None, queue: Queue) -> None:
        if queue.passive or queue.exchange == DEFAULT_EXCHANGE:
            return
        self._ask(user, "write", queue.name)
        self._ask(user, "read", queue.exchange)
        if queue.exchange not in self._exchanges:
            raise _not_made(f"exchange {queue.exchange!r}, to which queue {queue.name!r} is bound,")
        bound = self._bindings.setdefault((queue.exchange, queue.routing_key), [])
        if queue.name not in bound:
            bound.append(queue.name)

    def _delete(self, model: Model) -> None:
        name = model.queue.name
        del self._queues[name]
        self._armed.pop(model, None)
        for key in list(self._bindings):
            self._bindings[key] = [bound for bound in self._bindings[key] if bound != name]
        for consumer in model.consumers:
            connection: Connection = consumer.owner.connection
            connection.consumers.remove((model, consumer))
            model.detach(consumer, self.clock())  # so that its deliveries cannot be settled any more
            connection.inbox.put(Cancelled(connection, name))
        self._wake()

    def _targets(self, content: Content) -> list[Model]:
        """Return the queues that a message is routed to. The default exchange knows every queue by its name."""
        if content.exchange == DEFAULT_EXCHANGE:
            names = [content.routing_key] if content.routing_key in self._queues else []
        else:
            names = self._bindings.get((content.exchange, content.routing_key), [])
        return [self._queues[name] for name in names]

    def _advance(self, models: Iterable[Model]) -> None:
        """Let queues hand out and expire, and route the dead messages, until nothing moves."""
        work = deque(models)
        while work:
            model = work.popleft()
            if self._queues.get(model.queue.name) is not model:
                continue
            now = self.clock()
            if model.expired(now):
                self._delete(model)
                continue
            outcome = model.advance(now)
            for handout in outcome.handouts:
                self._deliver(model, handout)
            for dead in outcome.dead:
                content = dead_lettered(dead, model.queue)
                if content is not None:
                    work.extend(target for target in self._targets(content) if target.push(content, now))
            self._arm(model)

    def _deliver(self, model: Model, handout: Handout) -> None:
        consumer, tag, stored = handout
        subscription: Subscription = consumer.owner
        content = stored.content
        delivery = Delivery(
            queue=model.queue.name,
            body=content.body,
            message_id=content.message_id,
            correlation_id=content.correlation_id,
            user_id=content.user_id,
            headers=dict(content.headers),
            redelivered=stored.redelivered,
            delivery_count=stored.delivery_count,
            token=Token(model, tag),
            offset=stored.offset,
        )
        connection = subscription.connection
        connection.inbox.put(Arrived(connection, delivery, subscription.on_delivery))

    def _arm(self, model: Model) -> None:
        """Remember the time at which the queue has something to do. An entry that is too early does no harm."""
        due_s = model.next_due_s()
        armed_s = self._armed.get(model)
        if due_s is None or (armed_s is not None and armed_s <= due_s):
            return
        self._armed[model] = due_s
        heapq.heappush(self._due, (due_s, next(self._numbers), model))
        if self._due[0][2] is model and self._connections:
            self._connections[0].inbox.put(None)


def _not_made(what: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"the coordinator has not made {what} yet: start the coordinator, or check the prefix")
