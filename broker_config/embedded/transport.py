"""The embedded transport: RabbitMQ's behaviour within one process, for the demo, for tests and for users' tests.

It is a real transport (`broker_config.transport` has the rules): bodies are bytes, messages expire, dead-letter and
come again, connections break. Each transport has one dispatcher thread. All callbacks run on it, those of the futures
too. Everything reaches that thread through one inbox, so nothing here holds a lock while it calls out.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

from fedmq.broker_config.chores import Chore, Chores, Finish
from fedmq.broker_config.dead_letters import dead_letter_of
from fedmq.broker_config.embedded.broker import EmbeddedBroker
from fedmq.broker_config.embedded.connection import Arrived, Cancelled, Connection, Disconnected, Lost, Token
from fedmq.broker_config.embedded.publisher import EmbeddedPublisher, Publish
from fedmq.broker_config.embedded.queue import Position
from fedmq.broker_config.timers import ClockTimers
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import KEEP_S, Delivery, Message, Offset, OnDelivery, OnState, TransportState
from fedmq.schemas.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    FedmqError,
    TopologyConflict,
    TransportClosed,
)
from fedmq.schemas.local.event_log import EventLog

__all__ = ["EmbeddedBroker", "EmbeddedTransport"]

GIVE_BACK_DELAY_S = 0.5
"""Wait before an unhandled message is given back, which keeps it from coming again in a tight loop."""
log = EventLog(__name__)
_numbers = itertools.count(1)
T = TypeVar("T")


class _Consume(NamedTuple):
    queue: str
    on_delivery: OnDelivery
    prefetch: int
    position: Position


class _GiveBack(NamedTuple):
    """A delivery that could not be handled, to be given back after GIVE_BACK_DELAY_S."""

    delivery: Delivery


class _StopConsuming(NamedTuple):
    queue: str


class _Forget(NamedTuple):
    queue: str


class _Reconnect(NamedTuple):
    pass


class _Close(NamedTuple):
    deadline_s: float


class EmbeddedTransport:
    """A connection to an `EmbeddedBroker`; `broker.drop_connections(name)` severs it by its name."""

    def __init__(self, broker: EmbeddedBroker, name: str | None = None, user: str | None = "guest") -> None:
        """`user`: the sender that the broker names in our messages; None leaves it out, as a stranger may."""
        self._user = user
        self.name = name or f"embedded-{next(_numbers)}"
        self._broker = broker
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._gate = threading.Lock()  # orders what enters the inbox against close(); never held while calling out
        self._is_open = False
        self._thread: threading.Thread | None = None
        # The dispatcher's own
        self._exchanges: tuple[Exchange, ...] = ()
        self._queues: dict[str, Queue] = {}
        self._kept: tuple[Queue, ...] = ()
        """Queues of `open` that are declared again and again, if this transport makes an exchange."""
        self._keeping = False
        self._on_state: OnState | None = None
        self._opened: Future[None] = Future()
        self._connection: Connection | None = None
        self._consumers: dict[str, _Consume] = {}
        self._lost: set[str] = set()
        """Queues whose consumers the broker ended, and could not start again yet."""
        self._hindrance: BrokerError | None = None
        """The reason for which something cannot be declared yet."""
        self._patient = False
        """True if `open` may wait for ever."""
        self._timers = ClockTimers(broker.clock)
        self._chores = Chores(self._timers, self._queues, self._begin_chore)
        self._publisher = EmbeddedPublisher(broker)
        self._failure: TransportClosed | None = None
        self._close_deadline_s: float | None = None

    @property
    def broker_id(self) -> str:
        """Name of the broker in this process."""
        return self._broker.broker_id

    def open(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        on_state: OnState | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Connect and declare. Raises BrokerUnavailable after timeout_s, and BrokerRefused at once; with a timeout_s
        also TopologyConflict, at once."""
        with self._gate:
            if self._thread is not None:
                raise TransportClosed(f"transport {self.name!r} was opened before: make a new one")
            self._exchanges, self._on_state, self._patient = tuple(exchanges), on_state, timeout_s is None
            self._queues.update((queue.name, queue) for queue in queues)
            self._kept = tuple(queue for queue in self._queues.values() if not queue.passive)
            self._is_open = True
            self._thread = threading.Thread(target=self._dispatch, name=f"fedmq-{self.name}", daemon=True)
            self._thread.start()
        try:
            self._opened.result(timeout_s)
        except FutureTimeoutError:
            hindrance = self._hindrance
            self.close(0.0)
            if hindrance is not None:
                raise BrokerUnavailable(f"after {timeout_s:g} s still: {hindrance}") from None
            raise BrokerUnavailable(f"no broker within {timeout_s} s: start it, or wait longer") from None
        except FedmqError:
            self.close(0.0)
            raise

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        """Hand over a message (rule 2). Never blocks."""
        future: Future[None] = Future()
        if not self._enter(Publish(message, timeout_s, self._broker.clock() + timeout_s, future)):
            future.set_exception(self._closed())
        return future

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int, offset: Offset | None = None) -> None:
        """Consume a queue, after every reconnect again. A second call for a queue replaces the first.

        A delivery whose `on_delivery` raises is given back after a moment.
        """
        if not self._enter(_Consume(queue, on_delivery, prefetch, Position(offset))):
            raise self._closed()

    def stop_consuming(self, queue: str) -> None:
        """Stop consuming a queue. Unsettled deliveries go back."""
        if not self._enter(_StopConsuming(queue)):
            raise self._closed()

    def declare(self, queue: Queue, timeout_s: float = 30.0) -> Future[int]:
        """Declare one more queue. The future resolves with the number of its ready messages."""
        return self._do(Chore(queue.name, queue, timeout_s))

    def declare_exchange(self, exchange: Exchange, timeout_s: float = 30.0) -> Future[int]:
        """Declare one more exchange, for which rule 4 does not hold."""
        return self._do(Chore(exchange.name, exchange, timeout_s))

    def delete_queue(self, name: str, timeout_s: float = 30.0) -> Future[int]:
        """Delete a queue with its messages, and forget it."""
        return self._do(Chore(name, None, timeout_s))

    def forget_queue(self, name: str) -> None:
        """Declare this queue no more after a reconnect."""
        self._enter(_Forget(name))

    def _do(self, chore: Chore) -> Future[int]:
        if not self._enter(chore):
            chore.done.set_exception(self._closed())
        return chore.done

    def ack(self, delivery: Delivery) -> bool:
        """Settle. False if the delivery's connection is gone: it will come again."""
        return self._broker.settle(cast(Token, delivery.token), "ack")

    def nack(self, delivery: Delivery, requeue: bool = True) -> bool:
        """Give back, or reject to the queue's dead-letter exchange. False as for `ack`."""
        return self._broker.settle(cast(Token, delivery.token), "requeue" if requeue else "reject")

    def dead_letter(self, delivery: Delivery, exchange: str, reason: str, detail: str) -> None:
        """Publish a copy to `exchange` (key "dead"), then ack the original; give it back if that fails."""
        copy = dead_letter_of(delivery, exchange, reason, detail)
        self.publish(copy).add_done_callback(partial(self._dead_lettered, delivery))

    def depth(self, queue: str) -> int:
        """Return the number of ready messages. Raises BrokerUnavailable while the broker is down, BrokerError for no
        such queue."""
        if not self._is_open:
            raise self._closed()
        return self._broker.depth(queue)

    def reconnect(self, why: str) -> None:  # noqa: ARG002  the broker here says why
        """End the connection and make a new one."""
        self._enter(_Reconnect())

    def close(self, timeout_s: float = 5.0) -> None:
        """Send the waiting messages, then disconnect. Unsettled deliveries go back. Idempotent."""
        with self._gate:
            if self._is_open:
                self._is_open = False
                self._inbox.put(_Close(time.monotonic() + timeout_s))
            if self._thread is None:
                self._thread = threading.current_thread()  # never opened, and not to be opened any more
            thread = self._thread
        if thread is not threading.current_thread():
            thread.join()

    # Any thread

    def _enter(self, item: Publish | _Consume | _StopConsuming | _Forget | Chore | _GiveBack | _Reconnect) -> bool:
        with self._gate:
            if self._is_open:
                self._inbox.put(item)
            return self._is_open

    def _closed(self) -> TransportClosed:
        return TransportClosed(f"transport {self.name!r} is not open: open() comes first, nothing goes after close()")

    def _dead_lettered(self, delivery: Delivery, published: Future[None]) -> None:
        error = published.exception()
        if error is None:
            self.ack(delivery)
        else:
            log.warning("not_dead_lettered", message=delivery.message_id, detail=f"giving it back: {error}")
            self._enter(_GiveBack(delivery))

    # The dispatcher thread

    def _dispatch(self) -> None:
        try:
            while True:
                self._connect()
                self._restore()
                self._work()
                self._timers.do_due()
                if self._is_over():
                    return
                try:
                    item = self._inbox.get(timeout=self._wait_s())
                except Empty:
                    self._broker.do_due()
                else:
                    self._on_item(item)
        finally:
            self._leave()

    def _is_over(self) -> bool:
        if self._close_deadline_s is None:
            return False
        return (not self._publisher and self._chores.idle) or time.monotonic() >= self._close_deadline_s

    def _wait_s(self) -> float | None:
        waits = [] if self._connection is None else [self._broker.seconds_until_due(self._connection)]
        dues_s = (self._publisher.next_deadline_s(), self._timers.next_due_s())
        waits.extend(due_s - self._broker.clock() for due_s in dues_s if due_s is not None)
        if self._close_deadline_s is not None:
            waits.append(self._close_deadline_s - time.monotonic())
        shortest_s = min((wait_s for wait_s in waits if wait_s is not None), default=None)
        return None if shortest_s is None else min(max(shortest_s, 0.0), threading.TIMEOUT_MAX)

    def _on_item(self, item: object) -> None:
        match item:
            case Arrived(connection, delivery, on_delivery):
                consumer = self._consumers.get(delivery.queue)
                wanted = consumer is not None and consumer.on_delivery is on_delivery
                live = wanted and connection is self._connection and connection.alive
                live = live and self._close_deadline_s is None
                if live and not self._call(on_delivery, delivery):
                    self._give_back_later(delivery)
            case Publish():
                if item.future.set_running_or_notify_cancel():
                    self._publisher.add(item)
            case _Consume():
                self._stop(item.queue)
                self._consumers[item.queue] = item
                self._start(item)
            case _StopConsuming(queue):
                self._stop(queue)
            case _Forget(queue):
                self._queues.pop(queue, None)
            case Chore():
                if item.made is None:
                    self._stop(item.name)
                self._chores.submit(item)
            case _GiveBack(delivery):
                self._give_back_later(delivery)
            case Lost(connection, detail) if connection is self._connection:
                self._connection = None
                self._lost.clear()
                self._chores.detach()
                self._publisher.connection_lost()
                self._report(TransportState("disconnected", detail))
            case Cancelled(connection, queue) if connection is self._connection and queue in self._consumers:
                self._report(TransportState("consumer_lost", f"queue {queue!r} was deleted: declaring it again"))
                self._lost.add(queue)
            case _Reconnect():
                self._broker.disconnect(self._connection, self._inbox)  # its Lost comes by the inbox
            case _Close(deadline_s):
                self._close_deadline_s = deadline_s
            case _:
                pass  # woken, or news of an earlier connection

    def _connect(self) -> None:
        if self._connection is not None or self._failure is not None:
            return
        try:
            connection = self._broker.connect(
                self.name, self._inbox, self._exchanges, self._queues.values(), self._user
            )
        except BrokerError as error:
            self._held_up(error)
            return
        if connection is None:
            return
        self._connection, self._hindrance = connection, None
        self._report(TransportState("connected"))
        if not self._opened.done():
            self._opened.set_result(None)
        if self._close_deadline_s is None:
            for consumer in self._consumers.values():
                self._start(consumer)
        self._chores.attach()
        if not self._keeping and any(not exchange.passive for exchange in self._exchanges):
            self._keeping = True
            self._timers.call_later(KEEP_S, self._keep)

    def _keep(self) -> None:
        """Declare what is shared again: somebody may have deleted it."""
        made = [exchange for exchange in self._exchanges if not exchange.passive]
        if self._connection is not None:
            with suppress(Disconnected, BrokerError):
                self._broker.declare(self._connection, made, self._kept, again=True)
        self._timers.call_later(KEEP_S, self._keep)

    def _start(self, consumer: _Consume) -> None:
        if self._connection is None:
            return  # connecting starts it
        with suppress(Disconnected):
            try:
                if not self._broker.consume(self._connection, *consumer):
                    self._report(TransportState("consumer_lost", f"queue {consumer.queue!r} does not exist"))
            except BrokerRefused as error:
                self._lost.add(consumer.queue)
                self._held_up(error)

    def _stop(self, queue: str) -> None:
        self._lost.discard(queue)
        if self._consumers.pop(queue, None) is not None and self._connection is not None:
            self._broker.cancel(self._connection, queue)

    def _restore(self) -> None:
        """Declare the queues that were deleted under their consumers, and consume again."""
        if not self._lost or self._connection is None:
            return
        try:
            self._broker.declare(self._connection, self._exchanges, self._queues.values(), again=True)
        except Disconnected:
            return
        except BrokerError as error:
            self._held_up(error)
            return
        self._hindrance = None
        lost, self._lost = self._lost, set()
        for queue in lost:
            self._start(self._consumers[queue])

    def _held_up(self, error: BrokerError) -> None:
        """Wait until somebody puts it right (rule 6): then the broker wakes us."""
        conflict = isinstance(error, TopologyConflict) and not self._patient
        if not self._opened.done() and (conflict or isinstance(error, BrokerRefused)):
            self._fail(error)
        elif str(error) != str(self._hindrance):
            self._hindrance = error
            event = "queue_conflict" if isinstance(error, TopologyConflict) else "waiting"
            log.warning(event, transport=self.name, detail=error)

    def _begin_chore(self, chore: Chore, finish: Finish) -> Callable[[], None]:
        """Do a chore at once: nothing is left to give up."""
        connection = self._connection
        assert connection is not None, "chores wait while there is none"
        try:
            if chore.made is None:
                count = self._broker.remove(connection, chore.name)
            elif isinstance(chore.made, Exchange):
                self._broker.declare(connection, [chore.made], ())
                count = 0
            else:
                self._broker.declare(connection, (), [chore.made])
                count = self._broker.depth(chore.name)
        except Disconnected:
            self._chores.detach()  # its Lost is in the inbox
        except BrokerError as error:
            finish(error)
        else:
            finish(count)
        return lambda: None

    def _work(self) -> None:
        if self._failure is not None:
            self._publisher.fail(self._failure)
            self._chores.fail_all(self._failure)
        if self._connection is not None:
            self._publisher.send(self._connection)
        self._publisher.time_out(self._broker.clock())

    def _give_back_later(self, delivery: Delivery) -> None:
        self._timers.call_later(GIVE_BACK_DELAY_S, partial(self.nack, delivery))

    def _fail(self, error: BrokerError) -> None:
        """Give up before the transport was ever open: from now on it can only be closed."""
        self._failure = TransportClosed(f"transport {self.name!r} gave up: {error}")
        self._broker.disconnect(self._connection, self._inbox)
        self._connection = None
        self._opened.set_exception(error)

    def _leave(self) -> None:
        with self._gate:
            self._is_open = False
        self._broker.disconnect(self._connection, self._inbox)
        self._publisher.fail(self._closed())
        self._chores.fail_all(self._closed())
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            future = item.done if isinstance(item, Chore) else item.future if isinstance(item, Publish) else None
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(self._closed())

    def _report(self, state: TransportState) -> None:
        if self._on_state is not None and self._close_deadline_s is None:  # its closer wants no more news
            self._call(self._on_state, state)

    def _call(self, callback: Callable[[T], None], argument: T) -> bool:
        """Call back. False if the callback raised: it must not end the dispatcher."""
        try:
            callback(argument)
        except Exception:  # a user's code may raise anything
            log.exception("callback_raised", transport=self.name, detail="going on")
            return False
        return True
