"""Updates that are too large for one message: each goes from the outbox into a queue of its own, then a manifest
announces it.

1. The chunks that the broker has confirmed are noted on disk, a window at a time. The next process goes on from there.
2. An upload that is whole is announced by its manifest, which is on disk from then on. Its chunks are not looked at
   again, because the coordinator may be reading them.
3. A disk that is full or read-only holds back no finished update. A note that cannot be written costs the next process
   time, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmq.broker_config.chunks.sender import ChunkSender, News
from fedmq.broker_config.faults import fault
from fedmq.participant.service.context import ServiceContext
from fedmq.participant.service.sending import publish_failed, publish_update
from fedmq.participant.spool.chunk_journal import ChunkJournal
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import PeerError, SpoolError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import ChunkedPayload, Update

log = EventLog(__name__)


class Uploads:
    """The participant's uploads by update_id. The service's thread calls everything."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._spool = context.spool
        self._senders: dict[str, ChunkSender] = {}
        self._known: set[str] = set()
        """Updates that this process has begun to upload."""
        self._manifests: dict[str, bytes] = {}
        """Manifests of the uploads that this process has finished."""
        self._outdated: set[str] = set()
        """Updates whose notes on disk are wrong and could not be removed."""

    def begin(self, update_id: str, payload_id: str, body: memoryview | bytes) -> None:
        """Upload a body from the outbox, or announce it if it is uploaded already. Raises SpoolError if the body is not
        an update."""
        self._known.add(update_id)
        update = self._update_in(update_id, body)
        announced = self._announced(update_id)
        if announced is not None and announced[0].chunks.payload_id == payload_id:  # type: ignore[union-attr]
            self._announce(*announced)
            return
        chunk_bytes = self._context.chunk_bytes
        path = self._spool.journal_path(update_id)
        journal = ChunkJournal(path, {"payload_id": payload_id, "chunk_bytes": chunk_bytes})
        done_before = journal.without_gap()

        def confirmed(digests: Sequence[bytes]) -> None:
            try:
                _note(journal, digests)
            except OSError as error:
                log.warning("chunks_not_noted", task=update.task_id, detail=error)

        def done(outcome: ChunkedPayload | BaseException) -> None:
            self._done(update, outcome)

        self._stop(update_id)
        sender = self._senders[update_id] = ChunkSender(
            self._context.transport,
            self._context.upload_queue(update_id),
            payload_id=payload_id,
            task_id=update.task_id,
            num_bytes=len(body),
            chunk_bytes=chunk_bytes,
            read=lambda start, length: bytes(body[start : start + length]),
            put=self._context.put,
            on_done=done,
            on_confirmed=confirmed,
            digests=done_before,
        )
        log.info(
            "upload", participant=self._context.participant_id, task=update.task_id, bytes=len(body),
            chunks_confirmed=len(done_before),
        )  # fmt: skip
        sender.begin()

    def on_news(self, news: News) -> None:
        """Give the transport's answer to its sender."""
        news.sender.on_news(news)

    def manifest(self, update_id: str) -> bytes | None:
        """Return the manifest of an upload; None until the upload is whole."""
        announced = self._announced(update_id)
        return None if announced is None else announced[1]

    def start_over(self, update_id: str) -> None:
        """Forget the chunks that were sent, because they did not reach the coordinator. The next `begin` sends all."""
        self._stop(update_id)
        self._manifests.pop(update_id, None)
        try:
            self._spool.clear_upload(update_id)
        except SpoolError as error:
            self._outdated.add(update_id)
            log.warning("upload_not_cleared", update=update_id, detail=error)

    def forget(self, update_id: str) -> None:
        """Drop the upload of an update that is over, here and on the broker. Raises SpoolError."""
        self._stop(update_id)
        self._manifests.pop(update_id, None)
        self._outdated.discard(update_id)
        if update_id in self._known or self._spool.has_upload(update_id):
            self._known.discard(update_id)
            self._context.transport.delete_queue(self._context.upload_queue(update_id).name)
        self._spool.clear_upload(update_id)

    def _update_in(self, update_id: str, body: memoryview | bytes) -> Update:
        """Return the update in a body from the outbox. Raises SpoolError if there is none."""
        try:
            message = decode(body, self._context.payload_limits, check_finite=False).message
        except PeerError as error:
            raise SpoolError(f"update {update_id} in the outbox cannot be read: {error}") from error
        if not isinstance(message, Update):
            raise SpoolError(f"update {update_id} in the outbox is a {message.kind}")
        return message

    def _done(self, update: Update, outcome: ChunkedPayload | BaseException) -> None:
        uid = update.update_id
        sender = self._senders.pop(uid)
        if isinstance(outcome, BaseException):
            self._context.put(publish_failed(uid, outcome))
            return
        log.info(
            "uploaded", participant=self._context.participant_id, task=update.task_id, chunks=outcome.count,
            published=sender.sent,
        )  # fmt: skip
        manifest = self._manifests[uid] = encode(update.model_copy(update={"chunks": outcome}))
        try:
            self._spool.write_manifest(uid, manifest)
            self._outdated.discard(uid)
        except SpoolError as error:
            log.warning("upload_not_noted", task=update.task_id, detail=error)
        fault("update-uploaded")
        self._announce(update, manifest)

    def _announce(self, update: Update, manifest: bytes) -> None:
        publish_update(self._context, update.update_id, update.task_id, manifest, kept=True)

    def _announced(self, update_id: str) -> tuple[Update, bytes] | None:
        """Return the manifest of an upload that is whole, decoded and as bytes."""
        manifest = self._manifests.get(update_id)
        try:
            if manifest is None and update_id not in self._outdated:
                manifest = self._spool.manifest(update_id)
            message = None if manifest is None else decode(manifest, self._context.payload_limits).message
        except (SpoolError, PeerError) as error:
            log.warning("manifest_unreadable", update=update_id, detail=error)
            return None
        return (message, manifest) if manifest and isinstance(message, Update) and message.chunks else None

    def _stop(self, update_id: str) -> None:
        sender = self._senders.pop(update_id, None)
        if sender is not None:
            sender.cancel()


def _note(journal: ChunkJournal, digests: Sequence[bytes]) -> None:
    """Add the digests of the chunks that are confirmed, counted from chunk 0. No digests: the upload begins anew."""
    if not digests:
        journal.clear()
        return
    known = len(journal.digests)
    journal.add(dict(enumerate(digests[known:], known)))
    fault("chunks-confirmed")
