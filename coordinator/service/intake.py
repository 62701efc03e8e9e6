"""Updates that come in chunks: put together in memory, one at a time, in the order of their manifests.

Rules
1. Each update has a queue of its own, and only one is read at a time: however many participants upload at once, memory
   holds one payload, and no update waits for room that another one's chunks take.
2. A chunk is copied to its place on the transport's thread, so that a second copy of the payload never gathers in the
   inbox; its digest is taken on the loop's.
3. Nothing is acked but what came twice: once the payload is whole its chunks go back to their queue, which is deleted
   after the commit that holds the update. A crash before that finds all of it there.
4. A payload whose queue is gone, or empty for `PATIENCE_S` with chunks missing, or that holds damaged chunks, is
   broken: its participant, which keeps the update until the receipt, is asked to send it again. The `MOST_TRIES`th try
   is the last; those within `ONE_TRY_S` are one, because the manifest of what is broken may come several times before
   the participant has heard of it. While chunks are waited for, from `GIVE_WAY_S` on, the others go first.
5. A manifest may come twice. The latest copy stands for all: what it tells of is the same, and of a consumer that was
   lost only the latest can still be acked.
6. What a manifest claims is compared with the model before anything of that size is allocated.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedmq.broker_config.chunks.queue import state_of
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Transport
from fedmq.coordinator.decisions.events import DeliveryHandle
from fedmq.schemas.chunks import Assembly, digest_of
from fedmq.schemas.errors import LimitExceeded, MalformedMessage, PeerError, SpecMismatch
from fedmq.schemas.limits import DEFAULT_LIMITS
from fedmq.schemas.messages import ChunkedPayload, Update, update_id

log = logging.getLogger("fedmq.coordinator")

PATIENCE_S = 30.0
"""Longer than a broker takes to notice that a former connection of ours, which holds the chunks, is dead."""
GIVE_WAY_S = 1.0
MOST_TRIES = 3
ONE_TRY_S = 30.0
_ENVELOPE_BYTES = DEFAULT_LIMITS.max_header_bytes + 256
"""What an encoded update has beside its tensors, at most."""
_AMQP_MOST_PREFETCH = 65_535


@dataclass(frozen=True, slots=True)
class Manifest:
    """An update whose payload is in its queue."""

    handle: DeliveryHandle
    update: Update
    chunks: ChunkedPayload


@dataclass(slots=True)
class Whole:
    """All chunks are there, as they were sent."""

    manifest: Manifest
    _body: memoryview | None

    def take_body(self) -> memoryview:
        """Once: nothing here keeps the payload in memory from then on."""
        body, self._body = self._body, None
        assert body is not None
        return body.toreadonly()


@dataclass(frozen=True, slots=True)
class Broken:
    """The payload cannot be put together; `final` after MOST_TRIES."""

    manifest: Manifest
    detail: str
    final: bool


@dataclass(slots=True, eq=False)
class _Current:
    manifest: Manifest
    queue: str
    assembly: Assembly
    buffer: memoryview | None
    """None once it was handed over, or given up."""
    heard_s: float
    """When a chunk came, or was seen to be in the queue."""


@dataclass(frozen=True, slots=True)
class ChunkPlaced:
    """From the transport's thread: a chunk is in its place (`index`), was not wanted, or cannot be (`problem`)."""

    current: object
    index: int | None
    delivery: Delivery
    problem: str | None


