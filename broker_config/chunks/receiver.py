"""Receives one payload in chunks, from a queue of its own or from a stream that others read too; both roles use it.

Rules
1. The transport's thread reads a chunk's label and hands the chunk to the store; the owner's thread checks its digest.
   If a label or a digest cannot be right, the payload is lost.
2. The store holds the bytes, and decides when a chunk is acked. A repeated chunk, or a chunk of another payload, goes
   to the store as None, because it fills the window until it is acked.
3. The payload is lost if its queue is gone, or if the queue is empty and no wanted chunk has come for `PATIENCE_S`. A
   broker that is away loses nothing: the receiver waits for it.
4. A chunk of another user than `sender` is no chunk. It is acked and counted, and changes nothing else: the payload is
   not damaged by it, and not waited for any longer.
5. Only a wanted chunk is progress. An honest sender repeats a few chunks after a lost connection. So the payload is
   lost after `most_unwanted` chunks that are not wanted. A new connection of ours brings its own repeats, and is
   counted anew.
6. In a stream the payload's chunks are in their order, among those of others: of later payloads, and of a coordinator
   that leads no more. So reading begins where the first missing one may be. The payload is lost if a chunk of another
   one lies behind the place where its own must be, or after `SPARE` more than the payload has. The stream itself is
   never deleted.
7. Once `stop` or `delete` was called, or the payload is whole or lost, chunks that still arrive change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from fedmq.broker_config.transport import Delivery, Transport
from fedmq.schemas.chunks import PAYLOAD_ID, Assembly, digest_of
from fedmq.schemas.errors import BrokerError, BrokerUnavailable, MalformedMessage
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import ChunkedPayload

log = EventLog(__name__)

PATIENCE_S = 30.0
"""Time without chunks, longer than a broker takes to notice that a former connection of ours, which holds them, is
dead."""
MORE_UNWANTED = 64
"""Unwanted chunks that a payload may bring beside two for each of its own: a short one has repeats as well."""
SPARE = 16
"""Chunks of others, and repeats, among those of one payload in a stream."""
SLOWEST_LINK_BYTES_PER_S = 64 * 1024
"""Speed at which a chunk of a stream may come in. A queue tells that it has one under way, and a stream does not."""
QueueState = Literal["filled", "empty", "gone", "unknown"]


class Store(Protocol):
    """The place of a payload's bytes, and the rule for acks. The owner handles its OSErrors."""

    def arrived(self, start: int, delivery: Delivery) -> Delivery:
        """Accept a wanted chunk for byte `start`, on the transport's thread. Return the delivery for the owner's
        thread."""

    def bytes_of(self, start: int, length: int, delivery: Delivery) -> bytes | bytearray | memoryview:
        """Return the bytes of an accepted chunk, for its digest."""

    def keep(self, index: int | None, digest: bytes, delivery: Delivery) -> None:
        """Keep a chunk that is as it was sent. If it was not wanted, `index` is None and `digest` is empty."""


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """A chunk on its way from the transport's thread to the owner's."""

    receiver: ChunkReceiver
    index: int | None
    """None if the chunk was not wanted."""
    delivery: Delivery
    problem: str | None
    """The mistake in its label; None if there is none."""
    foreign: bool = False
    """True if another user sent it (rule 4)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The payload cannot be put together."""

    detail: str


Outcome = Lost | Literal["whole"] | None
"""None: chunks are still missing."""


