"""Declaring and deleting queues while a session lives: one chore after the other, each on a channel of its own.

A chore that a lost connection cut short is done again on the next one: both kinds may be done twice without harm. One
that the broker does not answer fails alone: what hangs is a queue, as a rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fedmq.broker_config.amqp.answers import Answer
from fedmq.broker_config.amqp.publisher import Timers
from fedmq.broker_config.amqp.session import Driver, Session
from fedmq.broker_config.topology import Queue
from fedmq.schemas.errors import BrokerError, BrokerUnavailable


@dataclass(slots=True, eq=False)
class Chore:
    """`queue` is declared, with its binding; None deletes the queue called `name`.

    `done` is answered with the number of messages that were ready in the queue.
    """

    name: str
    queue: Queue | None
    timeout_s: float
    done: Future[int] = field(default_factory=Future)
    timer: Any = None


class Chores:
    """Everything here runs on the I/O thread; only `Chore.done` is seen by others."""

    def __init__(
        self,
        driver: Driver,
        timers: Timers,
        refusal: Callable[[str, int, str], BrokerError],
        *,
        on_done: Callable[[Chore], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._timers = timers
        self._refusal = refusal
        self._on_done = on_done
        self._on_idle = on_idle
        self._session: Session | None = None
        self._waiting: deque[Chore] = deque()
        self._running: object | None = None
        """A mark of the try that is under way: answers to an earlier one are not for it."""
        self._answer_to: Answer | None = None
        """Of that try."""

    @property
    def idle(self) -> bool:
        return not self._waiting

    def submit(self, chore: Chore) -> None:
        """Do this after all that were submitted before; its future is answered within its timeout_s."""
        if not chore.done.set_running_or_notify_cancel():
            return
        chore.timer = self._timers.call_later(chore.timeout_s, lambda: self._expire(chore))
        self._waiting.append(chore)
        self._next()

    def attach(self, session: Session) -> None:
        """A session that is ready."""
        self._session = session
        self._next()

    def detach(self) -> None:
        """The session is gone: what was under way waits for the next one."""
        self._session = None
        self._stop_trying()

    def _stop_trying(self) -> None:
        self._running = None
        if self._answer_to is not None:
            self._answer_to.stop()
            self._answer_to = None

    def fail_all(self, error: BrokerError) -> None:
        """Nothing will be done any more."""
        self.detach()
        while self._waiting:
            self._answer(self._waiting.popleft(), error)

    def _next(self) -> None:
        if self._session is None or self._running is not None or not self._waiting:
            return
        chore, mark = self._waiting[0], object()
        self._running = mark

        def finish(outcome: int | BrokerError) -> None:
            if self._running is not mark:
                return
            self._stop_trying()
            self._waiting.remove(chore)
            self._answer(chore, outcome)
            self._next()

        def opened(channel: Any) -> None:
            def close(count: int) -> None:
                if channel.is_open:
                    channel.close()
                self._on_done(chore)
                finish(count)

            if self._running is not mark:
                channel.close()
            elif chore.queue is None:
                channel.queue_delete(chore.name, callback=lambda frame: close(frame.method.message_count))
            else:
                self._declare(channel, chore.queue, close)

        def refused(code: int, text: str) -> None:
            finish(self._refusal(f"queue {chore.name!r}", code, text))

        self._answer_to = self._session.answer(self._session.consuming, lambda text: finish(BrokerUnavailable(text)))
        self._answer_to.wait(f"the {'deletion' if chore.queue is None else 'declaration'} of queue {chore.name!r}")
        self._driver.channel(self._session.consuming, opened, refused)

    def _declare(self, channel: Any, queue: Queue, then: Callable[[int], None]) -> None:
        def declared(frame: Any) -> None:
            count = frame.method.message_count
            channel.queue_bind(
                queue.name, queue.exchange, routing_key=queue.routing_key, callback=lambda _frame: then(count)
            )

        channel.queue_declare(queue.name, durable=True, arguments=queue.arguments(), callback=declared)

    def _expire(self, chore: Chore) -> None:
        if chore not in self._waiting:
            return
        if self._waiting[0] is chore and self._running is not None:
            # Under way: its answer may still come, and must not be taken for the next one's.
            self._stop_trying()
        self._waiting.remove(chore)
        verb = "delete" if chore.queue is None else "declare"
        self._answer(chore, BrokerUnavailable(f"could not {verb} queue {chore.name!r} within {chore.timeout_s:g} s"))
        self._next()

    def _answer(self, chore: Chore, outcome: int | BrokerError) -> None:
        self._timers.remove_timeout(chore.timer)
        if isinstance(outcome, int):
            chore.done.set_result(outcome)
        else:
            chore.done.set_exception(outcome)
        if self.idle:
            self._on_idle()
