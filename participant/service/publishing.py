"""What goes to the broker: hellos, declines, and updates by way of the disk.

Used from the service's thread; the broker's answers come back through `put`, from any thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fedmq.broker_config.chunks.sender import News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Queue, Topology
from fedmq.broker_config.transport import Message, Transport
from fedmq.participant.decisions import events as ev
from fedmq.participant.service.upload import Uploads
from fedmq.participant.spool.spool import Spool
from fedmq.participant.training.thread import Trained
from fedmq.schemas.codec import Limits, encode
from fedmq.schemas.errors import SpoolError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import SCHEMA_VERSION, AnyMessage, Decline, Hello, Update

log = EventLog(__name__)


class Publisher:
    """One participant's."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        spool: Spool,
        participant_id: str,
        *,
        chunk_bytes: int,
        limits: Limits,
        payload_limits: Limits,
        publish_timeout_s: float,
        put: Callable[[Any], None],
    ) -> None:
        self._transport = transport
        self._topology = topology
        self._spool = spool
        self._participant_id = participant_id
        self._limits = limits
        self._publish_timeout_s = publish_timeout_s
        self._put = put
        self._finished: dict[str, Trained] = {}
        """update_id -> the update, from its training to the broker's confirm; one that goes in chunks only until it is
        on disk."""
        self._uploads = Uploads(
            transport,
            topology,
            spool,
            participant_id,
            chunk_bytes=chunk_bytes,
            limits=payload_limits,
            put=put,
            announce=self._announce,
            failed=lambda uid, error: put(ev.PublishFailed(uid, f"{type(error).__name__}: {error}")),
        )

    def hello(self, hello: Hello) -> None:
        self._send(hello, self._topology.control).add_done_callback(_warn_of_hello)

    def decline(self, decline: Decline) -> None:
        log.info(
            "declined", participant=self._participant_id, task=decline.task_id, reason=decline.reason,
            detail=decline.detail,
        )  # fmt: skip
        task_id = decline.task_id
        self._send(decline, self._topology.control).add_done_callback(
            lambda done: self._put(
                ev.DeclineFailed(task_id, str(done.exception())) if done.exception() else ev.DeclineConfirmed(task_id)
            )
        )

    # Updates

    def keep(self, finished: Trained) -> None:
        """An update that is not on disk yet."""
        self._finished[finished.update.update_id] = finished

    def write(self, task_id: str, uid: str) -> ev.Event:
        """To disk: what will be remembered of an update, then the update."""
        update, pieces = self._finished[uid].update, self._finished[uid].pieces
        log.info(
            "trained", participant=self._participant_id, task=task_id, work=update.payload,
            num_examples=update.num_examples, num_steps=update.num_steps, train_s=f"{update.train_s:.3f}",
            metrics=dict(update.metrics),
        )  # fmt: skip
        next_memory = self._finished[uid].next_memory
        try:
            if next_memory is not None:
                self._spool.write_next_memory(uid, task_id, update.run_id, next_memory)
                fault("next-memory-on-disk")
            self._spool.write_update(uid, task_id, update.run_id, *pieces)
        except SpoolError as error:
            return ev.OutboxFailed(task_id, str(error))
        if sum(len(piece) for piece in pieces) > self._limits.max_body_bytes:
            del self._finished[uid]  # it goes out from the disk
        fault("update-on-disk")
        return ev.OutboxWritten(task_id)

    def update(self, uid: str, task_id: str, from_start: bool) -> ev.Event | None:
        """From memory or disk, in chunks where it is too large for one message."""
        try:
            if from_start:
                self._uploads.start_over(uid)
            if uid in self._finished:
                body = b"".join(self._finished[uid].pieces)
            else:
                checksum, content = self._spool.read_update(uid)
                if len(content) > self._limits.max_body_bytes:
                    self._uploads.begin(uid, checksum, content)
                    return None
                body = bytes(content)
        except SpoolError as error:
            return ev.UpdateUnreadable(uid, str(error))
        self._publish_body(uid, task_id, body, kept=False)
        return None

    def announce_again(self, uid: str, task_id: str) -> ev.Event | None:
        """An update that was sent in chunks. Nothing waits for the broker's answer."""
        manifest = self._uploads.manifest(uid)
        if manifest is None:
            return ev.NotAnnounced(uid)
        self._publish(self._topology.updates, manifest, kind="update", message_id=uid, task_id=task_id)
        log.info("update_announced_again", participant=self._participant_id, task=task_id)
        return None

    def take(self, news: News) -> None:
        """The transport's answer to a chunk."""
        self._uploads.take(news)

    def forget(self, uid: str) -> None:
        """The update is over: nothing of it stays in memory, on disk or on the broker. Raises SpoolError."""
        self._finished.pop(uid, None)
        self._uploads.forget(uid)
        self._spool.clear_update(uid)

    def _announce(self, update: Update, manifest: bytes) -> None:
        self._publish_body(update.update_id, update.task_id, manifest, kept=True)

    def _publish_body(self, uid: str, task_id: str, body: bytes, kept: bool) -> None:
        sent = self._publish(self._topology.updates, body, kind="update", message_id=uid, task_id=task_id)
        sent.add_done_callback(lambda done: self._put(_published(uid, done, kept)))
        fault("update-sent")
        log.info("update_sent", participant=self._participant_id, task=task_id, bytes=len(body))

    def _send(self, message: AnyMessage, queue: Queue) -> Future[None]:
        task_id = getattr(message, "task_id", None)
        return self._publish(queue, encode(message), kind=message.kind, message_id=uuid.uuid4().hex, task_id=task_id)

    def _publish(self, queue: Queue, body: bytes, *, kind: str, message_id: str, task_id: str | None) -> Future[None]:
        message = Message(
            exchange=queue.exchange,
            routing_key=queue.routing_key,
            body=body,
            message_id=message_id,
            correlation_id=task_id,
            headers={"schema_version": SCHEMA_VERSION, "kind": kind},
        )
        return self._transport.publish(message, self._publish_timeout_s)


def _published(uid: str, done: Future[None], kept: bool) -> ev.Event:
    error = done.exception()
    if error is None:
        fault("update-confirmed")
    return (
        ev.PublishConfirmed(uid, kept) if error is None else ev.PublishFailed(uid, f"{type(error).__name__}: {error}")
    )


def _warn_of_hello(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        log.warning("hello_lost", detail=f"{type(error).__name__}: {error}")
