"""The parameters of a task that come in chunks, from their queue to the spool.

A chunk is acked once it is on disk and the journal says so, a few chunks together. After a crash or a lost connection
only the others come again. So a model also reaches a device whose link, or battery, never lasts for the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from fedmq.broker_config.chunks.receiver import ChunkArrived, ChunkReceiver, Lost, Outcome
from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Delivery, Transport
from fedmq.participant.spool.chunk_journal import PayloadFile
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Task

log = EventLog(__name__)

PREFETCH = 16
TOGETHER = 8
"""Chunks written before they are synced and acked; fewer if no more come."""


class Download:
    """One task's payload, and the store of its receiver. `on_done` gets None once the whole payload is on disk, else
    Lost or the disk's OSError."""

    def __init__(
        self,
        transport: Transport,
        queue: str,
        task: Task,
        file: PayloadFile,
        *,
        put: Callable[[ChunkArrived], None],
        on_done: Callable[[Lost | OSError | None], None],
        sender: str | None = None,
    ) -> None:
        """`queue` is the payload's own, or the stream that the task refers to. `sender`: the only user whose chunks are
        taken; None takes anybody's."""
        assert task.chunks is not None
        offset = None if task.reference is None else task.reference.offset
        self.in_stream = offset is not None
        """True if the payload is in the stream of models."""
        self.task_id = task.task_id
        self.payload = task.chunks
        self._transport = transport
        self._file = file
        self._on_done = on_done
        self._receiver = ChunkReceiver(
            transport, queue, self.payload, self, put=put, prefetch=PREFETCH, sender=sender, offset=offset
        )
        self._unsynced: dict[int, bytes] = {}
        self._unacked: list[Delivery] = []

    def begin(self, now: float) -> None:
        """Look at the chunks that are on disk already, and ask for the rest."""
        with self._disk_errors():
            outcome = self._receiver.begin(now, self._file.open(self.payload))
            log.info(
                "download", task=self.task_id, bytes=self.payload.num_bytes, chunks=self.payload.count,
                missing=self._receiver.missing,
            )  # fmt: skip
            self._came_to(outcome)

    def on_chunk(self, chunk: ChunkArrived, now: float) -> None:
        """Give a chunk to the receiver; one of an earlier download changes nothing."""
        with self._disk_errors():
            self._came_to(self._receiver.on_chunk(chunk, now))

    def tick(self, now: float) -> None:
        """Sync and ack the chunks that wait for company, and give up a payload that is lost."""
        with self._disk_errors():
            self._sync()
            if now >= self._receiver.patience_ends_s:
                self._came_to(self._receiver.look(now))

    def interrupted(self, now: float) -> None:
        """Give up a payload whose stream is gone: the broker has ended a consumer."""
        with self._disk_errors():
            self._came_to(self._receiver.interrupted(now))

    def disconnected(self) -> None:
        """Sync and ack nothing: the broker delivers the chunks again, and they are known then."""
        self._receiver.reconnected()
        with self._disk_errors():
            self._sync(ack=False)

    def cancel(self) -> None:
        """Give up, because the task is not wanted any more."""
        self._receiver.delete()
        try:
            self._file.clear()
        except OSError as error:  # the disk may be read-only now; the next payload replaces the file
            log.warning("payload_not_cleared", task=self.task_id, detail=error)

    # The receiver's store

    def arrived(self, _start: int, delivery: Delivery) -> Delivery:
        return delivery

    def bytes_of(self, _start: int, _length: int, delivery: Delivery) -> bytes | bytearray:
        return delivery.body

    def keep(self, index: int | None, digest: bytes, delivery: Delivery) -> None:
        if index is not None:
            self._file.write(index * self.payload.chunk_bytes, delivery.body)
            self._unsynced[index] = digest
        self._unacked.append(replace(delivery, body=b""))
        if len(self._unacked) >= TOGETHER:
            self._sync()

    # The end

    def _came_to(self, outcome: Outcome) -> None:
        if isinstance(outcome, Lost):
            self._end(outcome)
        elif outcome == "whole":
            self._sync(ack=not self.in_stream)  # the stream would send the chunks of others
            self._receiver.delete()
            self._file.close()
            self._on_done(None)

    def _end(self, why: Lost | OSError) -> None:
        self.cancel()
        self._on_done(why)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._end(error)

    def _sync(self, ack: bool = True) -> None:
        if self._unsynced:
            self._file.sync(self._unsynced)
            self._unsynced = {}
            fault("chunks-on-disk")
        for delivery in self._unacked if ack else ():
            self._transport.ack(delivery)  # False: the chunk comes again, and is known then
        self._unacked = []