class Intake:
    """See the module docstring. Used from the loop's thread, but for what it hands to `put`."""

    def __init__(
        self, transport: Transport, topology: Topology, *, put: Callable[[ChunkPlaced], None], payload_bytes: int
    ) -> None:
        """`payload_bytes`: how long the tensors of every update are."""
        self._transport = transport
        self._topology = topology
        self._put = put
        self._payload_bytes = payload_bytes
        self._waiting: deque[Manifest] = deque()
        self._current: _Current | None = None
        self._tries: Counter[str] = Counter()
        """By update_id, as the next one."""
        self._tried_at_s: dict[str, float] = {}
        self._silent_since_s: dict[str, float] = {}
        """update_id -> since when its queue is empty and its payload not whole."""

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
        """Where the update of a task is uploaded to."""
        return self._topology.payload(participant_id, update_id(run_id, task_id, participant_id)).name

    def offer(self, handle: DeliveryHandle, update: Update) -> DeliveryHandle | None:
        """Take this update when its turn comes. Returns what it stands for from now on, to be acked: an earlier copy
        of its manifest (rule 5)."""
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
        """Whether there is no payload to be fetched."""
        return self._current is None and not self._waiting

    @property
    def reading(self) -> Manifest | None:
        """What is put together now."""
        return None if self._current is None else self._current.manifest

    def next(self) -> Manifest | None:
        """Take the one that comes next, to be begun or not; None while one is put together."""
        return self._waiting.popleft() if self._waiting and self._current is None else None

    def begin(self, manifest: Manifest, now: float) -> Broken | None:
        """Read its queue from now on; Broken where there is none."""
        update, chunks = manifest.update, manifest.chunks
        queue = self.queue_of(update.run_id, update.task_id, update.participant_id)
        if state_of(self._transport, queue) == "gone":
            return self._broken(manifest, f"its queue {queue} does not exist", now)
        buffer = np.empty(chunks.num_bytes, np.uint8).data  # of zeros, a bytearray would be touched twice
        current = self._current = _Current(manifest, queue, Assembly(chunks), buffer, now)
        prefetch = min(2 * chunks.count + 16, _AMQP_MOST_PREFETCH)
        self._transport.consume(queue, lambda delivery: self._arrived(current, delivery), prefetch)
        log.info(
            "payload begun participant=%s task=%s bytes=%d chunks=%d waiting=%d",
            update.participant_id, update.task_id, chunks.num_bytes, chunks.count, len(self._waiting),
        )  # fmt: skip
        return None

    def take(self, placed: ChunkPlaced, now: float) -> Whole | Broken | None:
        """A chunk came."""
        current = self._current
        if current is None or placed.current is not current or current.buffer is None:
            return None
        current.heard_s = now
        if placed.problem is not None:
            return self._give_up(current, placed.problem, now)
        if placed.index is None:
            self._transport.ack(placed.delivery)
            return None
        start = current.assembly.offset(placed.index)
        try:
            there = current.buffer[start : start + current.assembly.length(placed.index)]
            current.assembly.check(placed.index, digest_of(there))
            if current.assembly.missing:
                return None
            current.assembly.check_all()
        except PeerError as error:
            return self._give_up(current, str(error), now)
        body = current.buffer
        self._stop(current)
        return Whole(current.manifest, body)

    def due_s(self) -> float:
        """When `tick` has something to look at."""
        current = self._current
        if current is None:
            return float("inf")
        soonest_s = current.heard_s + min(GIVE_WAY_S, PATIENCE_S)
        return soonest_s if self._waiting else max(soonest_s, self._patience_ends_s(current))

    def tick(self, now: float) -> Broken | None:
        """Time went by."""
        current = self._current
        if current is None or now < self.due_s():
            return None
        state = state_of(self._transport, current.queue)
        if state == "gone" or (state == "empty" and now >= self._patience_ends_s(current)):
            missing = f"{current.assembly.missing} of {current.manifest.chunks.count} chunks are missing"
            return self._give_up(current, missing, now)
        update_id = current.manifest.update.update_id
        if state == "empty" and self._waiting:
            self._silent_since_s.setdefault(update_id, current.heard_s)
            self._stop(current)
            self._waiting.append(current.manifest)
            log.info("payload waits for its chunks, others go first task=%s", current.manifest.update.task_id)
        elif state != "empty":
            self._silent_since_s.pop(update_id, None)
        current.heard_s = now
        return None

    def _patience_ends_s(self, current: _Current) -> float:
        return self._silent_since_s.get(current.manifest.update.update_id, current.heard_s) + PATIENCE_S

    def abandon(self) -> Manifest | None:
        """Stop putting together what is put together now."""
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
        """The update is over."""
        self._tries.pop(update_id, None)
        self._tried_at_s.pop(update_id, None)
        self._silent_since_s.pop(update_id, None)

    def _stop(self, current: _Current) -> None:
        self._current, current.buffer = None, None
        self._transport.stop_consuming(current.queue)

    def _give_up(self, current: _Current, detail: str, now: float) -> Broken:
        self._stop(current)
        return self._broken(current.manifest, detail, now)

    def _broken(self, manifest: Manifest, detail: str, now: float) -> Broken:
        update = manifest.update
        if now >= self._tried_at_s.get(update.update_id, float("-inf")) + ONE_TRY_S:
            self._tried_at_s[update.update_id] = now
            self._tries[update.update_id] += 1
        self._silent_since_s.pop(update.update_id, None)
        log.warning(
            "payload broken participant=%s task=%s detail=%s", update.participant_id, update.task_id, detail
        )  # fmt: skip
        return Broken(manifest, detail, self._tries[update.update_id] >= MOST_TRIES)

    def _arrived(self, current: _Current, delivery: Delivery) -> None:
        """On the transport's thread (rule 2)."""
        index, problem, buffer = None, None, current.buffer
        if buffer is None:
            return
        try:
            index = current.assembly.place(delivery.headers, len(delivery.body))
        except MalformedMessage as error:
            problem = str(error)
        if index is not None:
            start = current.assembly.offset(index)
            buffer[start : start + len(delivery.body)] = delivery.body
        self._put(ChunkPlaced(current, index, replace(delivery, body=b""), problem))
