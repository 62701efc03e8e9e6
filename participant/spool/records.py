"""The form of a spool's files: a header and a body with a checksum, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmq.schemas.errors import SpoolError
from fedmq.schemas.limits import Limits
from fedmq.schemas.local.durable import sync_folder, write_whole
from fedmq.schemas.local.files import parse_json, remove
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import read_entries, spec_of, unpack

MAGIC = b"fedmq spool 1\n"
DIGEST_BYTES = 16
MOST_HEAD_BYTES = 100_000_000
"""Longest header. A memory's has an entry of about 100 bytes for each tensor."""
Body = bytes | memoryview
WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""Errors of content that fedmq did not write."""
_OWN_FILES = Limits(max_tensors=2**31)
"""Limits of a file that this machine wrote."""


def wrap(header: Mapping[str, Any], *body: bytes | bytearray | memoryview) -> list[bytes | bytearray | memoryview]:
    """Return the content of a file, in pieces: a header of JSON values, and a body."""
    head = json.dumps(header).encode()
    digest = hashlib.blake2b(head, digest_size=DIGEST_BYTES)
    for piece in body:
        digest.update(piece)
    return [MAGIC, digest.digest(), len(head).to_bytes(4, "little"), head, *body]


def unwrap(written: Body) -> tuple[dict[str, Any], Body, str]:
    """Return the header, the body, and the checksum in hexadecimal. Raises ValueError that says what is wrong."""
    if written[: len(MAGIC)] != MAGIC:
        raise ValueError(f"it begins with {bytes(written[: len(MAGIC)])!r}, expected {MAGIC!r}")
    start = len(MAGIC) + DIGEST_BYTES
    length = int.from_bytes(written[start : start + 4], "little")
    if length > MOST_HEAD_BYTES:
        raise ValueError(f"its header has {length} bytes, expected at most {MOST_HEAD_BYTES}")
    rest = start + 4 + length
    head, body = written[start + 4 : rest], written[rest:]
    digest = hashlib.blake2b(head, digest_size=DIGEST_BYTES)
    digest.update(body)
    if digest.digest() != written[len(MAGIC) : start]:
        raise ValueError(f"its {len(written)} bytes do not have the checksum that was written with them")
    header = parse_json(head)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")  # noqa: TRY004
    return header, body, digest.hexdigest()


def tensor_entries(tensors: Parameters) -> list[dict[str, Any]]:
    """Return the entries of a header for tensors whose packed bytes are the body."""
    return [{"name": s.name, "dtype": s.dtype, "shape": s.shape, "trainable": s.trainable} for s in spec_of(tensors)]


def tensors_in(header: Mapping[str, Any], body: Body) -> Parameters:
    """Return the tensors that `tensor_entries` described. Raises a PeerError, or one of WRONG, for others."""
    listed = [entry | {"shape": tuple(entry["shape"])} for entry in header["tensors"]]
    return unpack(memoryview(body), read_entries(listed, _OWN_FILES))


def write(path: Path, pieces: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write a file whole, or not at all. Raises SpoolError."""
    with as_spool_error("write", path):
        write_whole(path, pieces)


def remove_file(path: Path) -> None:
    """Remove a file durably, if it is there. Raises SpoolError."""
    with as_spool_error("remove", path):
        remove(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def as_spool_error(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a SpoolError that says what could not be done with this file."""
    try:
        yield
    except OSError as error:
        raise SpoolError(
            f"cannot {what} {path}: {error.strerror or error}. Make room or grant rights, or set another spool_dir"
        ) from error
