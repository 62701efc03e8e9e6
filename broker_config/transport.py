"""The one seam between fedmq and a broker. Two implementations pass one contract suite (tests/contract):
`broker_config.amqp.transport.AmqpTransport` (RabbitMQ, by pika) and
`broker_config.embedded.transport.EmbeddedTransport`.

Rules that both keep
1. Every method may be called from any thread. Callbacks run on the transport's own thread: they must
   only hand over (put on a queue), never block.
2. A publish is persistent, mandatory and confirmed. Its future resolves when the broker has taken the
   message over, or fails with Unroutable, PublishRejected, PublishTimeout or TransportClosed; with BrokerRefused
   (no permission) or a plain PublishError (too large, say) where this very message will never be taken. Connection
   losses in between are survived by sending it again: a message may arrive twice, never silently not.
3. A delivery belongs to the connection that brought it. After a reconnect, ack and nack return False:
   the broker has taken the message back and delivers it again.
4. After a reconnect every exchange, queue and consumer is declared again before anything is sent.
5. What is declared or deleted while the transport is open is done in the order of the calls, and done again where a
   connection was lost over it. It is in doubt only where its future fails with BrokerUnavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedmq.broker_config.topology import Exchange, Queue

HeaderValue = str | int | bool
"""pika cannot write floating-point numbers into AMQP's header table."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is published. `body` is bytes-like and must not change until the future is done."""

    exchange: str
    routing_key: str
    body: bytes | bytearray
    message_id: str
    correlation_id: str | None = None
    """The task_id, where there is one."""
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    expiration_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """What a consumer gets. Must be settled once: ack, nack or dead_letter."""

    queue: str
    body: bytes | bytearray
    message_id: str | None
    correlation_id: str | None
    user_id: str | None
    headers: Mapping[str, object]
    redelivered: bool
    delivery_count: int
    """How often it was delivered before, where the broker counts (quorum queues); else 0."""
    token: object
    """The transport's own: connection generation and delivery tag."""


@dataclass(frozen=True, slots=True)
class TransportState:
    """News of the connection, for logs and for the agent: what happened and why."""

    name: Literal["connected", "disconnected", "blocked", "unblocked", "consumer_lost", "failed"]
    """`failed` is final (BrokerRefused, TopologyConflict): trying again cannot help."""
    detail: str = ""
    error: Exception | None = None


OnDelivery = Callable[[Delivery], None]
OnState = Callable[[TransportState], None]


class Transport(Protocol):
    """See the module docstring for the rules."""

    @property
    def broker_id(self) -> str:
        """Which broker this is, by its own name and without credentials; empty before it was ever open."""

    def open(
        self,
        exchanges: Iterable[Exchange],
        queues: Iterable[Queue],
        on_state: OnState | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Connect and declare. Retries with full-jitter backoff until timeout_s (None: for ever).

        Raises BrokerUnavailable (after timeout_s), BrokerRefused or TopologyConflict at once.
        """

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        """Hand over a message; see rule 2. Never blocks."""

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int) -> None:
        """Start (and after every reconnect restart) consuming, `prefetch` unsettled at a time."""

    def stop_consuming(self, queue: str) -> None:
        """Consume no more, also after a reconnect; what is unsettled goes back. Nothing where nobody consumes."""

    def declare(self, queue: Queue, timeout_s: float = 30.0) -> Future[int]:
        """Declare one more queue, with its binding; from then on rule 4 holds for it. Resolves with the number of
        messages that are ready in it.

        Fails with TopologyConflict (it exists with other arguments: nothing else comes of that), BrokerRefused,
        TransportClosed, or BrokerUnavailable where it could not be done within timeout_s.
        """

    def delete_queue(self, name: str, timeout_s: float = 30.0) -> Future[int]:
        """Stop consuming a queue, forget it for rule 4, and delete it with its messages, settled or not. One that does
        not exist is no error. Resolves with the number of messages that were ready; fails as `declare` does."""

    def forget_queue(self, name: str) -> None:
        """Rule 4 holds for this queue no more: its use here is over. It stays, with its messages; whoever consumes it
        goes on."""

    def ack(self, delivery: Delivery) -> bool:
        """Settle. False: the delivery's connection is gone, it will come again."""

    def nack(self, delivery: Delivery, requeue: bool = True) -> bool:
        """Give back (requeue) or reject to the queue's dead-letter exchange."""

    def dead_letter(self, delivery: Delivery, exchange: str, reason: str, detail: str) -> None:
        """Publish a copy to `exchange` (key "dead") with headers `reason`, `detail` and `from_queue`, and ack the
        original once that is confirmed. Where the copy cannot be published the original is given back."""

    def depth(self, queue: str) -> int:
        """Messages ready in the queue (a passive declare). Blocks up to a few seconds."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued for sending and do what was asked for queues, over a new connection where this one is
        lost, then disconnect. What takes longer than timeout_s fails with TransportClosed. Unsettled deliveries go
        back; `on_state` hears no more. Idempotent."""
