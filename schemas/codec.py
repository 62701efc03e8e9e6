"""The versioned msgpack envelope: a message, and its tensors beside it, as one message body.

    body   = [header, padding, blob]             a msgpack array of a map and two bins, nothing after it
    header = {"fedmq": 1, "kind": "update", "body": {...}, "tensors": [{"name", "dtype", "shape", "trainable"}...]}

"fedmq" is the first key, so that every version can recognise every other. "tensors" is absent if the message carries
none. The padding makes the blob start at a multiple of 64 within the body. `schemas.tensors` describes the blob. Any
msgpack library can read the body. Encoding copies each tensor once; decoding copies none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgpack
from pydantic import ValidationError

from fedmq.schemas.errors import (
    AppError,
    LimitExceeded,
    MalformedMessage,
    NotFinite,
    PeerError,
    UnsupportedVersion,
    shown,
)
from fedmq.schemas.limits import DEFAULT_LIMITS, Limits, header_bytes
from fedmq.schemas.messages import MESSAGE_TYPES, SCHEMA_VERSION, AnyMessage, Hello, Model, Task, Update
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, check_magnitudes, pack, packed_bytes, read_entries, spec_of, unpack
from fedmq.schemas.tensors import check_finite as check_tensors_finite

__all__ = ["DEFAULT_LIMITS", "Decoded", "Envelope", "Limits", "decode", "encode", "open_envelope"]

BLOB_ALIGNMENT_BYTES = 64

# msgpack reserves room for an array when it reads the declared length. These small limits keep the room that nested
# declarations can reserve below 1 MiB; the list of tensors is read entry by entry.
_MAX_ARRAY_LEN = 64
_MAX_MAP_LEN = 128
_MAX_STR_LEN = 32_768
_FIRST_LOOK_BYTES = 16_384

_LATER: Mapping[type[AnyMessage], tuple[str, ...]] = MappingProxyType(
    {
        Hello: ("leaving", "last_task", "codecs", "frozen", "model"),
        Task: ("signature", "uplink", "frozen", "downlink", "former", "reference"),
        Update: ("codec",),
    }
)
"""Fields that came after the first release. They are left out where they say nothing, so that an older fedmq, which
refuses fields that it does not know, can read the message."""
_ARRAY_OF_3 = b"\x93"
_BIN_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}


@dataclass(frozen=True, slots=True)
class Decoded:
    """The content of an envelope."""

    message: AnyMessage
    parameters: Parameters | None
    """Read-only views into the decoded body, which they keep alive; None if the message carries no tensors."""


@dataclass(frozen=True, slots=True)
class _Header:
    kind: Any
    fields: Any
    tensors: tuple[Any, ...] | None
    num_bytes: int
    """Position of the header's end, counted from the start of the body."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope whose message is read. Nobody has looked at its tensors yet."""

    message: AnyMessage
    _view: memoryview
    _header: _Header
    _limits: Limits

    def parameters(self, check_finite: bool = True) -> Parameters | None:
        """Return the tensors as `decode` does; None if the message carries none. Raises a PeerError, nothing else."""
        header = self._header
        blob = _read_blob(self._view, header.num_bytes)
        parameters = None
        if header.tensors is not None:
            try:
                spec = read_entries(header.tensors, self._limits)
            except ValidationError as error:
                raise _in_short("tensors", error) from None
            parameters = unpack(blob, spec)
        elif blob.nbytes:
            raise MalformedMessage(f"the tensor blob has {blob.nbytes} bytes and the header describes no tensors")
        mismatch = _carriage_mismatch(self.message, parameters)
        if mismatch:
            raise MalformedMessage(mismatch)
        if check_finite and parameters is not None:
            (check_magnitudes if isinstance(self.message, Update) else check_tensors_finite)(parameters)
        return parameters


def encode(message: AnyMessage, parameters: Parameters | None = None) -> bytes:
    """Return one message body. Raises as `encode_in_pieces` does."""
    return b"".join(encode_in_pieces(message, parameters))


def encode_in_pieces(message: AnyMessage, parameters: Parameters | None = None) -> list[memoryview | bytes]:
    """Return one message body in pieces, ready to be joined. Contiguous little-endian tensors are views, not copies.

    Non-contiguous and big-endian tensors are converted. NaN and infinity are not looked for. Raises AppError for
    tensors that no envelope can carry. Raises ValueError if `parameters` are given with a message that carries none, or
    are missing with a message that carries some.
    """
    mismatch = _carriage_mismatch(message, parameters)
    if mismatch:
        raise ValueError(mismatch)
    spec = None if parameters is None else spec_of(parameters)
    pieces = [] if parameters is None else pack(parameters)
    return [*_before_blob(message, spec, sum(len(p) for p in pieces)), *pieces]


