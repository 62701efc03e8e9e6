"""The one seam between fedmq and a broker. Two implementations pass one contract suite (tests/contract):
`broker_config.amqp.transport.AmqpTransport` (RabbitMQ, by pika) and
`broker_config.embedded.transport.EmbeddedTransport`.

Rules that both keep
1. Every method may be called from any thread. Callbacks run on the transport's own thread: they must only hand over
   (put on a queue), and never block.
2. A publish is persistent, mandatory and confirmed. Its future resolves when the broker has taken the message over, or
   fails with Unroutable, PublishRejected, PublishTimeout or TransportClosed. It fails with BrokerRefused (no
   permission) or a plain PublishError (too large, for example) if the broker will never take this message. After a lost
   connection the message is sent again: it may arrive twice, but it never silently fails to arrive.
3. A delivery belongs to the connection that brought it. After a reconnect, ack and nack return False: the broker has
   taken the message back and delivers it again.
4. After a reconnect every exchange, queue and consumer is declared again before anything is sent. A passive one is
   looked at, and waited for until its maker has made it again. Whoever makes an exchange at `open` also declares all of
   that again every few seconds, because a broker does not tell that somebody has deleted an exchange or a binding.
5. Queues are declared and deleted in the order of the calls, and once more if a connection was lost meanwhile. The
   result is in doubt only if the future fails with BrokerUnavailable.
6. What somebody else can put right ends nothing: a passive object that is missing, a queue with other arguments
   (TopologyConflict), a limit of the broker. It is logged, and tried again until it works. Only `open` raises: with a
   timeout_s, because then somebody waits for the answer; and BrokerRefused, because of our own login and rights.
7. A stream keeps what is read, so each consumer gets all messages from its offset on, and to settle one only makes room
   in the window. From an offset that the stream has dropped, it begins with the oldest message that is there. After a
   reconnect it goes on at the oldest delivery that was not settled. Offsets rise, and RabbitMQ leaves some out: it
   writes notes of its own between the messages. A stream's depth says nothing: it is 0 for a while after a message
   came, and may be the number of all messages later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedmq.broker_config.topology import Exchange, Queue

KEEP_S = 3.0
"""Time between two declarations of what is shared (rule 4)."""
HeaderValue = str | int | bool
"""Value of a header. pika cannot write floating-point numbers into AMQP's header table."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish. `body` is bytes-like and must not change until the future is done."""

    exchange: str
    routing_key: str
    body: bytes | bytearray
    message_id: str
    correlation_id: str | None = None
    """The task_id, if there is one."""
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    expiration_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message for a consumer. It must be settled once, by ack, nack or dead_letter."""

    queue: str
    body: bytes | bytearray
    message_id: str | None
    correlation_id: str | None
    user_id: str | None
    headers: Mapping[str, object]
    redelivered: bool
    delivery_count: int
    """Number of earlier deliveries if the broker counts them (quorum queues); else 0."""
    token: object
    """The transport's own handle: connection generation and delivery tag."""
    offset: int | None = None
    """Place of the message in its stream; None if it comes from another kind of queue."""


@dataclass(frozen=True, slots=True)
class TransportState:
    """News of the connection, with the cause."""

    name: Literal["connected", "disconnected", "blocked", "unblocked", "consumer_lost"]
    """Kind of news."""
    detail: str = ""
    error: Exception | None = None


OnDelivery = Callable[[Delivery], None]
Offset = int | Literal["last"]
"""A place in a stream to read from. "last" is its last message, perhaps with a few before it."""
OnState = Callable[[TransportState], None]


class Transport(Protocol):
    """A connection to a broker. The module docstring has the rules."""

    @property
    def broker_id(self) -> str:
        """Name of the broker, by its own account and without credentials; empty before the first connection."""

    def open(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        on_state: OnState | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Connect and declare. Retry with full-jitter backoff until timeout_s (None: for ever).

        Raises BrokerUnavailable after timeout_s, and BrokerRefused at once. With a timeout_s it also raises
        TopologyConflict at once; without one it waits until the conflict is over (rule 6).
        """

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        """Hand over a message (rule 2). Never blocks."""

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int, offset: Offset | None = None) -> None:
        """Consume a queue, after every reconnect again, with at most `prefetch` unsettled deliveries. A stream is read
        from `offset` on (rule 7); None reads what comes from now on. Other queues have no offset."""

    def stop_consuming(self, queue: str) -> None:
        """Stop consuming a queue for good. Unsettled deliveries go back. Does nothing if the queue is not consumed."""

    def declare(self, queue: Queue, timeout_s: float = 30.0) -> Future[int]:
        """Declare one more queue, with its binding. From then on rule 4 holds for it. The future resolves with the
        number of messages that are ready in it.

        The future fails with TopologyConflict if the queue exists with other arguments (and the transport goes on),
        with BrokerRefused, with TransportClosed, or with BrokerUnavailable after timeout_s.
        """

    def declare_exchange(self, exchange: Exchange, timeout_s: float = 30.0) -> Future[int]:
        """Declare one more exchange, in the order of rule 5. Rule 4 does not hold for it, because there may be one for
        each of many thousand participants. The future resolves with 0, and fails as that of `declare`."""

    def delete_queue(self, name: str, timeout_s: float = 30.0) -> Future[int]:
        """Stop consuming a queue, forget it for rule 4, and delete it with all its messages. A queue that does not
        exist is no error. The future resolves with the number of messages that were ready; it fails as that of
        `declare`."""

    def forget_queue(self, name: str) -> None:
        """End rule 4 for this queue, because its use here is over. The queue stays, with its messages and consumers."""

    def ack(self, delivery: Delivery) -> bool:
        """Settle. False if the delivery's connection is gone: it will come again."""

    def nack(self, delivery: Delivery, requeue: bool = True) -> bool:
        """Give back (requeue), or reject to the queue's dead-letter exchange. False as for `ack`."""

    def dead_letter(self, delivery: Delivery, exchange: str, reason: str, detail: str) -> None:
        """Publish a copy to `exchange` (key "dead") with the headers `reason`, `detail` and `from_queue`. Ack the
        original once the copy is confirmed; give it back if the copy cannot be published."""

    def depth(self, queue: str) -> int:
        """Return the number of messages that are ready in the queue (a passive declare). Blocks up to a few seconds."""

    def reconnect(self, why: str) -> None:
        """End the connection and make a new one, with the TLS files as they are then. All is as after a lost connection
        (rules 2 to 5). Does nothing while there is none."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Send the waiting messages, declare and delete the waiting queues, then disconnect. A lost connection is
        replaced meanwhile. All that takes longer than timeout_s fails with TransportClosed. Unsettled deliveries go
        back; `on_state` hears no more. Idempotent."""
