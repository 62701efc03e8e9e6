"""One life of the two connections to RabbitMQ: connect, declare, be ready, be lost. pika's types stay in `amqp`.

Under a memory or disk alarm the broker holds back a publisher's whole connection. Deliveries and acks go on, because
they have the other connection. Both live and die together, so that there is one generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from fedmq.broker_config.amqp.address import NOT_FOUND
from fedmq.broker_config.amqp.answers import Answer
from fedmq.broker_config.amqp.publisher import AmqpPublisher
from fedmq.broker_config.chores import Chore, Finish
from fedmq.broker_config.timers import Timers
from fedmq.broker_config.topology import DEFAULT_EXCHANGE, Exchange, Queue
from fedmq.broker_config.transport import Message
from fedmq.schemas.errors import BrokerError, BrokerUnavailable

MOST_TRIES = 3
OnOpen = Callable[[Any], None]
OnRefused = Callable[[int, str], None]
OnLost = Callable[[Exception], None]
OnBlocked = Callable[[str | None], None]
"""Callback with the broker's reason; None when it takes messages again."""


class Loop(Timers, Protocol):
    """The part of pika's IOLoop that is used here."""

    def add_callback_threadsafe(self, callback: Callable[[], None]) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Driver(Protocol):
    """The part that touches pika (`broker_config.amqp.driver`). Connections and channels are pika's own objects."""

    @property
    def loop(self) -> Loop: ...

    def connect(self, purpose: str, on_open: OnOpen, on_lost: OnLost, on_blocked: OnBlocked) -> Any:
        """Start a connection. on_lost is called once, even if the connection was never open."""

    def channel(self, connection: Any, on_open: OnOpen, on_refused: OnRefused) -> None:
        """Open a channel. on_refused(code, text) is called when the broker closes it.

        Nothing is called if the connection is not open, or is lost: the connection's on_lost reports that.
        """

    def confirm(self, channel: Any, publisher: AmqpPublisher, on_ready: Callable[[], None]) -> None:
        """Put a channel into confirm mode and hand its confirms and returns to the publisher."""

    def broker_id(self, connection: Any) -> str:
        """Return the cluster's name and the virtual host of an open connection."""

    def unwritten_bytes(self, connection: Any) -> int:
        """Return the number of sent bytes that have not reached the broker's machine yet."""

    def moved_bytes(self, connection: Any) -> int:
        """Return the number of bytes that went over the connection so far, both ways, with incomplete frames."""

    def properties(self, message: Message) -> Any:
        """Return the AMQP properties of a message."""

    def explain(self, error: Exception) -> BrokerError:
        """Return pika's error as ours."""

    def when_all_closed(self, then: Callable[[], None]) -> None:
        """Call `then` when no connection is left."""

    def drop(self, connection: Any) -> None:
        """End a connection without a goodbye. on_lost is called later."""

    def abort(self) -> None:
        """Drop all connections."""


class Refused(NamedTuple):
    """A declaration that the broker refused, while the connection goes on. `again` declares everything once more."""

    what: str
    """The object's kind and name, for people."""
    passive: bool
    code: int
    text: str
    again: Callable[[], None]


