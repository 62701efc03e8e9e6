"""A consumer on its own channel, and the settling of its deliveries from any thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from fedmq.broker_config.transport import Delivery, Offset, OnDelivery
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

Verdict = Literal["ack", "requeue", "reject"]
_COUNT, _OFFSET = "x-delivery-count", "x-stream-offset"
"""Headers that the broker adds."""
_NOTHING = object()


class Hold:
    """The unsettled deliveries of one channel. A lost channel holds none, because they come again.

    `claim` may race with `clear` from the I/O thread. Operations on a dictionary are atomic, so one of the two wins.
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._tags: dict[int, int | None] = {}
        """Delivery tag -> the offset in the stream; None if it comes from another kind of queue."""
        self._after: int | None = None
        """Offset after that of the newest delivery."""

    def add(self, tag: int, offset: int | None = None) -> None:
        self._tags[tag] = offset
        if offset is not None:
            self._after = offset + 1

    def go_on_at(self) -> int | None:
        """Return the offset of the oldest unsettled delivery, or the one after the newest; None if there is none."""
        return min((offset for offset in list(self._tags.values()) if offset is not None), default=self._after)

    def claim(self, tag: int) -> bool:
        """Claim the right to settle a delivery. False if it was settled before, or if its channel is lost."""
        return self._tags.pop(tag, _NOTHING) is not _NOTHING

    def clear(self) -> None:
        self._tags.clear()

    def settle(self, tag: int, verdict: Verdict) -> None:
        """Settle a claimed delivery. Runs on the I/O thread. Those of a stream are acked, whatever the verdict: they
        stay in it, and RabbitMQ 3.10 closes the connection of a consumer that gives one back."""
        if not self.channel.is_open:
            return
        if verdict == "ack" or self._after is not None:
            self.channel.basic_ack(tag)
        else:
            self.channel.basic_nack(tag, requeue=verdict == "requeue")


class Token(NamedTuple):
    """The `Delivery.token` of AMQP."""

    hold: Hold
    tag: int


class Consumer:
    """The consumer of one queue. Call `start` on every new connection; `on_lost` says that the broker ended it."""

    def __init__(
        self,
        queue: str,
        on_delivery: OnDelivery,
        prefetch: int,
        offset: Offset | None = None,
        *,
        on_lost: Callable[[Consumer, str], None],
        on_failed: Callable[[Delivery], None],
    ) -> None:
        """`offset`: where a stream is read from (broker_config.transport, rule 7). `on_failed` gets a delivery whose
        `on_delivery` raised."""
        self.queue = queue
        self.failures = 0
        """Number of failures since consuming last worked."""
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._offset = offset
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._hold: Hold | None = None
        self._confirmed: Hold | None = None

    @property
    def active(self) -> bool:
        return self._hold is not None

    @property
    def confirmed_on(self) -> Any:
        """Channel on which the broker has confirmed the consumer; None if there is none now."""
        return None if self._hold is None or self._hold is not self._confirmed else self._hold.channel

    def start(self, channel: Any, on_works: Callable[[], None] = lambda: None) -> None:
        """Consume on a fresh channel, and close the former channel. Two channels would share the queue's messages, and
        those of the first would never be settled. `on_works` is called when the broker confirms the consumer."""
        self.stop()
        hold = self._hold = Hold(channel)

        def works() -> None:
            self.failures = 0
            self._confirmed = hold
            on_works()

        channel.add_on_cancel_callback(lambda _frame: self._cancelled(hold))
        # global_qos stays off, because RabbitMQ 4 has dropped it.
        channel.basic_qos(prefetch_count=self._prefetch)
        of_stream = {} if self._offset is None else {"arguments": {_OFFSET: self._offset}}
        channel.basic_consume(self.queue, partial(self._arrived, hold), callback=lambda _frame: works(), **of_stream)

    def channel_closed(self, code: int, text: str) -> None:
        """Report that the broker closed the channel: no such queue, no permission, or a delivery held too long."""
        self.detach()
        self._on_lost(self, f"the broker closed the consumer of queue {self.queue!r} ({code} {text})")

    def detach(self) -> None:
        """Forget the channel, which is gone: its unsettled deliveries come again."""
        if self._hold is not None:
            if (goes_on_at := self._hold.go_on_at()) is not None:
                self._offset = goes_on_at
            self._hold.clear()
            self._hold = None

    def stop(self) -> None:
        """Stop consuming. Unsettled deliveries go back to the queue."""
        hold = self._hold
        self.detach()
        if hold is not None and hold.channel.is_open:
            hold.channel.close()

    def _cancelled(self, hold: Hold) -> None:
        if hold is self._hold:
            self.stop()
            self._on_lost(self, f"the broker cancelled the consumer: queue {self.queue!r} was deleted")

    def _arrived(self, hold: Hold, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if hold is not self._hold:
            return
        headers: Mapping[str, object] = properties.headers or {}
        count, offset = headers.get(_COUNT, 0), headers.get(_OFFSET)
        offset = int(offset) if isinstance(offset, int) else None  # pika's own kind of int
        hold.add(method.delivery_tag, offset)
        delivery = Delivery(
            queue=self.queue,
            body=body,
            message_id=properties.message_id,
            correlation_id=properties.correlation_id,
            user_id=properties.user_id,
            headers={key: value for key, value in headers.items() if key not in (_COUNT, _OFFSET)},
            redelivered=bool(method.redelivered),
            delivery_count=count if isinstance(count, int) else 0,
            token=Token(hold, method.delivery_tag),
            offset=offset,
        )
        try:
            self._on_delivery(delivery)
        except Exception:  # a caller's mistake must not end the connection
            log.exception("consumer_raised", queue=self.queue, detail="its message is given back")
            self._on_failed(delivery)
