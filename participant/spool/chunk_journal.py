"""Files about payloads that travel in chunks, beside the files of `participant.spool.spool`.

    spool_dir/<participant_id>/task.payload              a task's parameters, as far as they have come
                               task.chunks               journal of the chunks in it, with their digests
                               outbox/<update_id>.chunks journal of an update's chunks that the broker has confirmed
                               outbox/<update_id>.sent   manifest of an update that is uploaded whole

A journal (`.chunks`) begins with a line of JSON that names its payload. A record of an index and a digest follows for
each chunk. Records are only added, after their chunks are durable. A torn last record is ignored. Losing a journal
costs nothing but time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedmq.schemas.chunks import DIGEST_BYTES, digest_of, digest_of_all
from fedmq.schemas.errors import SpoolError
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.local.files import UnfitFile, content, open_in_place, read_bytes, remove
from fedmq.schemas.messages import ChunkedPayload

_INDEX_BYTES = 4
_RECORD_BYTES = _INDEX_BYTES + DIGEST_BYTES
_MOST_CHUNKS = 65_000
"""Bound of a ChunkedPayload. A record beyond it is not ours."""
_MOST_JOURNAL_BYTES = 4096 + _MOST_CHUNKS * _RECORD_BYTES


class ChunkJournal:
    """The chunks of one payload that are done. A journal that cannot be read counts as empty. Writing may raise
    OSError."""

    def __init__(self, path: Path, of: Mapping[str, object], count: int = _MOST_CHUNKS) -> None:
        """Open the journal at `path`. `of` names the payload, which has `count` chunks at most. A journal of another
        payload counts as empty."""
        self._path = path
        self._count = count
        self._head = json.dumps(dict(of), sort_keys=True).encode() + b"\n"
        self.digests: dict[int, bytes] = {}
        with contextlib.suppress(OSError):  # a missing or unreadable journal is empty
            self._read(read_bytes(path, _MOST_JOURNAL_BYTES))

    def _read(self, written: bytes) -> None:
        if not written.startswith(self._head):
            return
        records = written[len(self._head) :]
        found: dict[int, bytes] = {}
        for start in range(0, len(records) - _RECORD_BYTES + 1, _RECORD_BYTES):
            record = records[start : start + _RECORD_BYTES]
            found[int.from_bytes(record[:_INDEX_BYTES], "little")] = record[_INDEX_BYTES:]
        if all(index < self._count for index in found):
            self.digests = found

    def without_gap(self) -> list[bytes]:
        """Return the digests of the chunks from 0 on, up to the first that is not done."""
        found: list[bytes] = []
        while (digest := self.digests.get(len(found))) is not None:
            found.append(digest)
        return found

    def add(self, done: Mapping[int, bytes]) -> None:
        """Add chunks (index -> digest). They are durable on return; they are not added if this raises OSError."""
        if not self.digests:
            remove(self._path)
        with os.fdopen(open_in_place(self._path), "r+b") as file:
            if not self.digests:
                file.write(self._head)
            else:  # write over a torn record that a crash may have left
                file.seek(len(self._head) + len(self.digests) * _RECORD_BYTES)
                file.truncate()
            for index, digest in done.items():
                file.write(index.to_bytes(_INDEX_BYTES, "little") + digest)
            file.flush()
            os.fsync(file.fileno())
        self.digests.update(done)

    def clear(self) -> None:
        """Forget all chunks."""
        self.digests = {}
        remove(self._path)


class PayloadFile:
    """The payload of the task in hand. Chunks are written to their places, in any order."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "task.payload"
        self._journal_path = folder / "task.chunks"
        self._journal: ChunkJournal | None = None
        self._handle: int | None = None

    def open(self, payload: ChunkedPayload) -> dict[int, bytes]:
        """Begin a payload, or go on after a crash. Return the digests of the chunks that are there already.

        Raises OSError if there is no room for the whole payload.
        """
        self.close()
        journal = ChunkJournal(self._journal_path, payload.model_dump(), payload.count)
        if not journal.digests or not self._path.exists():
            self.clear()
            journal.clear()
        try:
            handle = open_in_place(self._path)
        except UnfitFile:
            self.clear()
            journal.clear()
            handle = open_in_place(self._path)
        try:
            os.posix_fallocate(handle, 0, payload.num_bytes)
        except OSError:
            os.close(handle)
            self.clear()
            raise
        self._handle, self._journal = handle, journal
        return dict(journal.digests)

    def write(self, start: int, chunk: bytes | bytearray) -> None:
        assert self._handle is not None
        view, end = memoryview(chunk), start + len(chunk)
        while start < end:
            start += os.pwrite(self._handle, view[len(view) - (end - start) :], start)

    def sync(self, done: Mapping[int, bytes]) -> None:
        """Make chunks that were written durable, and note their digests in the journal."""
        assert self._handle is not None
        assert self._journal is not None
        os.fsync(self._handle)
        self._journal.add(done)

    def close(self) -> None:
        """Close the file, which stays on disk. Idempotent."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def clear(self) -> None:
        """Delete the file. A part of it that is mapped stays readable."""
        self.close()
        remove(self._path)
        remove(self._journal_path)

    def read(self) -> memoryview:
        """Return the whole payload, mapped. Raises SpoolError if it is missing."""
        try:
            return memoryview(content(self._path, MAX_PAYLOAD_BYTES))
        except OSError as error:
            raise SpoolError(f"cannot read {self._path}: {error}; the task is asked for again") from error

    def holds(self, payload: ChunkedPayload) -> bool:
        """True if the payload is there and every byte is as it was sent."""
        try:
            found = self.read()
        except SpoolError:
            return False
        if found.nbytes != payload.num_bytes:
            return False
        size = payload.chunk_bytes
        digests = (digest_of(found[start : start + size]) for start in range(0, payload.num_bytes, size))
        return digest_of_all(digests) == payload.digest
