"""What an embedded transport has to do besides messages: declare and delete queues. Used from its dispatcher's
thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from fedmq.broker_config.embedded.broker import EmbeddedBroker
from fedmq.broker_config.embedded.connection import Connection, Disconnected
from fedmq.broker_config.topology import Queue
from fedmq.schemas.errors import BrokerError, BrokerUnavailable, TransportClosed


@dataclass(slots=True, eq=False)
class Chore:
    """Declare `queue`; None deletes the one called `name`."""

    name: str
    queue: Queue | None
    timeout_s: float
    deadline_s: float
    future: Future[int]


class Chores:
    """In order of arrival. `queues` are those that the transport declares after a reconnect, by name."""

    def __init__(self, broker: EmbeddedBroker, queues: dict[str, Queue]) -> None:
        self._broker = broker
        self._queues = queues
        self._waiting: deque[Chore] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, chore: Chore) -> None:
        self._waiting.append(chore)

    def do(self, connection: Connection) -> None:
        while self._waiting:
            try:
                count = self._do(connection, self._waiting[0])
            except Disconnected:
                return  # its Lost is in the inbox
            except BrokerError as error:
                self._waiting.popleft().future.set_exception(error)
            else:
                self._waiting.popleft().future.set_result(count)

    def _do(self, connection: Connection, chore: Chore) -> int:
        if chore.queue is None:
            self._queues.pop(chore.name, None)
            return self._broker.remove(connection, chore.name)
        self._broker.declare(connection, (), [chore.queue])
        self._queues[chore.name] = chore.queue
        return self._broker.depth(chore.name)

    def next_deadline_s(self) -> float | None:
        """When `time_out` may next have something to do."""
        return min((chore.deadline_s for chore in self._waiting), default=None)

    def time_out(self, now: float) -> None:
        for chore in [chore for chore in self._waiting if chore.deadline_s <= now]:
            self._waiting.remove(chore)
            verb = "delete" if chore.queue is None else "declare"
            text = f"could not {verb} queue {chore.name!r} within {chore.timeout_s} s"
            chore.future.set_exception(BrokerUnavailable(text))

    def fail(self, error: TransportClosed) -> None:
        """All that wait."""
        while self._waiting:
            self._waiting.popleft().future.set_exception(error)
