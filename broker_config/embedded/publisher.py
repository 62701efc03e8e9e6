"""The messages of an embedded transport that are on their way. Used from its dispatcher's thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from fedmq.broker_config.embedded.broker import EmbeddedBroker
from fedmq.broker_config.embedded.connection import Connection, Disconnected
from fedmq.broker_config.transport import Message
from fedmq.schemas.errors import PublishTimeout, TransportClosed


@dataclass(slots=True, eq=False)
class Publish:
    """A message on its way."""

    message: Message
    timeout_s: float
    deadline_s: float
    future: Future[None]


class EmbeddedPublisher:
    """Messages in order of arrival. Those that a lost connection had not confirmed go first on the next one."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._unsent: deque[Publish] = deque()
        self._unconfirmed: deque[Publish] = deque()
        self._first_deadline_s = float("inf")

    def __len__(self) -> int:
        return len(self._unsent) + len(self._unconfirmed)

    def add(self, publish: Publish) -> None:
        self._unsent.append(publish)
        self._first_deadline_s = min(self._first_deadline_s, publish.deadline_s)

    def send(self, connection: Connection) -> None:
        """Send the unsent messages, and handle the broker's answers."""
        while self._unsent:
            try:
                answer = self._broker.publish(connection, self._unsent[0].message)
            except Disconnected:
                return  # its Lost is in the inbox
            publish = self._unsent.popleft()
            if answer == "confirmed":
                publish.future.set_result(None)
            elif answer == "withheld":
                self._unconfirmed.append(publish)
            else:
                publish.future.set_exception(answer)

    def connection_lost(self) -> None:
        self._unsent.extendleft(reversed(self._unconfirmed))
        self._unconfirmed.clear()

    def next_deadline_s(self) -> float | None:
        """Return the time at which `time_out` may next have something to do."""
        return self._first_deadline_s if self else None

    def time_out(self, now: float) -> None:
        if self._first_deadline_s > now:
            return
        late = [publish for publish in (*self._unconfirmed, *self._unsent) if publish.deadline_s <= now]
        self._unsent = deque(publish for publish in self._unsent if publish.deadline_s > now)
        self._unconfirmed = deque(publish for publish in self._unconfirmed if publish.deadline_s > now)
        left = (publish.deadline_s for publish in (*self._unconfirmed, *self._unsent))
        self._first_deadline_s = min(left, default=float("inf"))
        for publish in late:
            publish.future.set_exception(
                PublishTimeout(f"no confirm of message {publish.message.message_id} within {publish.timeout_s} s")
            )

    def fail(self, error: TransportClosed) -> None:
        """Fail all messages that are on their way."""
        left = (*self._unconfirmed, *self._unsent)
        self._unconfirmed.clear()
        self._unsent.clear()
        for publish in left:
            publish.future.set_exception(error)
