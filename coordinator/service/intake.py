"""Puts updates that come in chunks together in RAM, one at a time, in the order of their manifests.

Rules
1. Each update has a queue of its own, and only one queue is read at a time. RAM holds one payload, however many
   participants upload at once, and no update waits for room that another one's chunks take.
2. The transport's thread copies a chunk to its place, so that no second copy of the payload gathers in the inbox.
3. Only repeated chunks are acked. Once the payload is whole its chunks go back to their queue, which is deleted after
   the commit that holds the update. A coordinator that crashes before the commit finds all of the chunks there.
4. A payload that its receiver calls lost is broken. Its participant, which keeps the update until the receipt, is asked
   to send it again. The try number `MOST_TRIES` is the last one. Failures within `ONE_TRY_S` are one try, because the
   manifest of a broken payload may come several times before its participant has heard of it. While a queue is empty
   for `GIVE_WAY_S`, the other payloads go first.
5. A manifest may come twice. The latest copy stands for all of them: they say the same, and if a consumer was lost only
   the latest one can still be acked.
6. A manifest's claims are compared with the model before anything of that size is allocated.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedmq.broker_config.chunks.receiver import ChunkArrived, ChunkReceiver, Lost
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Transport
from fedmq.coordinator.decisions.events import DeliveryHandle
from fedmq.schemas.errors import LimitExceeded, SpecMismatch
from fedmq.schemas.limits import DEFAULT_LIMITS
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import ChunkedPayload, Update, update_id

log = EventLog(__name__)

GIVE_WAY_S = 1.0
MOST_TRIES = 3
ONE_TRY_S = 30.0
_ENVELOPE_BYTES = DEFAULT_LIMITS.max_header_bytes + 256
"""The most that an encoded update holds beside its tensors."""
_AMQP_MOST_PREFETCH = 65_535


@dataclass(frozen=True, slots=True)
class Manifest:
    """An update whose payload is in its queue."""

    handle: DeliveryHandle
    update: Update
    chunks: ChunkedPayload


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


class _Reading:
    """The payload that is read now, and its receiver's store: one buffer; only repeated chunks are acked (rule 3)."""

    def __init__(self, manifest: Manifest, transport: Transport) -> None:
        self.manifest = manifest
        self.receiver: ChunkReceiver
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


