"""Updates that are too large for one message: from the outbox into a queue of their own, then announced by a manifest.

What the broker has confirmed is written down a window at a time, so that the next process goes on there. An upload that
is whole is announced from its manifest, on disk too, from then on, and not looked at again: the coordinator may be
taking it. A disk that is full or read-only keeps no finished update back: what cannot be written down costs the next
process time, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedmq.broker_config.chunks.sender import ChunkSender, News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Transport
from fedmq.participant.spool.chunk_journal import ChunkJournal
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codec import Limits, decode, encode
from fedmq.schemas.errors import PeerError, SpoolError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import ChunkedPayload, Update

log = EventLog(__name__)

Announce = Callable[[Update, bytes], None]
"""Publish the manifest, a message body, of this update."""
Failed = Callable[[str, BaseException], None]


class Uploads:
    """The participant's uploads by update_id. Used from the service's thread."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        spool: Spool,
        participant_id: str,
        *,
        chunk_bytes: int,
        limits: Limits,
        put: Callable[[News], None],
        announce: Announce,
        failed: Failed,
    ) -> None:
        self._transport = transport
        self._topology = topology
        self._spool = spool
        self._participant_id = participant_id
        self._chunk_bytes = chunk_bytes
        self._limits = limits
        self._put = put
        self._announce = announce
        self._failed = failed
        self._senders: dict[str, ChunkSender] = {}
        self._known: set[str] = set()
        self._manifests: dict[str, bytes] = {}
        """Of uploads that are whole, as far as this process knows."""
        self._outdated: set[str] = set()
        """What the disk still says of these is of no use."""

    def begin(self, update_id: str, payload_id: str, body: memoryview | bytes) -> None:
        """Upload a body from the outbox, or announce it where that was done before. Raises SpoolError where it holds no
        update."""
        self._known.add(update_id)
        try:
            message = decode(body, self._limits, check_finite=False).message
        except PeerError as error:
            raise SpoolError(f"update {update_id} in the outbox cannot be read: {error}") from error
        if not isinstance(message, Update):
            raise SpoolError(f"update {update_id} in the outbox is a {message.kind}")
        update = message
        announced = self._announced(update_id)
        if announced is not None and announced[0].chunks.payload_id == payload_id:  # type: ignore[union-attr]
            self._announce(*announced)
            return
        path = self._spool.journal_path(update_id)
        journal = ChunkJournal(path, {"payload_id": payload_id, "chunk_bytes": self._chunk_bytes})
        done_before = journal.without_gap()

        def confirmed(digests: Sequence[bytes]) -> None:
            try:
                _write_down(journal, digests)
            except OSError as error:
                log.warning("chunks_not_noted", task=update.task_id, detail=error)

        def done(outcome: ChunkedPayload | BaseException) -> None:
            self._done(update, outcome)

        former = self._senders.pop(update_id, None)
        if former is not None:
            former.cancel()
        sender = self._senders[update_id] = ChunkSender(
            self._transport,
            self._topology.payload(self._participant_id, update_id),
            payload_id=payload_id,
            task_id=update.task_id,
            num_bytes=len(body),
            chunk_bytes=self._chunk_bytes,
            read=lambda start, length: bytes(body[start : start + length]),
            put=self._put,
            on_done=done,
            on_confirmed=confirmed,
            digests=done_before,
        )
        log.info(
            "upload", participant=self._participant_id, task=update.task_id, bytes=len(body),
            chunks_confirmed=len(done_before),
        )  # fmt: skip
        sender.begin()

    def take(self, news: News) -> None:
        """The transport's answer."""
        news.sender.take(news)

    def manifest(self, update_id: str) -> bytes | None:
        """What announces an upload, once it is whole."""
        announced = self._announced(update_id)
        return None if announced is None else announced[1]

    def _done(self, update: Update, outcome: ChunkedPayload | BaseException) -> None:
        uid = update.update_id
        sender = self._senders.pop(uid)
        if isinstance(outcome, BaseException):
            self._failed(uid, outcome)
            return
        log.info(
            "uploaded", participant=self._participant_id, task=update.task_id, chunks=outcome.count,
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

    def start_over(self, update_id: str) -> None:
        """Its chunks did not reach the coordinator: the next `begin` sends all of them."""
        self._stop(update_id)
        self._manifests.pop(update_id, None)
        try:
            self._spool.clear_upload(update_id)
        except SpoolError as error:
            self._outdated.add(update_id)
            log.warning("upload_not_cleared", update=update_id, detail=error)

    def forget(self, update_id: str) -> None:
        """The update is over: nothing of its upload stays, here or on the broker."""
        self._stop(update_id)
        self._manifests.pop(update_id, None)
        self._outdated.discard(update_id)
        if update_id in self._known or self._spool.has_upload(update_id):
            self._known.discard(update_id)
            self._transport.delete_queue(self._topology.payload(self._participant_id, update_id).name)
        self._spool.clear_upload(update_id)

    def _announced(self, update_id: str) -> tuple[Update, bytes] | None:
        """The manifest of an upload that is whole, read and as it is."""
        manifest = self._manifests.get(update_id)
        try:
            if manifest is None and update_id not in self._outdated:
                manifest = self._spool.manifest(update_id)
            message = None if manifest is None else decode(manifest, self._limits).message
        except (SpoolError, PeerError) as error:
            log.warning("manifest_unreadable", update=update_id, detail=error)
            return None
        return (message, manifest) if manifest and isinstance(message, Update) and message.chunks else None

    def _stop(self, update_id: str) -> None:
        sender = self._senders.pop(update_id, None)
        if sender is not None:
            sender.cancel()


def _write_down(journal: ChunkJournal, digests: Sequence[bytes]) -> None:
    """The chunks from 0 on that are confirmed; none: it is begun again."""
    if not digests:
        journal.clear()
        return
    known = len(journal.digests)
    journal.add(dict(enumerate(digests[known:], known)))
    fault("chunks-confirmed")