class Session:
    """One session. It calls `on_ready` once both connections are up and everything is declared, and `on_lost` once when
    it is over. A broker that does not answer ends it too."""

    def __init__(
        self,
        driver: Driver,
        publisher: AmqpPublisher,
        exchanges: tuple[Exchange, ...],
        queues: Mapping[str, Queue],
        *,
        broker: str,
        on_ready: Callable[[Session], None],
        on_declaration_refused: Callable[[Session, Refused], None],
        on_lost: Callable[[Session, Exception], None],
        on_blocked: OnBlocked,
    ) -> None:
        """`queues` by name: those that it holds at the time are declared. `broker` is the broker's name in messages."""
        self._broker = broker
        self._driver = driver
        self._publisher = publisher
        self._exchanges = exchanges
        self._queues = queues
        self._on_ready = on_ready
        self._on_declaration_refused = on_declaration_refused
        self._on_lost = on_lost
        self._on_blocked = on_blocked
        self._publishing: Any = None
        self._publish_try: object = None
        """Mark of the newest publish channel: late news of an abandoned channel is ignored."""
        self._blocked = False
        self.ready = False
        self.over = False
        self.refusals = 0
        """Number of refused declarations since everything was last declared."""
        self.consuming: Any = driver.connect("consume", self._consuming_is_open, self.lose, on_blocked)

    def answer(self, connection: Any, on_silence: Callable[[str], None]) -> Answer:
        """Return the wait for answers on one of our connections; `on_silence` gets a sentence about the silence."""
        moved_bytes = partial(self._driver.moved_bytes, connection)

        def silent(what: str) -> None:
            on_silence(f"RabbitMQ at {self._broker} {what}, though the connection lives: see the broker's log")

        return Answer(self._driver.loop, moved_bytes, silent)

    def _hangs(self, silence: str) -> None:
        connections = self._open_connections()
        self.lose(BrokerUnavailable(silence))
        for connection in connections:  # a goodbye would not be answered either
            self._driver.drop(connection)

    def lose(self, error: Exception) -> None:
        """Give the session up, because a connection is gone or of no use."""
        if self.over:
            return
        self.over = True
        self.ready = False
        self._on_lost(self, error)
        for connection in self._open_connections():
            # A goodbye would wait behind an upload, perhaps on a slow link, and the next session repeats the upload.
            if self._driver.unwritten_bytes(connection):
                self._driver.drop(connection)
        self.close()

    def close(self) -> None:
        """Close both connections. Nothing is called back any more."""
        self.over = True
        self.ready = False
        for connection in self._open_connections():
            connection.close()

    def _open_connections(self) -> list[Any]:
        both = [connection for connection in (self._publishing, self.consuming) if connection is not None]
        return [connection for connection in both if not (connection.is_closing or connection.is_closed)]

    def declare(self, then: Callable[[], None], tries: int = MOST_TRIES, unbound: frozenset[str] = frozenset()) -> None:
        """Declare everything (again), then call `then`. The queues in `unbound` are not bound.

        A queue may vanish between its declaration and its binding: RabbitMQ 4.0 cancels the queue's consumers, which
        brings us here, before it has deleted the queue. Then everything is declared once more.

        The exchange of a binding may be gone, and not be ours to make: that of a participant's uploads. Its queue stays
        unbound, because its sender hears of that. All else must go on: the coordinator makes the exchange once it has
        heard from the participant."""
        steps = _steps(self._exchanges, tuple(self._queues.values()), unbound)
        current = [_Step("a channel", "", {})]
        answer = self.answer(self.consuming, self._hangs)

        def opened(channel: Any) -> None:
            def advance(_frame: object = None) -> None:
                answer.stop()
                if self.over:
                    return
                step = next(steps, None)
                if step is None:
                    channel.close()
                    self.refusals = 0
                    then()
                    return
                current[0] = step
                answer.wait(f"the declaration of {step.what}")
                getattr(channel, step.method)(**step.arguments, callback=advance)

            advance()

        def refused(code: int, text: str) -> None:
            answer.stop()
            if self.over:
                return
            step = current[0]
            if code == NOT_FOUND and step.method == "queue_bind":
                if step.arguments["exchange"] not in {exchange.name for exchange in self._exchanges}:
                    self.declare(then, tries, unbound | {step.arguments["queue"]})
                    return
                if tries > 1:
                    self.declare(then, tries - 1, unbound)
                    return
            self.refusals += 1
            passive = "passive" in step.arguments
            again = partial(self._declare_again, then)
            self._on_declaration_refused(self, Refused(step.what, passive, code, text, again))

        answer.wait("the opening of a channel")
        self._driver.channel(self.consuming, opened, refused)

    def _declare_again(self, then: Callable[[], None]) -> None:
        if not self.over:
            self.declare(then)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back on the I/O thread."""
        self._driver.loop.call_later(delay_s, callback)

    def keep(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        then: Callable[[], None],
        refused: Callable[[str, int, str], None],
        counted: Callable[[str, int], None],
    ) -> None:
        """Declare these once more on a ready session, then call `then`. `refused` gets the name of what the broker does
        not let us declare, its code and its words; the session goes on. `counted` gets each queue's name and number of
        consumers. A broker that does not answer is left alone: who needs the answer waits for it elsewhere."""
        steps = _steps(exchanges, queues, frozenset())
        current = _Step("a channel", "", {})

        def opened(channel: Any) -> None:
            def advance(frame: Any = None) -> None:
                nonlocal current
                if self.over:
                    return
                if current.method == "queue_declare":
                    counted(current.arguments["queue"], frame.method.consumer_count)
                step = next(steps, None)
                if step is None:
                    channel.close()
                    then()
                    return
                current = step
                getattr(channel, step.method)(**step.arguments, callback=advance)

            advance()

        self._driver.channel(self.consuming, opened, lambda code, text: refused(current.what, code, text))

    def begin_chore(self, chore: Chore, finish: Finish, refused: OnRefused) -> Callable[[], None]:
        """Declare or delete on a channel of its own, then call `finish`. A chore that hangs fails alone. Return
        a function that gives the try up."""
        given_up = False
        answer = self.answer(self.consuming, lambda silence: finish(BrokerUnavailable(silence)))

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            answer.stop()

        def opened(channel: Any) -> None:
            def close(count: int) -> None:
                if channel.is_open:
                    channel.close()
                finish(count)

            if given_up:
                channel.close()
            elif chore.made is None:
                channel.queue_delete(chore.name, callback=lambda frame: close(frame.method.message_count))
            else:
                _declare(channel, chore.made, close)

        answer.wait(f"the {'deletion' if chore.made is None else 'declaration'} of {chore.what}")
        self._driver.channel(self.consuming, opened, refused)
        return give_up

    def _consuming_is_open(self, connection: Any) -> None:
        self.consuming = connection
        if not self.over:
            self.declare(self._declared)

    def _declared(self) -> None:
        self._publishing = self._driver.connect("publish", self._publishing_is_open, self.lose, self._news_of_alarms)

    def _news_of_alarms(self, reason: str | None) -> None:
        self._blocked = reason is not None
        self._on_blocked(reason)

    def _publishing_is_open(self, connection: Any) -> None:
        self._publishing = connection
        self._open_publish_channel()

    def _open_publish_channel(self) -> None:
        if self.over:
            return
        what = "the opening of a channel to publish on"
        mark = self._publish_try = object()

        def silent(silence: str) -> None:
            if self._blocked:  # then it does not even read our question
                answer.wait(what)
            else:
                self._hangs(silence)

        def closed(code: int, text: str) -> None:
            answer.stop()
            if mark is self._publish_try:
                self._publish_channel_closed(code, text)

        answer = self.answer(self._publishing, silent)
        answer.wait(what)
        self._driver.channel(self._publishing, partial(self._publish_channel_is_open, answer), closed)

    def _publish_channel_is_open(self, answer: Answer, channel: Any) -> None:
        def confirming() -> None:
            answer.stop()
            if self.over:
                return
            self._publisher.on_silence = partial(self._reopen_publish_channel, channel)
            self._publisher.attach(channel, partial(self._driver.unwritten_bytes, self._publishing))
            if not self.ready:
                self.ready = True
                self._on_ready(self)

        self._driver.confirm(channel, self._publisher, confirming)

    def _reopen_publish_channel(self, silent: Any) -> None:
        if silent.is_open:
            silent.close()
        self._open_publish_channel()

    def _publish_channel_closed(self, code: int, text: str) -> None:
        if self.over:
            return
        self._publisher.channel_closed(code, text)
        self._open_publish_channel()


class _Step(NamedTuple):
    """One declaration: its object for people, the channel's method, and the method's arguments."""

    what: str
    method: str
    arguments: dict[str, Any]


def _steps(exchanges: Iterable[Exchange], queues: Iterable[Queue], unbound: frozenset[str]) -> Iterator[_Step]:
    """Yield the declarations in order."""
    for exchange in exchanges:
        yield _exchange_step(exchange)
    for queue in queues:
        yield from _queue_steps(queue, bind=queue.name not in unbound)


def _exchange_step(exchange: Exchange) -> _Step:
    arguments = {"passive": True} if exchange.passive else {"exchange_type": "direct", "durable": True}
    return _Step(f"exchange {exchange.name!r}", "exchange_declare", {"exchange": exchange.name, **arguments})


def _queue_steps(queue: Queue, bind: bool = True) -> Iterator[_Step]:
    arguments = {"passive": True} if queue.passive else {"durable": True, "arguments": queue.arguments()}
    yield _Step(f"queue {queue.name!r}", "queue_declare", {"queue": queue.name, **arguments})
    if bind and not queue.passive and queue.exchange != DEFAULT_EXCHANGE:
        yield _Step(
            f"the binding of queue {queue.name!r} to exchange {queue.exchange!r}",
            "queue_bind",
            {"queue": queue.name, "exchange": queue.exchange, "routing_key": queue.routing_key},
        )


def _declare(channel: Any, made: Queue | Exchange, then: Callable[[int], None]) -> None:
    """Declare an exchange, or a queue with its binding. Then call `then` with the number of ready messages."""
    steps = iter((_exchange_step(made),)) if isinstance(made, Exchange) else _queue_steps(made)
    counts = [0]

    def advance(frame: Any = None) -> None:
        counts[0] += getattr(frame and frame.method, "message_count", 0)
        step = next(steps, None)
        if step is None:
            then(counts[0])
        else:
            getattr(channel, step.method)(**step.arguments, callback=advance)

    advance()
