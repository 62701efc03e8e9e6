"""Payloads in chunks on their way: what was announced, what is read now, and what became of it (intake.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedmq.broker_config.chunks.receiver import ChunkReceiver
from fedmq.broker_config.transport import Delivery, Transport
from fedmq.coordinator.decisions.events import DeliveryHandle
from fedmq.schemas.messages import ChunkedPayload, Update


@dataclass(frozen=True, slots=True)
class Manifest:
    """An update whose payload is in its queue."""

    handle: DeliveryHandle
    update: Update
    chunks: ChunkedPayload
    num_bytes: int = 0
    """Length of the manifest itself."""


@dataclass(slots=True)
class Whole:
    """A payload whose chunks are all there, as they were sent."""

    manifest: Manifest
    _body: memoryview | None

    def take_body(self) -> memoryview:
        """Hand the payload over, once: nothing here keeps it in RAM from then on."""
        body, self._body = self._body, None
        assert body is not None
        return body.toreadonly()


@dataclass(frozen=True, slots=True)
class Broken:
    """A payload that cannot be put together; `final` at the last try."""

    manifest: Manifest
    detail: str
    final: bool


@dataclass(slots=True)
class History:
    """The turns of an update so far."""

    tries: int = 0
    tried_at_s: float = float("-inf")
    silent_since_s: float | None = None
    """Time since when chunks have been missing in its queue; None if they were not at the last look."""
    look_s: float = float("-inf")
    """Time before which it is not looked at again."""
    budgets: int = 0
    """Number of budgets that were used up."""
    hollow: int = 0
    """Number of turns in which its queue had chunks enough, and not the right ones."""


class Reading:
    """The payload that is read now, and its receiver's store: one buffer; only repeated chunks are acked (rule 3)."""

    def __init__(self, manifest: Manifest, transport: Transport) -> None:
        self.manifest = manifest
        self.receiver: ChunkReceiver
        self.until_s = float("inf")
        """End of the budget."""
        self._transport = transport
        # A bytearray would write zeros first.
        self._buffer: memoryview | None = np.empty(manifest.chunks.num_bytes, np.uint8).data

    def arrived(self, start: int, delivery: Delivery) -> Delivery:
        buffer = self._buffer  # the loop may let go of it meanwhile
        if buffer is not None:
            buffer[start : start + len(delivery.body)] = delivery.body
        return replace(delivery, body=b"")

    def bytes_of(self, start: int, length: int, _delivery: Delivery) -> memoryview:
        assert self._buffer is not None
        return self._buffer[start : start + length]

    def keep(self, index: int | None, _digest: bytes, delivery: Delivery) -> None:
        if index is None:
            self._transport.ack(delivery)

    def stop(self) -> memoryview | None:
        """Stop the receiver. Return the buffer, and hold it no more."""
        self.receiver.stop()
        return self.let_go()

    def let_go(self) -> memoryview | None:
        """Return the buffer, and hold it no more. Receiver and store hold each other until a garbage collection."""
        buffer, self._buffer = self._buffer, None
        return buffer
