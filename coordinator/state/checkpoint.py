"""Checkpoints: safetensors files that are either whole or absent, and that carry proof of their content.

A file is written under a temporary name and fsynced. Then it is renamed and its folder fsynced. A crash therefore
leaves the old file or the new one. Every tensor has a CRC-32 and the header has a BLAKE2b digest, so a read finds a
truncated file and a flipped bit. This module writes the format itself, tensor by tensor, because older safetensors
releases copy the whole model first. Any safetensors library reads the result.

Layout: 8 bytes little-endian header length, the JSON header, then the tensors' little-endian bytes without gaps. Wider
dtypes come first, so that each tensor is aligned; the header keeps the caller's order.

A reader believes nothing: the file is a plain one no larger than its reader expects, the header is bounded, and each
tensor has a known dtype, the bytes of its shape, and a place of its own. Only then is memory taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from fedmq.schemas.errors import CheckpointError, shown
from fedmq.schemas.local.durable import write_whole
from fedmq.schemas.local.files import open_to_read, parse_json
from fedmq.schemas.parameters import Array

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_RANK = 32
_WRONG = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Errors of a header that fedmq did not write."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a file: writable arrays of our own, the caller's `meta`, and the digest that `write` returned."""

    arrays: dict[str, Array]
    meta: dict[str, Any]
    digest: str


def write(
    path: Path,
    arrays: Mapping[str, Array],
    meta: Mapping[str, Any] | None = None,
    *,
    copy: Path | None = None,
    sync_copy: bool = True,
) -> str:
    """Write `arrays` and `meta` (JSON values) to `path`, durably and all or nothing; return the digest.

    With `copy` the same bytes also go there at the same time, with one pass for the checksums and one wait for both
    disks. Without `sync_copy` the operating system brings the copy to its disk later. A contiguous native array is not
    copied in RAM.

    Raises CheckpointError for a dtype that safetensors lacks, and OSError if a disk refuses. Its temporary file is then
    removed, and an older file stays as it was.
    """
    plain = {name: _plain(path, name, array) for name, array in arrays.items()}
    header, digest = _header(plain, dict(meta or {}))
    if copy is None:
        _put(path, header, plain)
    else:
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(_put, copy, header, plain, sync=sync_copy)
            try:
                _put(path, header, plain)
            finally:
                wait([second])
            second.result()
    return digest


def digest_of(arrays: Mapping[str, Array], meta: Mapping[str, Any] | None = None) -> str:
    """Return the digest that `write` would return, without writing."""
    plain = {name: _plain(Path("a checkpoint"), name, array) for name, array in arrays.items()}
    return _header(plain, dict(meta or {}))[1]


def _put(path: Path, header: bytes, plain: Mapping[str, Array], *, sync: bool = True) -> None:
    tensors = (_bytes_of(plain[name]) for name in _layout(plain))
    write_whole(path, chain((len(header).to_bytes(8, "little"), header), tensors), sync=sync)


def read(
    path: Path, digest: str | None = None, *, most_bytes: int | None = None, named_by_user: bool = False
) -> Checkpoint:
    """Read `path` and check every byte; with `digest`, also check that `write` returned it for this very file.

    `most_bytes` defaults to this machine's memory. A file that is `named_by_user` may be a link.

    Raises CheckpointError, with the file's name, if it is missing, torn, truncated, altered or not ours.
    """
    try:
        with open_to_read(path, most_bytes or _memory_bytes(), named_by_user=named_by_user) as file:
            return _read(path, file, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}. {_ADVICE}") from error


def look(path: Path, digest: str) -> None:
    """Check the header and the length alone. Raises CheckpointError as `read` does."""
    try:
        with open_to_read(path, _memory_bytes()) as file:
            _checked_header(path, file, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}. {_ADVICE}") from error


