"""A task's parameters that come in chunks, from their queue to the spool (rule numbers are
`participant.decisions.agent`'s).

A chunk is acked once it is on disk and the journal says so, a few together: after a crash or a lost connection only
those come again, so that a model reaches a device whose link, or battery, never lasts for the whole of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from fedmq.broker_config.chunks.queue import state_of
from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Delivery, Transport
from fedmq.participant.spool.chunk_journal import PayloadFile
from fedmq.schemas.chunks import Assembly, digest_of
from fedmq.schemas.errors import MalformedMessage
from fedmq.schemas.messages import ChunkedPayload, Task

log = logging.getLogger(__name__)

PREFETCH = 16
TOGETHER = 8
"""Chunks written before they are synced and acked; fewer where no more come."""
PATIENCE_S = 30.0
"""Without a chunk for so long, an empty queue says that the rest is lost."""


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """From the transport's thread."""

    download: Download
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Lost:
    """Why the payload cannot be had any more."""

    detail: str


class Download:
    """One task's payload. `on_done` gets None once it is on disk whole, Lost, or the OSError of the disk."""

    def __init__(
        self,
        transport: Transport,
        queue: str,
        task: Task,
        file: PayloadFile,
        *,
        put: Callable[[ChunkArrived], None],
        on_done: Callable[[Lost | OSError | None], None],
        now: float,
    ) -> None:
        assert task.chunks is not None
        self.task_id = task.task_id
        self.payload: ChunkedPayload = task.chunks
        self._transport = transport
        self._queue = queue
        self._file = file
        self._put = put
        self._on_done = on_done
        self._heard_at = now
        self._assembly: Assembly
        self._unsynced: dict[int, bytes] = {}
        self._unacked: list[Delivery] = []
        self._over = False

    def begin(self) -> None:
        """Look at what is there already, and ask for the rest."""
        try:
            there = self._file.open(self.payload)
        except OSError as error:
            self._end(error)
            return
        self._assembly = Assembly(self.payload, there)
        log.info(
            "event=download task=%s bytes=%d chunks=%d missing=%d",
            self.task_id, self.payload.num_bytes, self.payload.count, self._assembly.missing,
        )  # fmt: skip
        if not self._assembly.missing:
            self._finish()
        elif state_of(self._transport, self._queue) == "gone":
            self._end(Lost(f"its queue {self._queue} does not exist any more"))
        else:
            self._transport.consume(self._queue, lambda delivery: self._put(ChunkArrived(self, delivery)), PREFETCH)

    def take(self, delivery: Delivery, now: float) -> None:
        """A chunk."""
        if self._over:
            return
        self._heard_at = now
        try:
            index = self._assembly.place(delivery.headers, len(delivery.body))
            if index is not None:
                digest = digest_of(delivery.body)
                self._assembly.check(index, digest)
                self._file.write(self._assembly.offset(index), delivery.body)
                self._unsynced[index] = digest
            self._unacked.append(delivery)
            if len(self._unacked) >= TOGETHER or not self._assembly.missing:
                self._sync()
        except MalformedMessage as error:
            self._end(Lost(str(error)))
        except OSError as error:
            self._end(error)
        else:
            if not self._assembly.missing:
                self._finish()

    def tick(self, now: float) -> None:
        """Time went by: nothing stays unacked for want of company, and nothing is waited for in vain."""
        if self._over:
            return
        try:
            self._sync()
        except OSError as error:
            self._end(error)
            return
        if now >= self._heard_at + PATIENCE_S:
            self._heard_at = now
            if state_of(self._transport, self._queue) in ("empty", "gone"):
                self._end(Lost(f"{self._assembly.missing} of {self.payload.count} chunks never came"))

    def disconnected(self) -> None:
        """What is not acked comes again, and is known then."""
        if self._over:
            return
        try:
            self._sync(ack=False)
        except OSError as error:
            self._end(error)

    def cancel(self) -> None:
        """The task is not wanted any more."""
        self._over = True
        self._leave()

    def _sync(self, ack: bool = True) -> None:
        if self._unsynced:
            self._file.sync(self._unsynced)
            self._unsynced = {}
            fault("chunks-on-disk")
        for delivery in self._unacked if ack else ():
            self._transport.ack(delivery)  # False: it comes again, and is known
        self._unacked = []

    def _finish(self) -> None:
        try:
            self._assembly.check_all()
        except MalformedMessage as error:  # of a damaged journal, say: what was acked does not come again
            self._end(Lost(str(error)))
            return
        self._over = True
        self._transport.delete_queue(self._queue)
        self._file.close()
        self._on_done(None)

    def _end(self, why: Lost | OSError) -> None:
        self._over = True
        self._leave()
        self._on_done(why)

    def _leave(self) -> None:
        self._transport.delete_queue(self._queue)
        try:
            self._file.clear()
        except OSError as error:  # of a disk that is read-only now: the next task's parameters take its place
            log.warning("event=payload_not_cleared task=%s detail=%r", self.task_id, str(error))