class ChunkReceiver:
    """The receiver of one payload. The owner's thread calls it; `put` is called from the transport's thread."""

    def __init__(
        self,
        transport: Transport,
        queue: str,
        payload: ChunkedPayload,
        store: Store,
        *,
        put: Callable[[ChunkArrived], None],
        prefetch: int,
        sender: str | None = None,
        offset: int | None = None,
    ) -> None:
        """`sender`: the only user whose chunks are taken; None takes anybody's. `offset`: the place in a stream before
        that of the first chunk; None for a queue of the payload's own."""
        self.payload = payload
        self.queue = queue
        self.heard_s: float
        """Time of the last wanted chunk, or of the last look at the queue."""
        self.silent_since_s: float | None = None
        """Time since when the queue has been empty; None if it was not at the last look."""
        self._assembly: Assembly
        self._transport = transport
        self._store = store
        self._put = put
        self._prefetch = prefetch
        self._sender = sender
        self._offset = offset
        self.foreign = 0
        """Number of chunks that other users put into the queue."""
        self.ready: int | None = None
        """Number of chunks that were in the queue at `begin`; None if the broker was away."""
        self.came = 0
        """Number of chunks that have come since, of any kind."""
        self._unwanted = 0
        self._over = False

    @property
    def most_unwanted(self) -> int:
        """Number of unwanted chunks beyond which the payload is lost (rules 5 and 6)."""
        return 2 * self.payload.count + MORE_UNWANTED if self._offset is None else self.payload.count + SPARE

    @property
    def has_all_that_was_ready(self) -> bool:
        """True if all chunks that were in the queue at `begin` have come. If chunks are still missing then, they were
        not there."""
        return self.ready is not None and self.came >= self.ready

    @property
    def missing(self) -> int:
        """Number of chunks that have not been checked yet."""
        return self._assembly.missing

    @property
    def patience_ends_s(self) -> float:
        """Time at which an empty queue means that the payload is lost."""
        under_way_s = 0.0 if self._offset is None else self.payload.chunk_bytes / SLOWEST_LINK_BYTES_PER_S
        return (self.heard_s if self.silent_since_s is None else self.silent_since_s) + PATIENCE_S + under_way_s

    def begin(
        self, now: float, digests: Mapping[int, bytes] | None = None, silent_since_s: float | None = None
    ) -> Outcome:
        """Consume the queue, unless nothing is missing.

        `digests`: those of the chunks that the store holds already. `silent_since_s`: the time since when an earlier
        receiver of this payload found the queue empty.
        """
        self._assembly = Assembly(self.payload, digests)
        self.heard_s, self.silent_since_s = now, silent_since_s
        if not self.missing:
            return self._whole()
        try:
            self.ready = self._transport.depth(self.queue)
        except BrokerUnavailable:
            self.ready = None
        except BrokerError:
            return self._lost(f"its queue {self.queue} does not exist")
        if self._offset is None:
            self._transport.consume(self.queue, self._arrived, self._prefetch)
        else:
            self.ready = None
            offset = self._offset + 1 + self._assembly.first_missing
            prefetch = min(self._prefetch, self.missing + 1)  # more would be of others
            self._transport.consume(self.queue, self._arrived, prefetch, offset)
        return None

    def on_chunk(self, chunk: ChunkArrived, now: float) -> Outcome:
        """Check a chunk and keep it."""
        if self._over or chunk.receiver is not self:
            return None
        self.came += 1
        if chunk.foreign:
            self._on_foreign(chunk.delivery)
            return None
        if chunk.problem is not None:
            return self._lost(chunk.problem)
        if chunk.index is None:
            return self._on_unwanted(chunk.delivery)
        self.heard_s = now
        start, length = self._assembly.offset(chunk.index), self._assembly.length(chunk.index)
        digest = digest_of(self._store.bytes_of(start, length, chunk.delivery))
        try:
            self._assembly.check(chunk.index, digest)
        except MalformedMessage as error:
            return self._lost(str(error))
        self._store.keep(chunk.index, digest, chunk.delivery)
        return None if self.missing else self._whole()

    def reconnected(self) -> None:
        """Expect repeats anew: the broker delivers what was not acked once more."""
        self._unwanted = 0

    def _on_unwanted(self, delivery: Delivery) -> Lost | None:
        self._unwanted += 1
        self._store.keep(None, b"", delivery)
        if self._unwanted <= self.most_unwanted:
            return None
        missing = f"{self.missing} of {self.payload.count} chunks are missing"
        came = f"{self._unwanted} chunks came that are repeats or of another payload"
        return self._lost(f"{came}, at most {self.most_unwanted} expected; {missing}")

    def _on_foreign(self, delivery: Delivery) -> None:
        self.foreign += 1
        if self.foreign == 1:  # one line a payload, however many come
            detail = f"it is of user {delivery.user_id!r}, expected {self._sender!r}; it is dropped, as all others are"
            log.warning("foreign_chunk", queue=self.queue, detail=detail)
        self._store.keep(None, b"", delivery)

    def look(self, now: float) -> Lost | None:
        """Look at the queue, and note since when it is empty."""
        if self._over:
            return None
        state = self._queue_state()
        if state == "gone" or (state == "empty" and now >= self.patience_ends_s):
            return self._lost(f"{self.missing} of {self.payload.count} chunks are missing")
        if state != "empty":
            self.silent_since_s = None
        elif self.silent_since_s is None:
            self.silent_since_s = self.heard_s
        self.heard_s = now
        return None

    def interrupted(self, now: float) -> Lost | None:
        """Look at once at a stream whose consumer the broker has ended: it may have been deleted."""
        return None if self._offset is None else self.look(now)

    def stop(self) -> None:
        """Read no more. Chunks that were not acked go back to their queue."""
        self._over = True
        self._transport.stop_consuming(self.queue)

    def delete(self) -> None:
        """Read no more and delete the queue, if it is the payload's own."""
        self._over = True
        if self._offset is None:
            self._transport.delete_queue(self.queue)
        else:
            self._transport.stop_consuming(self.queue)

    def _whole(self) -> Outcome:
        self._over = True
        try:
            self._assembly.check_all()
        except MalformedMessage as error:
            return Lost(str(error))
        return "whole"

    def _lost(self, detail: str) -> Lost:
        self._over = True
        return Lost(detail)

    def _queue_state(self) -> QueueState:
        """Ask whether chunks are ready; "empty" says nothing about those that a consumer holds. Blocks for a few
        seconds at most."""
        try:
            ready = self._transport.depth(self.queue)
            return "filled" if ready and self._offset is None else "empty"  # a stream's depth says nothing
        except BrokerUnavailable:
            return "unknown"  # no connection, or none soon
        except BrokerError:
            return "gone"

    def _lies_behind(self, delivery: Delivery) -> bool:
        """True if this chunk of another payload lies behind all places where those of this one may be (rule 6)."""
        if (
            self._offset is None
            or delivery.offset is None
            or delivery.headers.get(PAYLOAD_ID) == self.payload.payload_id
        ):
            return False
        return delivery.offset > self._offset + self.payload.count + SPARE

    def _arrived(self, delivery: Delivery) -> None:
        """Handle a delivery on the transport's thread (rule 1)."""
        if self._over:
            return
        if self._sender is not None and delivery.user_id != self._sender:
            self._put(ChunkArrived(self, None, replace(delivery, body=b""), None, foreign=True))
            return
        index, problem = None, None
        try:
            index = self._assembly.place(delivery.headers, len(delivery.body))
        except MalformedMessage as error:
            problem = str(error)
        if index is None and problem is None and self._lies_behind(delivery):
            problem = f"{self.missing} of {self.payload.count} chunks are not in the stream any more"
        if index is None:
            delivery = replace(delivery, body=b"")
        else:
            delivery = self._store.arrived(self._assembly.offset(index), delivery)
        self._put(ChunkArrived(self, index, delivery, problem))
