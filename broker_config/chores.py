"""Declaring and deleting while a transport is open, for both transports: one chore after the other.

Rules
1. Chores are done in the order in which they were submitted, one at a time, while the transport is connected.
2. A chore that a lost connection cut short is begun again on the next one. Both kinds may be done twice without harm.
3. A chore fails with BrokerUnavailable after its `timeout_s`, under way or not. If it was under way its answer may come
   later: it counts for `queues`, and is not taken for the answer to the next chore.
4. A queue that is declared joins `queues`, which the transport declares after a reconnect. A queue that is deleted
   leaves it. An exchange joins nothing: there may be one for each of many thousand participants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedmq.broker_config.timers import Timers
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.schemas.errors import BrokerError, BrokerUnavailable


@dataclass(slots=True, eq=False)
class Chore:
    """`made` is declared, a queue with its binding; None deletes the queue called `name`.

    `done` is answered with the number of messages that were ready in the queue; 0 for an exchange.
    """

    name: str
    made: Queue | Exchange | None
    timeout_s: float
    done: Future[int] = field(default_factory=Future)
    timer: Any = None

    @property
    def what(self) -> str:
        """The object's kind and name, for people."""
        return f"{'exchange' if isinstance(self.made, Exchange) else 'queue'} {self.name!r}"


Finish = Callable[[int | BrokerError], None]
Begin = Callable[[Chore, Finish], Callable[[], None]]
"""Begin a chore, and return a function that gives it up. It may call `Finish` at once, or later on the same thread."""


class Chores:
    """Everything here runs on the transport's thread; only `Chore.done` is seen by others."""

    def __init__(
        self,
        timers: Timers,
        queues: dict[str, Queue],
        begin: Begin,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`queues` by name; `on_idle` is called when no chore is left."""
        self._timers = timers
        self._queues = queues
        self._begin = begin
        self._on_idle = on_idle
        self._connected = False
        self._waiting: deque[Chore] = deque()
        self._running: object | None = None
        """Mark of the try that is under way: answers to an earlier try are ignored."""
        self._give_up: Callable[[], None] | None = None
        """Function that gives that try up."""
        self._beginning = False

    @property
    def idle(self) -> bool:
        return not self._waiting

    def submit(self, chore: Chore) -> None:
        """Do this after all chores that were submitted before. Its future is answered within its timeout_s."""
        if not chore.done.set_running_or_notify_cancel():
            return
        if chore.made is None:
            self._queues.pop(chore.name, None)
        chore.timer = self._timers.call_later(chore.timeout_s, partial(self._expire, chore))
        self._waiting.append(chore)
        self._next()

    def attach(self) -> None:
        """Go on: the transport is connected."""
        self._connected = True
        self._next()

    def detach(self) -> None:
        """Wait for the next connection, with the chore that was under way."""
        self._connected = False
        self._stop_trying()

    def fail_all(self, error: BrokerError) -> None:
        """Do nothing any more."""
        self.detach()
        while self._waiting:
            self._answer(self._waiting.popleft(), error)

    def _next(self) -> None:
        if self._beginning:  # called by a chore that was done at once: the loop below goes on
            return
        self._beginning = True
        try:
            while self._connected and self._running is None and self._waiting:
                chore, mark = self._waiting[0], object()
                self._running = mark
                give_up = self._begin(chore, partial(self._finish, chore, mark))
                if self._running is mark:
                    self._give_up = give_up
        finally:
            self._beginning = False

    def _finish(self, chore: Chore, mark: object, outcome: int | BrokerError) -> None:
        if isinstance(outcome, int):
            if chore.made is None:
                self._queues.pop(chore.name, None)
            elif isinstance(chore.made, Queue):
                self._queues[chore.name] = chore.made
        if self._running is mark:
            self._stop_trying()
            self._waiting.remove(chore)
            self._answer(chore, outcome)
            self._next()

    def _stop_trying(self) -> None:
        give_up, self._running, self._give_up = self._give_up, None, None
        if give_up is not None:
            give_up()

    def _expire(self, chore: Chore) -> None:
        if chore not in self._waiting:
            return
        if self._waiting[0] is chore and self._running is not None:
            self._stop_trying()
        self._waiting.remove(chore)
        verb = "delete" if chore.made is None else "declare"
        self._answer(chore, BrokerUnavailable(f"could not {verb} {chore.what} within {chore.timeout_s:g} s"))
        self._next()

    def _answer(self, chore: Chore, outcome: int | BrokerError) -> None:
        self._timers.remove_timeout(chore.timer)
        if isinstance(outcome, int):
            chore.done.set_result(outcome)
        else:
            chore.done.set_exception(outcome)
        if self.idle:
            self._on_idle()
