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

        def again() -> None:
            if session is self._session:
                session.declare(lambda: self._start(consumer))

        self._driver.loop.call_later(delay_s, again)

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

        self._await_no_more(consumer.queue)
        answer = self._answers[consumer.queue] = session.answer(session.consuming, silent)
        answer.wait(f"the consumer of queue {consumer.queue!r}")
        self._driver.channel(session.consuming, opened, closed)

    def _await_no_more(self, queue: str) -> None:
        former = self._answers.pop(queue, None)
        if former is not None:
            former.stop()
