"""Confirmed publishing with a window, as a state machine without sockets: `broker_config.amqp.transport` feeds it.

1. Messages are sent in the order of submission. At most `Window` of them are out and unconfirmed.
2. When the connection is lost, the unconfirmed messages go back to the front, in order, and are sent again.
3. RabbitMQ answers one bad publish by closing the channel, and does not name the message. If one message is out, it is
   guilty and fails. If several are out, each is sent alone until the guilty one is found.
4. A message that timed out after it was sent keeps its place in the window until the broker answers or the connection
   is lost. So a broker that takes nothing never makes us buffer more than one window. If the message is submitted again
   meanwhile, it is not sent again: it shares the answer to its first copy.
5. If the broker does not confirm the oldest message for `Window.silence_s`, although all was written to the network, it
   has lost the message or the confirm. For example, a quorum queue without a leader, as after a restart, drops messages
   while other queues confirm. The unconfirmed messages are sent again on a new channel (`on_silence`). The wait doubles
   each time, for a broker that is only slow. It is longer by the messages' bytes at `SLOWEST_LINK_BYTES_PER_S`, for a
   proxy that took all of them before a slow link.
6. A slow network is no time-out. A message's time begins again as long as fewer bytes of it, and of the messages before
   it, are left to write than when its time last began. A message times out if its bytes stand still, or if it is
   written and not confirmed.
7. A nack may be the channel's fault and not the queue's. A channel of RabbitMQ 3.10 that first publishes to a quorum
   queue during the election of its leader can refuse everything for that queue ever after. So after a nack nothing new
   is sent until all messages that are out are answered; then a new channel is taken, at most every `NEW_CHANNEL_S`.
8. Everything here runs on one thread; only `Outgoing.future` is seen by others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

from fedmq.broker_config.amqp.address import publish_refusal
from fedmq.broker_config.timers import Timers
from fedmq.broker_config.transport import Message
from fedmq.schemas.errors import PublishError, PublishRejected, PublishTimeout, Unroutable
from fedmq.schemas.local.event_log import EventLog

SLOWEST_LINK_BYTES_PER_S = 64 * 1024
"""Speed that a message may have behind a proxy, unseen by us, without being sent again."""

NEW_CHANNEL_S = 5.0
"""Shortest time between two new channels after a nack: a full queue refuses on every channel."""

log = EventLog(__name__)


@dataclass(frozen=True, slots=True)
class Window:
    """Limits of the messages that are out and unconfirmed. One at a time is 2 to 3 times slower than 8 to 16."""

    messages: int = 16
    size_bytes: int = 64 * 1024 * 1024
    silence_s: float = 5.0
    """Time without a confirm until the messages are sent again (rule 5)."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message on its way. `alone`: it may have closed a channel (rule 3)."""

    message: Message
    future: Future[None]
    timeout_s: float
    timer: Any = None
    alone: bool = False
    returned: Unroutable | None = None
    done: bool = False
    ends_at: int = 0
    """Bytes that the publisher sent up to the end of this message."""
    left_bytes: int = 0
    """Bytes that were left to write when the message's time last began (rule 6)."""
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = len(self.message.body)

    def __str__(self) -> str:
        return describe(self.message)


def describe(message: Message) -> str:
    """Return the message's id, size and destination for an error text."""
    size = len(message.body)
    return (
        f"message {message.message_id!r} ({size} bytes) to exchange {message.exchange!r}, key {message.routing_key!r}"
    )


