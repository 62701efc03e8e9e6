"""Checkpoints: safetensors files that are either whole or absent, and that carry proof of their content.

A file is written under a temporary name and fsynced. Then it is renamed and its folder fsynced. A crash therefore
leaves the old file or the new one. Every tensor has a CRC-32 and the header has a BLAKE2b digest, so a read finds a
truncated file and a flipped bit. This module writes the format itself, tensor by tensor, because older safetensors
releases copy the whole model first. Any safetensors library reads the result.

Layout: 8 bytes little-endian header length, the JSON header, then the tensors' little-endian bytes without gaps. Wider
dtypes come first, so that each tensor is aligned; the header keeps the caller's order.
"""

from __future__ import annotations

import hashlib
import json
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

from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.local.durable import write_whole
from fedmq.schemas.parameters import Array

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


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


def read(path: Path, digest: str | None = None) -> Checkpoint:
    """Read `path` and check every byte; with `digest`, also check that `write` returned it for this very file.

    Raises CheckpointError, with the file's name, if it is missing, torn, truncated, altered or not ours.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}. {_ADVICE}") from error


def look(path: Path, digest: str) -> None:
    """Check the header and the length alone. Raises CheckpointError as `read` does."""
    try:
        with path.open("rb") as file:
            _checked_header(path, file, os.fstat(file.fileno()).st_size, digest)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}. {_ADVICE}") from error


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
    arrays = dict(_tensors(path, file, start, header, json.loads(metadata["fedmq_crc32"])))
    return Checkpoint(arrays, json.loads(metadata["fedmq_meta"]), metadata["fedmq_digest"])


def _checked_header(
    path: Path, file: BinaryIO, size: int, digest: str | None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return (the offset at which the tensors begin, their entries, our metadata)."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"checkpoint {path} is torn or no safetensors file: {size} bytes. {_ADVICE}")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop(_METADATA)
        crcs, meta, found = metadata["fedmq_crc32"], metadata["fedmq_meta"], metadata["fedmq_digest"]
        whole = _digest(header, crcs, meta) == found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} has no header that fedmq wrote ({error!r}). {_ADVICE}") from error
    if not whole:
        raise CheckpointError(f"the header of checkpoint {path} was altered: its digest differs. {_ADVICE}")
    if digest is not None and found != digest:
        raise CheckpointError(
            f"checkpoint {path} is not the one in the ledger: digest {found}, not {digest}. {_ADVICE}"
        )
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise CheckpointError(f"checkpoint {path} is torn: {size} bytes, expected {expected}. {_ADVICE}")
    return 8 + length, header, metadata


def _tensors(
    path: Path, file: BinaryIO, start: int, header: Mapping[str, Any], crcs: Mapping[str, int]
) -> Iterator[tuple[str, Array]]:
    for name, entry in header.items():
        array = np.empty(entry["shape"], _DTYPES[entry["dtype"]])
        file.seek(start + entry["data_offsets"][0])
        inside = _bytes_of(array)
        if file.readinto(inside) != len(inside) or zlib.crc32(inside) != crcs[name]:  # type: ignore[attr-defined]
            raise CheckpointError(f"checkpoint {path} is damaged: the bytes of tensor {name!r} have changed. {_ADVICE}")
        yield name, array
