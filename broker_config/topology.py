"""Exchanges and queues as data. Both transports declare from these values.

Who makes what
- The coordinator makes all that is shared, and the exchange `P.up.ID` of each device's uploads (`fedmq fleet enrol`
  may have made it before). A device looks at the shared objects with passive declarations, which need no right, and
  waits until they are there.
- A device makes its own queue and the queues of its uploads. The coordinator makes the queues of its downloads, and the
  stream of the models that several devices download.
- The coordinator sends to a device through the default exchange, whose routing key is the queue's name. So no binding
  can be added by which somebody else gets a copy.

`broker_config.rights` has the rights that each role needs for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

DEFAULT_EXCHANGE = ""
"""AMQP's default exchange: it knows every queue by its name, and has no other bindings."""
LEAST_MESSAGE_BYTES = 64 * 1024
"""The least that a process may set as `max_message_bytes`. No process cuts a smaller message into chunks."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""RabbitMQ 4's default `max_message_size`. RabbitMQ 3.10 accepts up to 128 MiB."""


_PAYLOAD_EXPIRES_S = 14 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable direct exchange."""

    name: str
    passive: bool = False
    """True if it is somebody else's: this process only looks if it is there."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, its limits, and the binding that feeds it. None means no limit."""

    name: str
    kind: Literal["classic", "quorum", "stream"]
    """A stream keeps its messages after they were read: each has an offset, from which any number of consumers read.
    It drops the oldest beyond `max_length_bytes`, a segment at a time."""
    exchange: str
    """Exchange that the queue is bound to. DEFAULT_EXCHANGE needs no binding; the routing key is the queue's name."""
    routing_key: str
    passive: bool = False
    """True if it is somebody else's: this process only looks if it is there, and does not bind it."""
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: Literal["drop-head", "reject-publish"] = "drop-head"
    message_ttl_s: float | None = None
    expires_s: float | None = None
    """Time without consumers and redeclarations after which the queue goes away."""
    delivery_limit: int | None = None
    """Redeliveries after which a quorum queue dead-letters a message. None leaves it to the broker: RabbitMQ 3.10 has
    no limit, 4.x has 20. So set one."""
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    single_active_consumer: bool = False
    segment_bytes: int | None = None
    """Size of a stream's segments: it always keeps the newest one."""

    def arguments(self) -> dict[str, Any]:
        """Return the AMQP `x-` arguments of queue.declare, the same for RabbitMQ 3.10 and 4.x."""
        limited = self.max_length or self.max_length_bytes
        ms = {"x-message-ttl": self.message_ttl_s, "x-expires": self.expires_s}
        found: dict[str, Any] = {
            "x-queue-type": self.kind,
            "x-max-length": self.max_length,
            "x-max-length-bytes": self.max_length_bytes,
            "x-overflow": self.overflow if limited and self.kind != "stream" else None,
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            "x-dead-letter-routing-key": self.dead_letter_routing_key,
            "x-single-active-consumer": self.single_active_consumer or None,
            "x-stream-max-segment-size-bytes": self.segment_bytes,
            **{key: None if value is None else int(value * 1000) for key, value in ms.items()},
        }
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Topology:
    """All names that a federation uses on the broker, from its prefix."""

    prefix: str = "fedmq"
    updates_max_bytes: int = 8 * 1024**3
    """Size beyond which the updates queue pushes back (reject-publish)."""
    payload_max_bytes: int = 4 * 1024**3
    """Largest payload in chunks. Its queue pushes back somewhat beyond this size, because chunks may come twice."""
    participant_queues: Literal["classic", "quorum"] = "classic"
    """Kind of the participants' queues and of the coordinators' leader queue. A classic queue is away while its one
    node is away. A quorum queue costs more, and outlives a node of a cluster."""

    @property
    def updates_exchange(self) -> Exchange:
        return Exchange(f"{self.prefix}.updates")

    @property
    def control_exchange(self) -> Exchange:
        return Exchange(f"{self.prefix}.control")

    @property
    def dead_exchange(self) -> Exchange:
        return Exchange(f"{self.prefix}.dead")

    def upload_exchange(self, participant_id: str) -> Exchange:
        """Return the exchange of one participant's uploads. The participant has no right to make it."""
        return Exchange(f"{self.prefix}.up.{participant_id}")

    @property
    def updates(self) -> Queue:
        """The queue of updates. It must lose nothing, and pushes back when it is full."""
        name = self.updates_exchange.name
        return Queue(
            name=name,
            kind="quorum",
            exchange=name,
            routing_key="update",
            max_length_bytes=self.updates_max_bytes,
            overflow="reject-publish",
            delivery_limit=1000,
            dead_letter_exchange=self.dead_exchange.name,
            dead_letter_routing_key="dead",
        )

    @property
    def control(self) -> Queue:
        """The queue of hellos and declines, which are small and short-lived. The oldest go first when it is full."""
        name = self.control_exchange.name
        return Queue(
            name=name,
            kind="quorum",
            exchange=name,
            routing_key="control",
            max_length=100_000,
            # A hello has about 600 bytes. Without this, as many of 16 MiB would fill the broker's disk.
            max_length_bytes=64 * 1024**2,
            message_ttl_s=60.0,
            delivery_limit=1000,
        )

    @property
    def leader(self) -> Queue:
        """The queue of one token, whose holder is the active coordinator (coordinator.service.leading.leadership). It
        is classic by default: a broker that was killed may bring a young quorum queue back without a leader
        (docs/operations.md), and then no coordinator would ever be active."""
        name = f"{self.prefix}.leader"
        return Queue(
            name=name,
            kind=self.participant_queues,
            exchange=DEFAULT_EXCHANGE,
            routing_key=name,
            max_length=1,
            # As good as no limit: the token is given back and consumed again all the time.
            delivery_limit=1_000_000 if self.participant_queues == "quorum" else None,
            single_active_consumer=True,
        )

    @property
    def dead(self) -> Queue:
        """The queue of bad messages, with the reasons in their headers."""
        name = self.dead_exchange.name
        return Queue(
            name=name,
            kind="quorum",
            exchange=name,
            routing_key="dead",
            max_length=1000,
            max_length_bytes=1024**3,
            # As good as no limit: each look at a message (get and requeue) counts, and past the limit it is gone.
            delivery_limit=1_000_000,
        )

    def participant(self, participant_id: str) -> Queue:
        """Return one participant's own queue: its tasks, receipts and notices."""
        name = f"{self.prefix}.participant.{participant_id}"
        return Queue(
            name=name,
            kind=self.participant_queues,
            exchange=DEFAULT_EXCHANGE,
            routing_key=name,
            max_length=16,
            overflow="drop-head",
            message_ttl_s=24 * 3600.0,
            expires_s=14 * 24 * 3600.0,
            delivery_limit=1000 if self.participant_queues == "quorum" else None,
        )

    def upload(self, participant_id: str, update_id: str) -> Queue:
        """Return the queue of the chunks of one update: the participant makes it and binds it."""
        name = f"{self.prefix}.payload.{participant_id}.{update_id}"
        return self._payload(name, self.upload_exchange(participant_id).name, _PAYLOAD_EXPIRES_S)

    def download(self, participant_id: str, payload_id: str, expires_s: float = _PAYLOAD_EXPIRES_S) -> Queue:
        """Return the queue of the chunks of one task: the coordinator makes it, the participant deletes it."""
        name = f"{self.prefix}.payload.{participant_id}.{payload_id}"
        return self._payload(name, DEFAULT_EXCHANGE, expires_s)

    @property
    def models_name(self) -> str:
        """Name of the stream of models."""
        return f"{self.prefix}.models"

    def models(self, keep_bytes: int, segment_bytes: int) -> Queue:
        """Return the stream of the models that tasks refer to: the coordinator makes it, and all participants read it.
        It keeps `keep_bytes`, and the segment that is being written."""
        return Queue(
            name=self.models_name,
            kind="stream",
            exchange=DEFAULT_EXCHANGE,
            routing_key=self.models_name,
            max_length_bytes=keep_bytes,
            segment_bytes=segment_bytes,
        )

    def _payload(self, name: str, exchange: str, expires_s: float) -> Queue:
        """Return a queue of chunks, which is classic because it is always young: a broker that is killed forgets young
        quorum queues (docs/operations.md). Its sender still has the payload on disk (docs/decisions/0020)."""
        return Queue(
            name=name,
            kind="classic",
            exchange=exchange,
            routing_key=name,
            max_length_bytes=self.payload_max_bytes + 256 * 1024**2,
            overflow="reject-publish",
            expires_s=expires_s,
        )

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The shared exchanges, which the coordinator makes. Each participant's uploads have one of their own."""
        return (self.updates_exchange, self.control_exchange, self.dead_exchange)

    @property
    def shared_queues(self) -> tuple[Queue, ...]:
        """The queues that all participants send to, and that of the dead letters."""
        return (self.dead, self.updates, self.control)

    @property
    def coordinator_queues(self) -> tuple[Queue, ...]:
        """The queues that a coordinator declares at its start: all but the participants' own."""
        return (*self.shared_queues, self.leader)

    @property
    def seen_exchanges(self) -> tuple[Exchange, ...]:
        """The shared exchanges that a participant sends to, for it to look at."""
        return tuple(replace(exchange, passive=True) for exchange in (self.updates_exchange, self.control_exchange))

    @property
    def seen_queues(self) -> tuple[Queue, ...]:
        """The shared queues that a participant sends to, for it to look at."""
        return tuple(replace(queue, passive=True) for queue in (self.updates, self.control))
