"""Payloads in chunks: the labels of the chunks, and the receiver's check that it has them all as they were sent.

A chunk is a message. Its body is the bytes [index·chunk_bytes, (index+1)·chunk_bytes) of the payload; its headers have
the payload's id, the index, and the SHA-256 of the body. The manifest (messages.ChunkedPayload) has the digest over
these digests, so every byte is hashed once on each side. (SHA-256 is twice as fast as BLAKE2b if the processor has
instructions for it, as nearly all have.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from fedmq.schemas.errors import MalformedMessage, shown
from fedmq.schemas.messages import ChunkedPayload

DIGEST_BYTES = 32
PAYLOAD_ID, INDEX, DIGEST = "payload_id", "chunk", "digest"
"""Names of the headers."""


def digest_of(chunk: bytes | bytearray | memoryview) -> bytes:
    """Return the SHA-256 of a chunk."""
    return hashlib.sha256(chunk).digest()


def digest_of_all(digests: Iterable[bytes]) -> str:
    """Return the manifest's digest, from the digests of all chunks in their order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def headers(payload_id: str, index: int, digest: bytes) -> dict[str, str | int | bool]:
    """Return the headers of a chunk."""
    return {PAYLOAD_ID: payload_id, INDEX: index, DIGEST: digest.hex()}


class Pieces:
    """The pieces of `encode_in_pieces`, to be read in parts. Only the bytes that are asked for are joined."""

    def __init__(self, pieces: Sequence[memoryview | bytes]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._starts = list(accumulate((piece.nbytes for piece in self._pieces), initial=0))

    @property
    def num_bytes(self) -> int:
        return self._starts[-1]

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer at the end."""
        parts, end = [], min(start + length, self.num_bytes)
        at = bisect_right(self._starts, start) - 1
        while start < end:
            inside = start - self._starts[at]
            part = self._pieces[at][inside : inside + end - start]
            parts.append(part)
            start += part.nbytes
            at += 1
        return b"".join(parts)


class Assembly:
    """The record of the chunks of one payload that have come. Their bytes are the caller's: each goes to
    `offset(index)`.

    `place` reads a chunk's label before anybody reads its bytes. `check` compares the digest of its bytes.
    """

    def __init__(self, payload: ChunkedPayload, digests: Mapping[int, bytes] | None = None) -> None:
        """`digests`: those of the chunks that are there already. Impossible indices are ignored."""
        self.payload = payload
        self._placed: dict[int, bytes] = {}
        self._checked = {index: found for index, found in (digests or {}).items() if index < payload.count}

    def offset(self, index: int) -> int:
        """Return the position of a chunk's first byte in the payload."""
        return index * self.payload.chunk_bytes

    def length(self, index: int) -> int:
        """Return the length of a chunk in bytes."""
        return min(self.payload.chunk_bytes, self.payload.num_bytes - self.offset(index))

    @property
    def missing(self) -> int:
        """Number of chunks that have not been checked yet."""
        return self.payload.count - len(self._checked)

    @property
    def first_missing(self) -> int:
        """Index of the first chunk that has not been checked yet; the number of chunks if there is none."""
        return next((index for index in range(self.payload.count) if index not in self._checked), self.payload.count)

    def place(self, label: Mapping[str, object], num_bytes: int) -> int | None:
        """Return the index of a wanted chunk; None if it is there already or belongs to another payload.

        Raises MalformedMessage if the chunk names this payload but cannot be a part of it.
        """
        if label.get(PAYLOAD_ID) != self.payload.payload_id:
            return None
        index, digest = label.get(INDEX), label.get(DIGEST)
        if type(index) is not int or not 0 <= index < self.payload.count:
            raise MalformedMessage(f"chunk index {shown(index)}, expected 0 to {self.payload.count - 1}")
        if num_bytes != self.length(index):
            raise MalformedMessage(f"chunk {index} has {num_bytes} bytes, expected {self.length(index)}")
        if not isinstance(digest, str) or len(digest) != 2 * DIGEST_BYTES:
            raise MalformedMessage(f"chunk {index} has the digest {shown(digest)}, expected 64 hexadecimal digits")
        if index in self._placed or index in self._checked:
            return None
        try:
            self._placed[index] = bytes.fromhex(digest)
        except ValueError:
            raise MalformedMessage(f"chunk {index} has the digest {shown(digest)}, expected hexadecimal") from None
        return index

    def check(self, index: int, found: bytes) -> None:
        """Raise MalformedMessage unless the placed chunk has the digest of its label."""
        if found != self._placed[index]:
            raise MalformedMessage(f"chunk {index} of {self.payload.count} was damaged on its way: its digest differs")
        self._checked[index] = found
        del self._placed[index]

    def check_all(self) -> None:
        """Raise MalformedMessage unless every chunk is there and all of them have the manifest's digest."""
        if self.missing:
            raise MalformedMessage(f"{self.missing} of {self.payload.count} chunks are missing")
        digests = [self._checked[index] for index in range(self.payload.count)]
        if digest_of_all(digests) != self.payload.digest:
            raise MalformedMessage("the chunks are not those that the manifest describes: the digest of all differs")