def encoded_bytes(message: AnyMessage, spec: ModelSpec) -> int:
    """Return the length of `encode` of this message with tensors of this spec, which do not have to be there."""
    blob_bytes = packed_bytes(spec)
    return sum(map(len, _before_blob(message, spec, blob_bytes))) + blob_bytes


def _before_blob(message: AnyMessage, spec: ModelSpec | None, blob_bytes: int) -> list[bytes]:
    in_chunks = isinstance(message, Task | Update) and message.chunks is not None
    absent = {"kind"} if in_chunks else {"kind", "chunks"}
    later, known = _LATER.get(type(message), ()), type(message).model_fields
    absent |= {name for name in later if getattr(message, name) == known[name].default}
    fields = message.model_dump(exclude=absent)
    header: dict[str, Any] = {"fedmq": SCHEMA_VERSION, "kind": message.kind, "body": fields}
    if spec is not None:
        header["tensors"] = _entries(spec)
    head = _ARRAY_OF_3 + msgpack.packb(header)
    room = header_bytes(0 if spec is None else len(spec))
    if len(head) > room:
        raise AppError(
            f"the message's header has {len(head)} bytes, the limit is {room}: the model's tensors have too long names"
        )
    blob_head = _bin_head(blob_bytes)
    padding = -(len(head) + 2 + len(blob_head)) % BLOB_ALIGNMENT_BYTES
    return [head, _bin_head(padding), bytes(padding), blob_head]


def decode(body: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS, check_finite: bool = True) -> Decoded:
    """Return the message and read-only tensor views. Everything is checked that does not need the model or the run.

    Raises a PeerError, and nothing else, whatever the bytes are: UnsupportedVersion, LimitExceeded, MalformedMessage,
    or NotFinite (a NaN or an infinity in a number of the message, or in a tensor if `check_finite`).
    """
    envelope = open_envelope(body, limits)
    return Decoded(envelope.message, envelope.parameters(check_finite))


def open_envelope(body: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS) -> Envelope:
    """Read the message, and nothing of its tensors. Raises a PeerError, and nothing else, as `decode` does."""
    view = memoryview(body).toreadonly()
    if view.nbytes > limits.max_body_bytes:
        raise LimitExceeded(f"the message body has {view.nbytes} bytes, the limit is {limits.max_body_bytes}")
    header = _read_header(view, limits)
    return Envelope(_read_message(header), view, header, limits)


def _carriage_mismatch(message: AnyMessage, parameters: Parameters | None) -> str | None:
    how, carries = "", isinstance(message, Task | Model | Update)
    if isinstance(message, Task | Update) and message.chunks is not None:
        how, carries = " in chunks", False
    elif isinstance(message, Update) and message.payload == "none":
        how, carries = " with payload 'none'", False
    if carries == (parameters is not None):
        return None
    return f"a message of kind {message.kind}{how} must {'' if carries else 'not '}carry tensors"


def entry_bytes(spec: ModelSpec) -> int:
    """Return the bytes that the tensors' entries take in a header."""
    return len(msgpack.packb(_entries(spec)))


def _entries(spec: ModelSpec) -> list[dict[str, Any]]:
    return [{"name": s.name, "dtype": s.dtype, "shape": s.shape, "trainable": s.trainable} for s in spec]


def _bin_head(length: int) -> bytes:
    if length < 2**8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 2**16:
        return b"\xc5" + length.to_bytes(2, "big")
    if length < 2**32:
        return b"\xc6" + length.to_bytes(4, "big")
    raise AppError(f"the tensors have {length} bytes, one message carries less than {2**32}: the model is too large")


def _read_header(view: memoryview, limits: Limits) -> _Header:
    # The unpacker copies all that it is fed, and nearly every header fits into the first look.
    for num_bytes in (min(_FIRST_LOOK_BYTES, limits.max_header_bytes), limits.max_header_bytes):
        containers = _Containers(limits.max_containers)
        unpacker = msgpack.Unpacker(
            raw=False,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=containers.map,
            list_hook=containers.array,
            read_size=num_bytes,
            max_buffer_size=max(num_bytes, 1),
            max_str_len=_MAX_STR_LEN,
            max_bin_len=0,
            max_array_len=_MAX_ARRAY_LEN,
            max_map_len=_MAX_MAP_LEN,
            max_ext_len=0,
        )
        unpacker.feed(view[:num_bytes])
        try:
            return _parse_header(unpacker, limits)
        except PeerError:
            raise
        except msgpack.OutOfData:
            if view.nbytes <= num_bytes:
                raise MalformedMessage(f"the message ends inside its header, after {view.nbytes} bytes") from None
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise MalformedMessage(f"not a fedmq envelope: {type(error).__name__}: {str(error)[:200]}") from None
    raise LimitExceeded(f"the header does not end within {limits.max_header_bytes} bytes, which is the limit")


