"""The transport over AMQP without pika: threads, life cycle, reconnecting. `broker_config.amqp.transport` adds the
driver.

One I/O thread owns everything below "The I/O thread's own". Callers hand over through an inbox. Other threads may call
only `add_callback_threadsafe` of the driver's loop. The neighbours make the decisions: `session` (connect, declare),
`publisher` (window, confirms, resends), `consumer` (deliveries, settling), `consumers` (bringing them back), `keeper`
(keeping what is shared), `retries` (connecting again), `address` (URLs, refusals), and `broker_config.chores` (queues
that come and go).
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, cast

from fedmq.broker_config.amqp.address import Addresses, BrokerAddress, declaration_refusal, waits_in_place
from fedmq.broker_config.amqp.consumer import Consumer, Token, Verdict
from fedmq.broker_config.amqp.consumers import Consumers
from fedmq.broker_config.amqp.keeper import Keeper
from fedmq.broker_config.amqp.publisher import AmqpPublisher, Outgoing, Window, describe
from fedmq.broker_config.amqp.retries import Retries
from fedmq.broker_config.amqp.session import Driver, Refused, Session
from fedmq.broker_config.chores import Chore, Chores, Finish
from fedmq.broker_config.dead_letters import dead_letter_of
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import Delivery, Message, Offset, OnDelivery, OnState, TransportState
from fedmq.schemas.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    FedmqError,
    PublishError,
    TopologyConflict,
    TransportClosed,
)
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.local.event_log import EventLog

DEPTH_TIMEOUT_S = 5.0
LOOK_AGAIN_S = 5.0
"""Longest wait for a shared object that the coordinator has not made yet: to look costs little, and all wait for it."""
GIVE_BACK_DELAY_S = 0.5
"""Wait before an unhandled message is given back, which keeps it from coming again in a tight loop."""
_CLOSE_GRACE_S = 2.0

log = EventLog(__name__)


class AmqpClient:
    """A transport over AMQP (`broker_config.transport` has the rules). It is opened once and closed once.

    Apart from rule 2's errors a publish may fail with BrokerRefused (no permission to write to the exchange), or with a
    PublishError that holds the complaint of the broker or of AMQP about the message.
    """

    def __init__(
        self,
        driver: Driver,
        addresses: Addresses,
        *,
        name: str,
        max_message_bytes: int,
        backoff: Backoff,
        window: Window,
        rng: random.Random,
    ) -> None:
        self.name = name
        self._addresses = addresses
        self._driver = driver
        self._max_message_bytes = max_message_bytes
        self._gate = threading.Lock()  # orders the jobs that enter the inbox against close()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_pending = False
        self._is_open = False
        self._thread: threading.Thread | None = None
        self._opened: Future[None] = Future()
        self._last_problem = "no answer yet"
        self._hindrance: BrokerError | None = None
        """The reason for which the broker that is connected cannot be used yet."""
        self._patient = False
        """True if `open` may wait for ever."""
        self._broker_id = ""
        # The I/O thread's own
        self._loop = driver.loop
        self._exchanges: tuple[Exchange, ...] = ()
        self._queues: dict[str, Queue] = {}
        self._keeper = Keeper((), ())
        self._on_state: OnState | None = None
        self._session: Session | None = None
        self._reported_connected = False
        self._failure: TransportClosed | None = None
        self._closing = False
        """True once close() was called: the jobs that were handed over are still done, and nothing else begins."""
        self._over = False
        """True once nothing is left to do but to say goodbye."""
        self._stopped = False
        self._backoff, self._rng = backoff, rng
        self._retries = Retries(self._loop, addresses, backoff, rng, self._connect)
        self._consumers = Consumers(driver, backoff, rng, self._report)
        self._publisher = AmqpPublisher(self._loop, driver.properties, window, self._on_idle)
        self._chores = Chores(self._loop, self._queues, self._begin_chore, self._on_idle)

    @property
    def address(self) -> BrokerAddress:
        """Address of the node that is connected, or tried next."""
        return self._addresses.current

    # -- any thread --------------------------------------------------------------------------------------------

    @property
    def broker_id(self) -> str:
        """The cluster's name and the virtual host: the same for all nodes of a cluster, whatever their addresses."""
        return self._broker_id

    def open(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        on_state: OnState | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Connect and declare. Try again until timeout_s (None: for ever).

        Raises BrokerUnavailable after timeout_s, and BrokerRefused at once; with a timeout_s also TopologyConflict, at
        once. Then the transport is closed.
        """
        with self._gate:
            if self._thread is not None:
                raise TransportClosed(f"transport {self.name!r} was opened before: make a new one")
            self._exchanges, self._on_state, self._patient = tuple(exchanges), on_state, timeout_s is None
            self._queues.update((queue.name, queue) for queue in queues)
            self._keeper = Keeper(self._exchanges, tuple(self._queues.values()), self._consumers.counted)
            self._is_open = True
            self._thread = threading.Thread(target=self._run, name=f"fedmq-{self.name}", daemon=True)
            self._thread.start()
        try:
            self._opened.result(timeout_s)
        except FutureTimeoutError:
            problem, hindrance = self._last_problem, self._hindrance
            self.close(0.0)
            if hindrance is not None:
                raise BrokerUnavailable(f"after {timeout_s:g} s still: {hindrance}") from None
            raise BrokerUnavailable(
                f"no RabbitMQ at {self._addresses} within {timeout_s:g} s ({problem}): "
                "start it, check host and port in the broker's URL, or wait longer"
            ) from None
        except FedmqError:
            self.close(0.0)
            raise

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        """Hand over a message (rule 2). Never blocks."""
        size = len(message.body)
        if size > self._max_message_bytes:
            future: Future[None] = Future()
            future.set_exception(
                PublishError(
                    f"{describe(message)} is larger than max_message_bytes, {self._max_message_bytes} bytes: "
                    "raise [broker] max_message_bytes (and RabbitMQ's max_message_size), or send a smaller model"
                )
            )
            return future
        return self._publish(message, timeout_s)

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int, offset: Offset | None = None) -> None:
        """Consume a queue, after every reconnect again. A second call for a queue replaces the first."""
        consumer = Consumer(
            queue, on_delivery, prefetch, offset, on_lost=self._consumers.lost, on_failed=self._give_back_later
        )
        if not self._enter(partial(self._consumers.add, consumer)):
            raise self._closed_error()

    def stop_consuming(self, queue: str) -> None:
        """Stop consuming a queue. Unsettled deliveries go back."""
        if not self._enter(partial(self._consumers.remove, queue)):
            raise self._closed_error()

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
        self._enter(partial(self._forget, name))

    def _do(self, chore: Chore) -> Future[int]:
        if not self._enter(partial(self._submit_chore, chore)):
            chore.done.set_exception(self._closed_error())
        return chore.done

    def ack(self, delivery: Delivery) -> bool:
        """Settle. False if it was settled before, or if its connection is gone: then it will come again."""
        return self._settle(delivery, "ack")

    def nack(self, delivery: Delivery, requeue: bool = True) -> bool:
        """Give back, or reject to the queue's dead-letter exchange. False as for `ack`."""
        return self._settle(delivery, "requeue" if requeue else "reject")

    def dead_letter(self, delivery: Delivery, exchange: str, reason: str, detail: str) -> None:
        """Publish a copy to `exchange` (key "dead"), then ack the original; give it back if that fails."""
        copy = dead_letter_of(delivery, exchange, reason, detail)
        # publish() would refuse a copy that is larger than our own messages may be.
        self._publish(copy, 30.0).add_done_callback(partial(self._dead_lettered, delivery))

    def depth(self, queue: str) -> int:
        """Return the number of ready messages. Raises BrokerUnavailable without a connection, BrokerError for no such
        queue."""
        found: Future[int] = Future()
        if not self._enter(partial(self._ask_depth, queue, found)):
            raise self._closed_error()
        try:
            return found.result(DEPTH_TIMEOUT_S)
        except FutureTimeoutError:
            raise BrokerUnavailable(
                f"RabbitMQ at {self.address} did not say the depth of {queue!r} within {DEPTH_TIMEOUT_S:g} s"
            ) from None

    def reconnect(self, why: str) -> None:
        """End the connection and make a new one."""
        self._enter(partial(self._lose_session, why))

    def close(self, timeout_s: float = 5.0) -> None:
        """Do all jobs that were handed over, if need be over a new connection, then disconnect. Idempotent."""
        with self._gate:
            if self._is_open:
                self._is_open = False
                self._append(partial(self._begin_close, timeout_s))
            thread = self._thread
            if thread is None:
                self._thread = threading.current_thread()  # never opened, and not to be opened any more
                self._loop.close()
                return
        if thread is not threading.current_thread():
            thread.join(timeout_s + 2 * _CLOSE_GRACE_S)
            if thread.is_alive():
                log.warning("io_thread_left_behind", transport=self.name, detail="it did not end in time")

    def _enter(self, job: Callable[[], None]) -> bool:
        with self._gate:
            if self._is_open:
                self._append(job)
            return self._is_open

    def _append(self, job: Callable[[], None]) -> None:
        self._inbox.append(job)
        if not self._wake_pending:  # many hand-overs, one wake-up
            self._wake_pending = True
            self._loop.add_callback_threadsafe(self._drain)

    def _closed_error(self) -> TransportClosed:
        return TransportClosed(f"transport {self.name!r} is not open: open() comes first, nothing goes after close()")

    def _publish(self, message: Message, timeout_s: float) -> Future[None]:
        item = Outgoing(message, Future(), timeout_s)
        if not self._enter(partial(self._submit, item)):
            item.future.set_exception(self._closed_error())
        return item.future

    def _settle(self, delivery: Delivery, verdict: Verdict) -> bool:
        hold, tag = cast(Token, delivery.token)
        # Claim first: from then on only this call may settle the delivery.
        return hold.claim(tag) and self._enter(partial(hold.settle, tag, verdict))

    def _dead_lettered(self, delivery: Delivery, published: Future[None]) -> None:
        error = published.exception()
        if error is None:
            self.ack(delivery)
        else:
            log.warning("not_dead_lettered", message=delivery.message_id, detail=f"giving it back: {error}")
            self._enter(partial(self._give_back_later, delivery))

    # -- the I/O thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._loop.add_callback_threadsafe(self._connect)
        while not self._stopped:
            try:
                self._loop.start()
            except Exception as error:  # whatever the error, messages must go on
                if (
                    isinstance(error, ValueError)
                    and isinstance(error.__context__, OSError)
                    and self._session is not None
                ):
                    # The peer hung up between pika's connecting and its first look at the socket.
                    self._session.lose(error.__context__)
                    continue
                log.exception("io_thread_error", transport=self.name, detail="connecting afresh")
                if self._session is not None:
                    self._session.lose(error)
                self._loop.add_callback_threadsafe(self._drain)  # the jobs behind the one that raised
        self._loop.close()

    def _drain(self) -> None:
        self._wake_pending = False
        while self._inbox:
            self._inbox.popleft()()

    def _connect(self) -> None:
        if self._over or self._failure is not None:
            return
        self._session = Session(
            self._driver,
            self._publisher,
            self._exchanges,
            self._queues,
            broker=str(self.address),
            on_ready=self._ready,
            on_declaration_refused=self._declaration_refused,
            on_lost=self._lost,
            on_blocked=self._blocked,
        )

    def _ready(self, session: Session) -> None:
        self._retries.ready()
        self._hindrance = None
        self._reported_connected = True
        self._broker_id = self._driver.broker_id(session.consuming)
        log.info("connected", broker=self.address, user=self.address.user, transport=self.name)
        self._report(TransportState("connected", f"RabbitMQ at {self.address}"))
        if not self._opened.done():
            self._opened.set_result(None)
        self._chores.attach()
        if not self._closing:
            self._consumers.attach(session)
            self._keeper.attach(session, self.address)

    def _lost(self, session: Session, error: Exception) -> None:
        if session is not self._session:
            return
        self._session = None
        self._publisher.detach()
        self._chores.detach()
        self._consumers.detach()
        ours = self._driver.explain(error)
        self._last_problem, self._hindrance = str(ours), None
        if isinstance(ours, BrokerRefused | TopologyConflict) and not self._opened.done():
            self._fail(ours)
            return
        if self._reported_connected:
            self._reported_connected = False
            self._report(TransportState("disconnected", str(ours), ours))
        self._retries.lost(ours)

    def _declaration_refused(self, session: Session, refused: Refused) -> None:
        """Try again over the same connection if somebody else can put it right. Nobody's mistake, and nobody's malice,
        ends this process for good."""
        error = declaration_refusal(self.address, refused.what, refused.code, refused.text)
        conflict = isinstance(error, TopologyConflict)
        if not waits_in_place(error, refused.code, refused.text):
            session.lose(error)
        elif conflict and not self._patient and not self._opened.done():
            session.lose(error)  # the caller has a deadline: somebody waits for the answer
        else:
            self._hindrance = error
            delay_s = self._backoff.delay_s(session.refusals - 1, self._rng)
            if refused.passive:
                delay_s = min(delay_s, LOOK_AGAIN_S)
            level = logging.ERROR if conflict else logging.WARNING
            event = "queue_conflict" if conflict else "waiting"
            log.log(level, event, transport=self.name, detail=f"{error}; trying again in {delay_s:.1f} s")
            self._loop.call_later(delay_s, refused.again)

    def _fail(self, error: FedmqError) -> None:
        """Give up before the transport was ever open: from now on it can only be closed."""
        self._failure = TransportClosed(f"transport {self.name!r} gave up: {error}")
        self._publisher.fail_all(self._failure)
        self._chores.fail_all(self._failure)
        self._opened.set_exception(error)

    def _report(self, state: TransportState) -> None:
        if self._on_state is None or self._closing:  # its closer wants no more news
            return
        try:
            self._on_state(state)
        except Exception:  # a caller's mistake must not end the connection
            log.exception("state_callback_raised", transport=self.name, state=state.name)

    def _lose_session(self, why: str) -> None:
        if self._session is not None and self._session.ready:
            self._session.lose(BrokerUnavailable(why))

    # publishing

    def _submit(self, item: Outgoing) -> None:
        if self._failure is not None:
            item.future.set_exception(self._failure)
        else:
            self._publisher.submit(item)

    # queues that come and go

    def _submit_chore(self, chore: Chore) -> None:
        if self._failure is not None:
            chore.done.set_exception(self._failure)
            return
        if chore.made is None:
            self._consumers.remove(chore.name)
        self._chores.submit(chore)

    def _begin_chore(self, chore: Chore, finish: Finish) -> Callable[[], None]:
        assert self._session is not None, "chores wait while there is none"

        def refused(code: int, text: str) -> None:
            finish(declaration_refusal(self.address, chore.what, code, text))

        return self._session.begin_chore(chore, finish, refused)

    def _forget(self, name: str) -> None:
        self._queues.pop(name, None)

    def _blocked(self, reason: str | None) -> None:
        if reason is None:
            log.info("unblocked", broker=self.address, detail="it takes messages again")
            self._publisher.unblock()
            self._report(TransportState("unblocked"))
        else:
            log.warning("blocked", broker=self.address, detail=f"it takes no messages now: {reason}")
            self._publisher.block()
            self._report(TransportState("blocked", reason))

    # consuming

    def _give_back_later(self, delivery: Delivery) -> None:
        self._loop.call_later(GIVE_BACK_DELAY_S, partial(self.nack, delivery))

    def _ask_depth(self, queue: str, found: Future[int]) -> None:
        session = self._session
        if session is None or not session.ready:
            found.set_exception(BrokerUnavailable(f"no connection to RabbitMQ at {self.address}: {self._last_problem}"))
            return

        def opened(channel: Any) -> None:
            def declared(frame: Any) -> None:
                channel.close()
                found.set_result(frame.method.message_count)

            channel.queue_declare(queue, passive=True, callback=declared)

        def refused(code: int, text: str) -> None:
            found.set_exception(BrokerError(f"RabbitMQ at {self.address} has no depth of {queue!r} ({code} {text})"))

        self._driver.channel(session.consuming, opened, refused)

    # closing

    def _begin_close(self, timeout_s: float) -> None:
        self._closing = True
        if self._idle or timeout_s <= 0:
            self._disconnect()
        else:
            self._retries.hurry()
            self._loop.call_later(timeout_s, self._disconnect)

    @property
    def _idle(self) -> bool:
        return self._publisher.idle and self._chores.idle

    def _on_idle(self) -> None:
        if self._closing and self._idle:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._over:
            return
        self._over = True
        session, self._session = self._session, None
        closed = TransportClosed(f"transport {self.name!r} was closed before the broker confirmed")
        self._publisher.fail_all(closed)
        self._chores.fail_all(closed)
        self._consumers.detach()
        if session is not None:
            session.close()
        self._loop.call_later(_CLOSE_GRACE_S, self._abort)
        self._driver.when_all_closed(self._stop)

    def _abort(self) -> None:
        """Drop the connections, because the broker does not answer our goodbye."""
        self._driver.abort()
        self._loop.add_callback_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopped = True
        self._loop.stop()
