"""Confirmed publishing with a window, as a state machine without sockets: `broker_config.amqp.transport` feeds it.

1. Messages are sent in the order of submission. At most `Window` of them are out and unconfirmed.
2. When the connection is lost, what was unconfirmed goes back to the front, in order, and is sent again.
3. RabbitMQ answers one bad publish by closing the channel, and does not say which it was. One message out:
   that one is guilty and fails. Several: each goes out alone, until the guilty one is found.
4. A message that timed out after it was sent keeps its place in the window until the broker answers or the
   connection is lost. A broker that takes nothing therefore never makes us buffer more than one window. Submitted
   again meanwhile, it is not sent again: the answer that the first copy gets is the second one's.
5. A broker that does not confirm the oldest message for `Window.silence_s`, although all was written to the network,
   has lost it or its confirm: a quorum queue without a leader, as after a restart, drops what reaches it, while other
   queues confirm. What is unconfirmed is sent again on a new channel (`on_silence`), after twice as long each time,
   for a broker that is only slow. What has bytes gets longer by `SLOWEST_LINK_BYTES_PER_S`, for a proxy that took them
   all before a slow link.
6. A slow network is no timeout: a message's time begins again as long as less of it, or of what goes before it, is
   left to write than when it last began. What stands still, or is written and not confirmed, times out.
7. A nack may be the channel's fault, not the queue's: one of RabbitMQ 3.10 that first publishes to a quorum queue while
   that elects its leader can refuse everything for that queue ever after. So after a nack what is out is waited for,
   and a new channel taken, at most every `NEW_CHANNEL_S`.
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
"""Behind a proxy that we do not see through a message may travel this slowly, and is not sent again for it."""

NEW_CHANNEL_S = 5.0
"""A full queue refuses on every channel: no more than one new one in this time."""

log = EventLog(__name__)


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be out and unconfirmed. Publish-and-wait is 2 to 3 times slower than 8 to 16 messages."""

    messages: int = 16
    size_bytes: int = 64 * 1024 * 1024
    silence_s: float = 5.0
    """See rule 5."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message on its way. `alone`: suspected of having closed a channel, see rule 3."""

    message: Message
    future: Future[None]
    timeout_s: float
    timer: Any = None
    alone: bool = False
    returned: Unroutable | None = None
    done: bool = False
    ends_at: int = 0
    """Bytes sent by the publisher up to and with this one."""
    left_bytes: int = 0
    """What was left to write when its time last began, see rule 6."""
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = len(self.message.body)

    def __str__(self) -> str:
        return describe(self.message)


def describe(message: Message) -> str:
    """For error messages: which message, whereto, how large."""
    size = len(message.body)
    return (
        f"message {message.message_id!r} ({size} bytes) to exchange {message.exchange!r}, key {message.routing_key!r}"
    )


class AmqpPublisher:
    """`attach` a channel in confirm mode, `detach` when it is lost; `submit` at any time."""

    def __init__(
        self,
        timers: Timers,
        properties: Callable[[Message], Any],
        window: Window,
        on_idle: Callable[[], None],
    ) -> None:
        """`properties` makes the AMQP properties of a message; `on_idle` is called when nothing is left to send."""
        self.on_silence: Callable[[], None] = lambda: None
        """Called after the channel was given up (rules 5 and 7): close it and attach a new one."""
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
        """The channel has refused something: it is given up once nothing is out."""
        self._trusted = False
        """It is new: its refusals are the queue's."""

    @property
    def idle(self) -> bool:
        """Whether every message that was submitted has its answer."""
        return not self._waiting and all(item.done for item in self._unconfirmed.values())

    def submit(self, item: Outgoing) -> None:
        """Take a message over; its future is answered within its timeout_s, or later as rule 6 says."""
        if not item.future.set_running_or_notify_cancel():
            return
        if not self._takes_over(item):
            self._waiting.append(item)
            self._pump()
        self._begin_time(item)

    def attach(self, channel: Any, unwritten_bytes: Callable[[], int]) -> None:
        """A fresh channel in confirm mode: its first publish has delivery tag 1.

        `unwritten_bytes` tells how much still waits for the network.
        """
        self._channel = channel
        self._unwritten_bytes = unwritten_bytes
        self._last_tag = 0
        self._pump()

    def uses(self, channel: Any) -> bool:
        """Whether this is the channel that is attached now."""
        return channel is self._channel

    def detach(self) -> None:
        """The connection is gone: what is unconfirmed will be sent again."""
        self._blocked = False
        self._silence_s = self._window.silence_s
        self._doubted = False
        self._take_back(alone=False)

    def block(self) -> None:
        """The broker takes nothing from publishers (memory or disk alarm)."""
        self._blocked = True

    def unblock(self) -> None:
        self._blocked = False
        self._pump()

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        """The broker's ack (`taken`) or nack of one publish, or of all up to `tag`."""
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
        """No queue took the message. Its ack follows, and fails it."""
        for item in self._unconfirmed.values():
            message = item.message
            found = (message.exchange, message.routing_key, message.message_id)
            if item.returned is None and found == (exchange, routing_key, message_id):
                item.returned = Unroutable(f"{item}: no queue is bound there ({code} {text})")
                return

    def channel_closed(self, code: int, text: str) -> None:
        """The broker closed our channel because of one of the unconfirmed messages; see rule 3."""
        if len(self._unconfirmed) == 1:
            (guilty,) = self._unconfirmed.values()
            self._answer(guilty, publish_refusal(str(guilty), code, text))
        self._take_back(alone=True)

    def fail_all(self, error: Exception) -> None:
        """Nothing will be sent any more."""
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
        except Exception as error:  # noqa: BLE001  pika encodes here: a header it cannot write is the message's fault
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
        """Whether it is out already, in a copy that timed out; see rule 4."""
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
        """To write until this message is with the broker, roughly: the headers of frames are not counted."""
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