class AmqpPublisher:
    """The publisher of one transport. `attach` a channel in confirm mode, `detach` it when it is lost, `submit` any
    time."""

    def __init__(
        self,
        timers: Timers,
        properties: Callable[[Message], Any],
        window: Window,
        on_idle: Callable[[], None],
    ) -> None:
        """`properties` returns the AMQP properties of a message; `on_idle` is called when nothing is left to send."""
        self.on_silence: Callable[[], None] = lambda: None
        """Callback for a channel that was given up (rules 5 and 7): close it and attach a new one."""
        self._timers = timers
        self._properties = properties
        self._window = window
        self._on_idle = on_idle
        self._channel: Any = None
        self._blocked = False
        self._waiting: deque[Outgoing] = deque()
        self._unconfirmed: dict[int, Outgoing] = {}
        self._unconfirmed_bytes = 0
        self._last_tag = 0
        self._sent_bytes = 0
        self._unwritten_bytes: Callable[[], int] = lambda: 0
        self._silence_s = window.silence_s
        self._watch: Any = None
        self._watched = 0  # delivery tag of the oldest message
        self._doubted = False
        """True if the channel has refused a message: it is given up once nothing is out."""
        self._trusted = False
        """True if the channel is new: then its refusals are the queue's."""

    @property
    def idle(self) -> bool:
        """True if every submitted message has its answer."""
        return not self._waiting and all(item.done for item in self._unconfirmed.values())

    def submit(self, item: Outgoing) -> None:
        """Accept a message. Its future is answered within its timeout_s, or later by rule 6."""
        if not item.future.set_running_or_notify_cancel():
            return
        if not self._takes_over(item):
            self._waiting.append(item)
            self._pump()
        self._begin_time(item)

    def attach(self, channel: Any, unwritten_bytes: Callable[[], int]) -> None:
        """Use a fresh channel in confirm mode. Its first publish has delivery tag 1.

        `unwritten_bytes` returns the number of bytes that still wait for the network.
        """
        self._channel = channel
        self._unwritten_bytes = unwritten_bytes
        self._last_tag = 0
        self._pump()

    def uses(self, channel: Any) -> bool:
        """True if this channel is attached now."""
        return channel is self._channel

    def detach(self) -> None:
        """Forget the connection, which is gone: unconfirmed messages will be sent again."""
        self._blocked = False
        self._silence_s = self._window.silence_s
        self._doubted = False
        self._take_back(alone=False)

    def block(self) -> None:
        """Send nothing: the broker takes nothing from publishers (memory or disk alarm)."""
        self._blocked = True

    def unblock(self) -> None:
        self._blocked = False
        self._pump()

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        """Handle the broker's ack (`taken`) or nack of one publish, or of all up to `tag`."""
        tags = [found for found in self._unconfirmed if found <= tag] if multiple else [tag]
        for found in tags:
            item = self._unconfirmed.pop(found, None)
            if item is None:
                continue
            self._unconfirmed_bytes -= item.size_bytes
            if not taken:
                self._doubted = not self._trusted
                self._answer(item, PublishRejected(f"{item}: the broker said nack, as a full queue does"))
            else:
                self._answer(item, item.returned)
        if self._watched not in self._unconfirmed:
            self._silence_s = self._window.silence_s
            self._unwatch()
        self._pump()

    def returned(self, code: int, text: str, exchange: str, routing_key: str, message_id: str | None) -> None:
        """Note that no queue took the message. Its ack follows, and fails it."""
        for item in self._unconfirmed.values():
            message = item.message
            found = (message.exchange, message.routing_key, message.message_id)
            if item.returned is None and found == (exchange, routing_key, message_id):
                item.returned = Unroutable(f"{item}: no queue is bound there ({code} {text})")
                return

    def channel_closed(self, code: int, text: str) -> None:
        """Handle the loss of our channel, which the broker closed because of an unconfirmed message (rule 3)."""
        if len(self._unconfirmed) == 1:
            (guilty,) = self._unconfirmed.values()
            self._answer(guilty, publish_refusal(str(guilty), code, text))
        self._take_back(alone=True)

    def fail_all(self, error: Exception) -> None:
        """Fail all messages: nothing will be sent any more."""
        self._take_back(alone=False)
        while self._waiting:
            self._answer(self._waiting.popleft(), error)

    def _pump(self) -> None:
        if self._doubted and not self._unconfirmed and self._channel is not None:
            self._take_a_new_channel()
        self._send_what_fits()
        self._watch_for_silence()

    def _take_a_new_channel(self) -> None:
        self._doubted, self._trusted = False, True
        self._timers.call_later(NEW_CHANNEL_S, self._trust_no_more)
        self._take_back(alone=False)
        self.on_silence()

    def _trust_no_more(self) -> None:
        self._trusted = False

    def _send_what_fits(self) -> None:
        while self._waiting and self._channel is not None and self._channel.is_open and not self._blocked:
            item = self._waiting[0]
            if not self._has_room(item):
                return
            self._waiting.popleft()
            self._send(item)

    def _watch_for_silence(self) -> None:
        if self._watch is None and self._unconfirmed and self._channel is not None:
            self._watched = next(iter(self._unconfirmed))
            patience_s = self._silence_s + self._unconfirmed_bytes // SLOWEST_LINK_BYTES_PER_S
            self._watch = self._timers.call_later(patience_s, partial(self._silent, self._unwritten_bytes()))

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._timers.remove_timeout(self._watch)
            self._watch = None

    def _silent(self, unwritten_bytes_before: int) -> None:
        self._watch = None
        if self._blocked or unwritten_bytes_before or self._unwritten_bytes():
            self._watch_for_silence()
            return
        log.warning(
            "not_confirmed",
            messages=len(self._unconfirmed),
            silence_s=f"{self._silence_s:g}",
            detail="RabbitMQ has not confirmed the oldest message: sending them again on a new channel",
        )
        self._silence_s *= 2
        self._take_back(alone=False)
        self.on_silence()

    def _has_room(self, item: Outgoing) -> bool:
        if not self._unconfirmed:
            return True
        if self._doubted or item.alone or next(iter(self._unconfirmed.values())).alone:
            return False
        fits = self._unconfirmed_bytes + item.size_bytes <= self._window.size_bytes
        return fits and len(self._unconfirmed) < self._window.messages

    def _send(self, item: Outgoing) -> None:
        message = item.message
        try:
            self._channel.basic_publish(
                exchange=message.exchange,
                routing_key=message.routing_key,
                body=bytes(message.body),  # bytes stay themselves; pika takes nothing else
                properties=self._properties(message),
                mandatory=True,
            )
        except Exception as error:  # noqa: BLE001  pika encodes here, and a header that it cannot write is the message's fault
            self._answer(item, PublishError(f"{item} cannot be written as AMQP: {error!r}"))
            return
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = item
        self._unconfirmed_bytes += item.size_bytes
        self._sent_bytes += item.size_bytes
        item.ends_at = self._sent_bytes

    def _take_back(self, alone: bool) -> None:
        self._unwatch()
        self._channel = None
        back = [item for item in self._unconfirmed.values() if not item.done]
        for item in back:
            item.returned = None
            item.alone = item.alone or alone
        self._waiting.extendleft(reversed(back))
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0

    def _takes_over(self, item: Outgoing) -> bool:
        """True if a copy of it that timed out is still out (rule 4): then it takes the copy's place."""
        for tag, out in self._unconfirmed.items():
            if out.done and out.message == item.message:
                item.alone, item.returned, item.ends_at = out.alone, out.returned, out.ends_at
                self._unconfirmed[tag] = item
                return True
        return False

    def _begin_time(self, item: Outgoing) -> None:
        if not item.done:
            item.left_bytes = self._left_bytes(item)
            item.timer = self._timers.call_later(item.timeout_s, lambda: self._expire(item))

    def _left_bytes(self, item: Outgoing) -> int:
        """Return the bytes left to write until the broker has this message, without the headers of frames."""
        unwritten = self._unwritten_bytes() if self._channel is not None else 0
        if item not in self._waiting:
            return max(0, unwritten - (self._sent_bytes - item.ends_at))
        before = takewhile(lambda other: other is not item, self._waiting)
        return unwritten + sum(other.size_bytes for other in before) + item.size_bytes

    def _expire(self, item: Outgoing) -> None:
        if self._left_bytes(item) < item.left_bytes:
            self._begin_time(item)
            return
        if item in self._waiting:
            self._waiting.remove(item)
            held = "the broker holds publishers back (memory or disk alarm)" if self._blocked else "still waiting"
            why = held if self._channel is not None else "no connection"
        else:
            why = "sent, not confirmed"
        self._answer(item, PublishTimeout(f"{item}: no confirm within {item.timeout_s:g} s ({why})"))

    def _answer(self, item: Outgoing, error: Exception | None) -> None:
        if item.done:
            return
        item.done = True
        if item.timer is not None:
            self._timers.remove_timeout(item.timer)
        if error is None:
            item.future.set_result(None)
        else:
            item.future.set_exception(error)
        if self.idle:
            self._on_idle()