class Intake:
    """The module docstring has the rules. The loop's thread calls everything; `put` is called from the transport's."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        *,
        put: Callable[[ChunkArrived], None],
        payload_bytes: int,
        sender_of: Callable[[str], str | None] = lambda _participant_id: None,
    ) -> None:
        """`payload_bytes`: the length of every update's tensors. `sender_of` returns the user whose chunks are taken
        for a participant's; None if anybody's are."""
        self._transport = transport
        self._topology = topology
        self._put = put
        self._payload_bytes = payload_bytes
        self._sender_of = sender_of
        self._waiting: deque[Manifest] = deque()
        self._current: _Reading | None = None
        self._tries: Counter[str] = Counter()
        """Tries by update_id, as the two below."""
        self._tried_at_s: dict[str, float] = {}
        self._silent_since_s: dict[str, float] = {}
        """Time since when the queue of an update that gave way has been empty."""

    def check(self, chunks: ChunkedPayload) -> None:
        """Raise a PeerError unless this can be an update of the model (rule 6)."""
        if chunks.num_bytes > self._payload_bytes + _ENVELOPE_BYTES:
            raise LimitExceeded(
                f"the manifest announces {chunks.num_bytes} bytes, an update of this model has {self._payload_bytes}"
            )
        if chunks.num_bytes < self._payload_bytes:
            raise SpecMismatch(
                f"the manifest announces {chunks.num_bytes} bytes, an update of this model has {self._payload_bytes}: "
                "coordinator and participants must build the same model"
            )

    def queue_of(self, run_id: str, task_id: str, participant_id: str) -> str:
        """Return the name of the queue that a task's update is uploaded to."""
        return self._topology.upload(participant_id, update_id(run_id, task_id, participant_id)).name

    def offer(self, handle: DeliveryHandle, update: Update) -> DeliveryHandle | None:
        """Let this update wait for its turn. Return the earlier copy of its manifest, which is to be acked now
        (rule 5); None if there is none."""
        assert update.chunks is not None
        manifest, current = Manifest(handle, update, update.chunks), self._current
        if current is not None and current.manifest.update.update_id == update.update_id:
            former = current.manifest
            if former.chunks == manifest.chunks:
                current.manifest = manifest
            else:  # it was trained, and uploaded, anew
                self._stop(current)
                self._waiting.appendleft(manifest)
            return former.handle
        for place, waiting in enumerate(self._waiting):
            if waiting.update.update_id == update.update_id:
                self._waiting[place] = manifest
                return waiting.handle
        self._waiting.append(manifest)
        return None

    @property
    def idle(self) -> bool:
        """True if there is no payload to be fetched."""
        return self._current is None and not self._waiting

    @property
    def reading(self) -> Manifest | None:
        """The manifest of the payload that is put together now."""
        return None if self._current is None else self._current.manifest

    def next(self) -> Manifest | None:
        """Remove and return the next manifest, to be begun or not; None while a payload is put together."""
        return self._waiting.popleft() if self._waiting and self._current is None else None

    def begin(self, manifest: Manifest, now: float) -> Broken | None:
        """Read its queue from now on. Broken if there is none."""
        update, chunks, current = manifest.update, manifest.chunks, _Reading(manifest, self._transport)
        queue = self.queue_of(update.run_id, update.task_id, update.participant_id)
        prefetch = min(2 * chunks.count + 16, _AMQP_MOST_PREFETCH)
        current.receiver = ChunkReceiver(
            self._transport,
            queue,
            chunks,
            current,
            put=self._put,
            prefetch=prefetch,
            sender=self._sender_of(update.participant_id),
        )
        lost = current.receiver.begin(now, silent_since_s=self._silent_since_s.get(update.update_id))
        if isinstance(lost, Lost):
            current.let_go()
            return self._broken(manifest, lost.detail, now)
        self._current = current
        log.info(
            "payload_begun", participant=update.participant_id, task=update.task_id, bytes=chunks.num_bytes,
            chunks=chunks.count, waiting=len(self._waiting),
        )  # fmt: skip
        return None

    def on_chunk(self, chunk: ChunkArrived, now: float) -> Whole | Broken | None:
        """Give a chunk to its receiver."""
        current = self._current
        outcome = None if current is None else current.receiver.on_chunk(chunk, now)
        if current is None or outcome is None:
            return None
        if isinstance(outcome, Lost):
            return self._give_up(current, outcome, now)
        return Whole(current.manifest, self._stop(current))

    def due_s(self) -> float:
        """Time at which `tick` has something to look at."""
        if self._current is None:
            return float("inf")
        receiver = self._current.receiver
        soonest_s = receiver.heard_s + GIVE_WAY_S
        return soonest_s if self._waiting else max(soonest_s, receiver.patience_ends_s)

    def tick(self, now: float) -> Broken | None:
        """Look at the queue if it is time: give the payload up, or let the others go first."""
        current = self._current
        if current is None or now < self.due_s():
            return None
        lost = current.receiver.look(now)
        if lost is not None:
            return self._give_up(current, lost, now)
        silent_since_s, update = current.receiver.silent_since_s, current.manifest.update
        if silent_since_s is None:
            self._silent_since_s.pop(update.update_id, None)
        else:  # it is due before its patience ends only if others wait
            self._silent_since_s[update.update_id] = silent_since_s
            self._stop(current)
            self._waiting.append(current.manifest)
            log.info("payload_gives_way", task=update.task_id, detail="it waits for its chunks, and others go first")
        return None

    def abandon(self) -> Manifest | None:
        """Stop reading, and return the manifest that was read."""
        current = self._current
        if current is None:
            return None
        self._stop(current)
        return current.manifest

    def clear(self) -> list[Manifest]:
        """Give up everything, in the order of the manifests."""
        current = self.abandon()
        left = [*([current] if current else []), *self._waiting]
        self._waiting.clear()
        self._silent_since_s.clear()
        return left

    def forget(self, update_id: str) -> None:
        """Forget the tries of an update that is over."""
        self._tries.pop(update_id, None)
        self._tried_at_s.pop(update_id, None)
        self._silent_since_s.pop(update_id, None)

    def _stop(self, current: _Reading) -> memoryview | None:
        self._current = None
        return current.stop()

    def _give_up(self, current: _Reading, lost: Lost, now: float) -> Broken:
        self._stop(current)
        return self._broken(current.manifest, lost.detail, now)

    def _broken(self, manifest: Manifest, detail: str, now: float) -> Broken:
        update = manifest.update
        if now >= self._tried_at_s.get(update.update_id, float("-inf")) + ONE_TRY_S:
            self._tried_at_s[update.update_id] = now
            self._tries[update.update_id] += 1
        self._silent_since_s.pop(update.update_id, None)
        log.warning("payload_broken", participant=update.participant_id, task=update.task_id, detail=detail)
        return Broken(manifest, detail, self._tries[update.update_id] >= MOST_TRIES)