def _memory_bytes() -> int:
    """Return the machine's memory: a checkpoint is read whole, so no larger one can be used here."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fault_of(error: CheckpointError) -> str:
    """Return what is wrong without the advice, for damage that costs nothing."""
    return str(error).removesuffix(" " + _ADVICE).removesuffix(".")


_ADVICE = "Restore the run folder from a backup, or start a new run_id."


def _plain(path: Path, name: str, array: Array) -> Array:
    """Return the array as contiguous little-endian bytes; it is copied only if it is not that already."""
    if name == _METADATA or array.dtype.name not in _CODES:
        raise CheckpointError(
            f"tensor {name!r} of dtype {array.dtype} cannot go into {path}: safetensors holds {', '.join(_CODES)} "
            f"under any name but {_METADATA}"
        )
    return np.ascontiguousarray(array, dtype=_DTYPES[_CODES[array.dtype.name]]).reshape(array.shape)


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _layout(arrays: Mapping[str, Array]) -> list[str]:
    return sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)


def _header(arrays: Mapping[str, Array], meta: dict[str, Any]) -> tuple[bytes, str]:
    spans: dict[str, list[int]] = {}
    end = 0
    for name in _layout(arrays):
        spans[name] = [end, end + arrays[name].nbytes]
        end = spans[name][1]
    entries: dict[str, Any] = {
        name: {"dtype": _CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": spans[name]}
        for name, array in arrays.items()
    }
    crcs = json.dumps({name: zlib.crc32(_bytes_of(array)) for name, array in arrays.items()})
    text = json.dumps(meta)
    digest = _digest(entries, crcs, text)
    metadata = {"fedmq_crc32": crcs, "fedmq_meta": text, "fedmq_digest": digest}
    header = json.dumps({_METADATA: metadata, **entries}).encode()
    return header + b" " * (-len(header) % 8), digest


def _digest(entries: dict[str, Any], crcs: str, meta: str) -> str:
    return hashlib.blake2b(json.dumps([entries, crcs, meta]).encode(), digest_size=16).hexdigest()


def _read(path: Path, file: BinaryIO, size: int, digest: str | None) -> Checkpoint:
    start, header, metadata = _checked_header(path, file, size, digest)
    try:
        crcs, meta = parse_json(metadata["fedmq_crc32"]), parse_json(metadata["fedmq_meta"])
        if not isinstance(meta, dict) or set(crcs) != set(header):
            raise ValueError("its checksums or its meta values are not as fedmq writes them")
    except _WRONG as error:
        raise CheckpointError(
            f"checkpoint {path} has no header that fedmq wrote ({_short(error)}). {_ADVICE}"
        ) from error
    return Checkpoint(dict(_tensors(path, file, start, header, crcs)), meta, metadata["fedmq_digest"])


def _checked_header(
    path: Path, file: BinaryIO, size: int, digest: str | None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return (the offset at which the tensors begin, their entries, our metadata)."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"checkpoint {path} is torn or no safetensors file: {size} bytes. {_ADVICE}")
    try:
        header = parse_json(file.read(length))
        metadata = header.pop(_METADATA)
        crcs, meta, found = metadata["fedmq_crc32"], metadata["fedmq_meta"], metadata["fedmq_digest"]
        end = _end_of(header)
        whole = _digest(header, crcs, meta) == found
    except _WRONG as error:
        raise CheckpointError(
            f"checkpoint {path} has no header that fedmq wrote ({_short(error)}). {_ADVICE}"
        ) from error
    if not whole:
        raise CheckpointError(f"the header of checkpoint {path} was altered: its digest differs. {_ADVICE}")
    if digest is not None and found != digest:
        raise CheckpointError(
            f"checkpoint {path} is not the one in the ledger: digest {shown(found)}, not {shown(digest)}. {_ADVICE}"
        )
    if size != 8 + length + end:
        raise CheckpointError(f"checkpoint {path} is torn: {size} bytes, expected {8 + length + end}. {_ADVICE}")
    return 8 + length, header, metadata


def _end_of(header: Mapping[str, Any]) -> int:
    """Return the length of the tensors together. Raises ValueError unless they follow each other without a gap."""
    spans = []
    for name, entry in header.items():
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(n) for n in (*shape, begin, end)):
            raise ValueError(f"tensor {shown(name)} has a shape or offsets that are no sizes")
        if end - begin != math.prod(shape) * _DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"tensor {shown(name)} has other bytes than its shape takes")
        if math.prod(n for n in shape if n) > 2**60:
            raise ValueError(f"tensor {shown(name)} is empty, and too large in its other dimensions")
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError("its tensors overlap, or there is a gap between them")
        at = end
    return at


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**62


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(str(error), 200)}"


def _tensors(
    path: Path, file: BinaryIO, start: int, header: Mapping[str, Any], crcs: Mapping[str, int]
) -> Iterator[tuple[str, Array]]:
    for name, entry in header.items():
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        file.seek(start + entry["data_offsets"][0])
        inside = _bytes_of(array)
        if file.readinto(inside) != len(inside) or zlib.crc32(inside) != crcs[name]:  # type: ignore[attr-defined]
            raise CheckpointError(
                f"checkpoint {path} is damaged: the bytes of tensor {shown(name)} have changed. {_ADVICE}"
            )
        yield name, array