def _parse_header(unpacker: Any, limits: Limits) -> _Header:
    num_parts = unpacker.read_array_header()
    num_keys = unpacker.read_map_header()
    if num_keys == 0 or unpacker.unpack() != "fedmq":
        raise MalformedMessage("not a fedmq envelope: the first key of its header is not 'fedmq'")
    version = unpacker.unpack()
    if type(version) is not int or version < 1:
        raise MalformedMessage(f"the schema version is {shown(version)}, expected an integer from 1 up")
    if version != SCHEMA_VERSION:
        raise UnsupportedVersion(
            f"the message has schema version {version}, this fedmq speaks version {SCHEMA_VERSION}: "
            "run the same fedmq release on the coordinator and on all participants"
        )
    if num_parts != 3 or num_keys not in (3, 4):
        raise MalformedMessage(
            f"an envelope of {num_parts} parts with {num_keys} header keys, expected 3 parts with 3 or 4 keys"
        )
    found: dict[str, Any] = {}
    for _ in range(num_keys - 1):
        key = unpacker.unpack()
        if not isinstance(key, str) or key not in ("kind", "body", "tensors") or key in found:
            raise MalformedMessage(f"header key {shown(key)} is unknown or repeated; expected kind, body, tensors")
        if key != "tensors":
            found[key] = unpacker.unpack()
            continue
        num_tensors = unpacker.read_array_header()
        if num_tensors > limits.max_tensors:
            raise LimitExceeded(f"{num_tensors} tensors in one message, the limit is {limits.max_tensors}")
        found[key] = tuple(unpacker.unpack() for _ in range(num_tensors))
    if "kind" not in found or "body" not in found:
        raise MalformedMessage("the header must have the keys kind and body")
    return _Header(found["kind"], found["body"], found.get("tensors"), unpacker.tell())


class _Containers:
    """Counts the maps and arrays of a header. An empty map has one byte, and costs as much as a hundred others."""

    def __init__(self, most: int) -> None:
        self._left = self._most = most

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._left -= 1
        if self._left < 0:
            self._refuse()
        as_map = dict(pairs)
        if len(as_map) != len(pairs):
            raise MalformedMessage("a map in the header has the same key twice")
        return as_map

    def array(self, items: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            self._refuse()
        return items

    def _refuse(self) -> None:
        raise LimitExceeded(f"the header has more than {self._most} maps and arrays, which is the limit")


def _read_message(header: _Header) -> AnyMessage:
    if not isinstance(header.kind, str) or header.kind not in MESSAGE_TYPES:
        raise MalformedMessage(f"unknown kind of message {shown(header.kind)}, expected one of {list(MESSAGE_TYPES)}")
    if not isinstance(header.fields, dict) or "kind" in header.fields:
        raise MalformedMessage(f"the body of the {header.kind} must be a map of its fields, without kind")
    try:
        message = MESSAGE_TYPES[header.kind].model_validate(header.fields)
    except ValidationError as error:
        raise _in_short(header.kind, error) from None
    if isinstance(message, Update):
        for name, value in message.metrics.items():
            if not math.isfinite(value):
                raise NotFinite(f"metric {shown(name)} is {value}, expected a finite number")
    return message


def _in_short(prefix: str, error: ValidationError) -> PeerError:
    """Turn pydantic's first complaint into ours: the field, the value, the expectation, never more than a few lines."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join([prefix, *(str(part)[:80] for part in first["loc"])])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    text = f"{field}: got {shown(first['input'])}; {first['msg'][:300]}{more}"
    return NotFinite(text) if first["type"] == "finite_number" else MalformedMessage(text)


def _read_blob(view: memoryview, start: int) -> memoryview:
    _, start = _read_bin(view, start, "padding")
    blob, end = _read_bin(view, start, "tensor blob")
    if end != view.nbytes:
        raise MalformedMessage(f"{view.nbytes - end} bytes follow the end of the envelope")
    if (end - blob.nbytes) % BLOB_ALIGNMENT_BYTES:
        raise MalformedMessage(f"the tensor blob starts at byte {end - blob.nbytes}, expected a multiple of 64")
    return blob


def _read_bin(view: memoryview, start: int, what: str) -> tuple[memoryview, int]:
    """Read a bin in place. Return a view of its contents, and the position of its end."""
    kind = view[start] if start < view.nbytes else None
    if kind not in _BIN_LENGTH_BYTES:
        raise MalformedMessage(f"expected the {what}, a msgpack bin, at byte {start} of {view.nbytes}")
    contents = start + 1 + _BIN_LENGTH_BYTES[kind]
    if contents > view.nbytes:
        raise MalformedMessage(f"the message ends inside the length of its {what}")
    end = contents + int.from_bytes(view[start + 1 : contents], "big")
    if end > view.nbytes:
        raise MalformedMessage(f"the {what} has {end - contents} bytes, only {view.nbytes - contents} are left")
    return view[contents:end], end
