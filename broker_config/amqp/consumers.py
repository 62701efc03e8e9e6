"""All consumers of a transport. They start on every new session, and again after the broker ended one of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fedmq.broker_config.amqp.answers import Answer
from fedmq.broker_config.amqp.consumer import Consumer
from fedmq.broker_config.amqp.session import Driver, Session
from fedmq.broker_config.transport import TransportState
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)


class Consumers:
    """One consumer per queue. Everything here runs on the I/O thread."""

    def __init__(
        self, driver: Driver, backoff: Backoff, rng: random.Random, report: Callable[[TransportState], None]
    ) -> None:
        self._driver = driver
        self._backoff = backoff
        self._rng = rng
        self._report = report
        self._session: Session | None = None
        self._by_queue: dict[str, Consumer] = {}
        self._answers: dict[str, Answer] = {}
        """The awaited answer to the newest try to consume, by queue."""
        self._restarts: dict[str, object] = {}
        """Mark of the planned restart, by queue: a consumer that is lost twice at once, or stopped meanwhile, has no
        other."""
        self._missed: dict[str, object] = {}
        """The channel of a queue's consumer that RabbitMQ had not when it was last asked, by queue."""

    def add(self, consumer: Consumer) -> None:
        """Start a consumer in place of the queue's former one."""
        former = self._by_queue.get(consumer.queue)
        if former is not None:
            former.stop()
        self._by_queue[consumer.queue] = consumer
        self._start(consumer)

    def remove(self, queue: str) -> None:
        """Stop consuming a queue. Unsettled deliveries go back."""
        former = self._by_queue.pop(queue, None)
        self._restarts.pop(queue, None)
        self._await_no_more(queue)
        if former is not None:
            former.stop()

    def attach(self, session: Session) -> None:
        """Start all consumers on a session that is ready."""
        self._session = session
        for consumer in self._by_queue.values():
            self._start(consumer)

    def detach(self) -> None:
        """Forget the session, which is gone: unsettled deliveries come again."""
        self._session = None
        self._restarts.clear()
        self._missed.clear()
        for consumer in self._by_queue.values():
            consumer.detach()
            self._await_no_more(consumer.queue)

    def lost(self, consumer: Consumer, why: str) -> None:
        """Declare everything again and consume, after a while, because the broker ended one consumer."""
        session = self._session
        if session is None or self._by_queue.get(consumer.queue) is not consumer:
            return
        delay_s = self._backoff.delay_s(consumer.failures, self._rng)
        consumer.failures += 1
        detail = f"{why}; declaring and consuming again in {delay_s:.1f} s"
        log.warning("consumer_lost", queue=consumer.queue, detail=detail)
        self._report(TransportState("consumer_lost", detail))

        mark = self._restarts[consumer.queue] = object()

        def is_wanted() -> bool:
            return session is self._session and self._restarts.get(consumer.queue) is mark

        def start() -> None:
            if is_wanted():
                self._start(consumer)

        def again() -> None:
            if is_wanted():
                session.declare(start)

        self._driver.loop.call_later(delay_s, again)

    def counted(self, queue: str, consumers: int) -> None:
        """Start a consumer again that RabbitMQ does not have, although it confirmed it and never cancelled it.

        It drops the consumers of a queue without a word if the queue is deleted and declared again at once. Asked once
        is not enough: the answer may be older than the consumer.
        """
        consumer = self._by_queue.get(queue)
        channel = None if consumers or consumer is None else consumer.confirmed_on
        missed = self._missed.pop(queue, None)
        if consumer is None or channel is None:
            return
        if channel is missed:
            consumer.stop()
            self.lost(consumer, f"the broker has no consumer of queue {queue!r} any more")
        else:
            self._missed[queue] = channel

    def _start(self, consumer: Consumer) -> None:
        session = self._session
        if session is None:
            return

        def is_current() -> bool:
            return self._answers.get(consumer.queue) is answer

        def opened(channel: Any) -> None:
            if is_current():
                consumer.start(channel, on_works=answer.stop)
            else:
                channel.close()

        def closed(code: int, text: str) -> None:
            # The close of an abandoned channel may come late, when the consumer has another channel.
            if is_current():
                answer.stop()
                consumer.channel_closed(code, text)

        def silent(silence: str) -> None:
            self._await_no_more(consumer.queue)
            consumer.stop()
            self.lost(consumer, silence)

        self._restarts.pop(consumer.queue, None)
        self._await_no_more(consumer.queue)
        answer = self._answers[consumer.queue] = session.answer(session.consuming, silent)
        answer.wait(f"the consumer of queue {consumer.queue!r}")
        self._driver.channel(session.consuming, opened, closed)

    def _await_no_more(self, queue: str) -> None:
        former = self._answers.pop(queue, None)
        if former is not None:
            former.stop()
