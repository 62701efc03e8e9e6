"""Hellos, declines and updates on their way to the broker; updates go by way of the disk.

The service's thread calls everything here. The broker's answers come back through the context's `put`.
"""

from __future__ import annotations

from concurrent.futures import Future

from fedmq.broker_config.chunks.sender import News
from fedmq.broker_config.faults import fault
from fedmq.participant.decisions import events as ev
from fedmq.participant.service.context import ServiceContext
from fedmq.participant.service.sending import publish, publish_control, publish_update
from fedmq.participant.service.upload import Uploads
from fedmq.participant.training.thread import Trained
from fedmq.schemas.errors import SpoolError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import Decline, Hello

log = EventLog(__name__)


class ParticipantPublisher:
    """The publisher of one participant."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._spool = context.spool
        self._finished: dict[str, Trained] = {}
        """update_id -> the update, from the end of its training to the broker's confirm. An update that goes in chunks
        stays only until it is on disk."""
        self._uploads = Uploads(context)

    def send_hello(self, hello: Hello) -> None:
        hello = hello.model_copy(update={"frozen": self._spool.frozen.digests()})
        publish_control(self._context, hello).add_done_callback(_warn_of_lost_hello)

    def send_decline(self, decline: Decline) -> None:
        """Publish a decline, then put DeclineConfirmed or DeclineFailed."""
        task_id, put = decline.task_id, self._context.put
        log.info(
            "declined", participant=self._context.participant_id, task=task_id, reason=decline.reason,
            detail=decline.detail,
        )  # fmt: skip

        def answered(done: Future[None]) -> None:
            error = done.exception()
            put(ev.DeclineConfirmed(task_id) if error is None else ev.DeclineFailed(task_id, str(error)))

        publish_control(self._context, decline).add_done_callback(answered)

    # Updates

    def keep(self, finished: Trained) -> None:
        """Hold an update in RAM that is not on disk yet."""
        self._finished[finished.update.update_id] = finished

    def write_update(self, task_id: str, uid: str) -> ev.Event:
        """Write the memory that the update leaves, if any, and then the update to disk."""
        finished = self._finished[uid]
        update, pieces = finished.update, finished.pieces
        log.info(
            "trained", participant=self._context.participant_id, task=task_id, work=update.payload,
            num_examples=update.num_examples, num_steps=update.num_steps, train_s=f"{update.train_s:.3f}",
            metrics=dict(update.metrics),
        )  # fmt: skip
        try:
            if finished.next_memory is not None:
                self._spool.write_next_memory(uid, task_id, update.run_id, finished.next_memory)
                fault("next-memory-on-disk")
            self._spool.write_update(uid, task_id, update.run_id, *pieces)
        except SpoolError as error:
            return ev.OutboxFailed(task_id, str(error))
        if sum(len(piece) for piece in pieces) > self._context.limits.max_body_bytes:
            del self._finished[uid]  # it goes out from the disk
        fault("update-on-disk")
        return ev.OutboxWritten(task_id)

    def send_update(self, uid: str, task_id: str, from_start: bool) -> ev.Event | None:
        """Publish an update from RAM or disk, in chunks if it is too large for one message."""
        try:
            if from_start:
                self._uploads.start_over(uid)
            if uid in self._finished:
                body = b"".join(self._finished[uid].pieces)
            else:
                checksum, content = self._spool.read_update(uid)
                if len(content) > self._context.limits.max_body_bytes:
                    self._uploads.begin(uid, checksum, content)
                    return None
                body = bytes(content)
        except SpoolError as error:
            return ev.UpdateUnreadable(uid, str(error))
        publish_update(self._context, uid, task_id, body, kept=False)
        return None

    def announce_again(self, uid: str, task_id: str) -> ev.Event | None:
        """Publish the manifest of an update that was sent in chunks. Nothing waits for the broker's answer."""
        manifest = self._uploads.manifest(uid)
        if manifest is None:
            return ev.NotAnnounced(uid)
        publish(self._context, self._context.topology.updates, manifest, kind="update", message_id=uid, task_id=task_id)
        log.info("update_announced_again", participant=self._context.participant_id, task=task_id)
        return None

    def on_news(self, news: News) -> None:
        """Give the transport's answer about a chunk to its upload."""
        self._uploads.on_news(news)

    def forget(self, uid: str) -> None:
        """Drop an update that is over from RAM, disk and broker. Raises SpoolError."""
        self._finished.pop(uid, None)
        self._uploads.forget(uid)
        self._spool.clear_update(uid)


def _warn_of_lost_hello(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        log.warning("hello_lost", detail=f"{type(error).__name__}: {error}")
