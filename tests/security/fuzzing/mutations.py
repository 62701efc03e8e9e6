"""Mutated messages, made from valid ones: by their structure (a field, a tensor entry), and by their bytes.

`Mutator` is deterministic by its random generator. It knows no message in particular: the corpus has a sample of every
kind in MESSAGE_TYPES, so a new kind is mutated without a change here.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that stand for a msgpack value."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Pairs:
    """A map as a list of pairs: a key may come twice, and be anything."""

    pairs: list[tuple[Any, Any]]


def pack(value: Any) -> bytes:
    """Return a value as msgpack, with Raw and Pairs anywhere in it."""
    if isinstance(value, Raw):
        return value.content
    if isinstance(value, dict):
        value = Pairs(list(value.items()))
    if isinstance(value, Pairs):
        head = msgpack.Packer().pack_map_header(len(value.pairs))
        return head + b"".join(pack(key) + pack(inside) for key, inside in value.pairs)
    if isinstance(value, list | tuple):
        return msgpack.Packer().pack_array_header(len(value)) + b"".join(pack(inside) for inside in value)
    try:
        return msgpack.packb(value)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
        return b"\xc0"


def envelope(head: Any, blob: bytes, padding: int | None = None) -> bytes:
    """Return the three parts of an envelope, the blob at a multiple of 64 unless `padding` says otherwise."""
    packed, packed_blob = pack(head), msgpack.packb(blob)
    start = 1 + len(packed) + 2 + len(packed_blob) - len(blob)
    return b"\x93" + packed + msgpack.packb(bytes(-start % 64 if padding is None else padding)) + packed_blob


NUMBERS = [
    0, -1, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 5e-324, 1e-300,
    1.7976931348623157e308, -1.7976931348623157e308, float("nan"), float("inf"), float("-inf"), 0.5, True, False,
]  # fmt: skip
TEXTS = [
    "", "x", "\x00", "\n2026-11-29T00:00:00.000+00:00 INFO fedmq event=forged", "\x1b[2J", "\u202e", "../../etc/passwd",
    "a" * 64, "a" * 65, "é" * 4000, "\U0001f600" * 4001, "b" * 40_000, "delta", "none", "train", "busy", "loss", "kind",
]  # fmt: skip
MARKERS = [
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdc\xff\xff", b"\xde\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xd6\xff\0\0\0\0", b"\xc1", b"\xd9\xff", b"\x9f",
    b"\x8f", b"\xc4\xff",
]  # fmt: skip


def deep(rng: random.Random) -> Raw:
    """Return containers inside each other, up to 10,000 levels."""
    levels = rng.choice([3, 40, 400, 1000, 10_000])
    return Raw(rng.choice([b"\x91", b"\x81\xa1a", b"\x91\x91", b"\x92\xc0"]) * levels + rng.choice([b"", b"\xc0"]))


def wide(rng: random.Random) -> Raw:
    """Return a value with very many small ones in it, up to 600 KB."""
    leaf = rng.choice([b"\x80", b"\x90", b"\xc0", b"\x01", b"\xa1a", b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\x91\x90"])
    row = b"\xdc\x00\x40" + leaf * 64
    for _ in range(rng.choice([0, 1, 1, 2])):
        row = b"\xdc\x00\x40" + row * 64
    if len(row) > 600_000:
        row = b"\x93" + row[:200_000] * 3
    return Raw(row)


def hostile(rng: random.Random) -> Any:
    """Return a value that no field expects, or one at the edge of what it allows."""
    made = rng.randrange(12)
    if made < 4:
        return rng.choice(NUMBERS)
    if made < 7:
        return rng.choice(TEXTS)
    if made == 7:
        return None
    if made == 8:
        return rng.choice([b"", b"bytes", msgpack.ExtType(5, b"ext"), msgpack.Timestamp(2**33, 5)])
    if made == 9:
        return [rng.choice(TEXTS[:8])] * rng.choice([0, 1, 64, 65, 128])
    if made == 10:
        count = rng.choice([0, 1, 64, 65, 128, 129, 200])
        return {f"{rng.choice(TEXTS[:6])}{i}": rng.choice(NUMBERS) for i in range(count)}
    return deep(rng) if rng.random() < 0.9 else wide(rng)


Path = tuple[Any, ...]


def paths(value: Any, limit: int = 200) -> list[Path]:
    """Return the ways to every value inside maps and lists, the first `limit` of them."""
    found: list[Path] = []
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting and len(found) < limit:
        at, here = waiting.pop(0)
        inside = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, one in inside:
            found.append((*at, key))
            waiting.append(((*at, key), one))
    return found


def copied(value: Any) -> Any:
    """Return a copy whose maps and lists may be changed."""
    if isinstance(value, dict):
        return {key: copied(inside) for key, inside in value.items()}
    return [copied(inside) for inside in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class Sample:
    """A valid message: its encoded body, and the parts of it."""

    kind: str
    body: bytes
    head: Any
    blob: bytes

    @classmethod
    def of(cls, body: bytes) -> Sample:
        """Take a valid body apart."""
        head, _, blob = msgpack.unpackb(body, use_list=True, max_array_len=10_000)
        return cls(str(head["kind"]), body, head, blob)


class Mutator:
    """Makes bad messages from samples. `names` has the mutations of the last one, for a report."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.names: list[str] = []
        self._of_structure: list[Callable[[Any, bytearray], Any]] = [
            self.replace, self.replace, self.replace, self.number, self.number, self.delete, self.add, self.rename,
            self.twice, self.swap, self.other_kind, self.entries, self.entries, self.values, self.values, self.manifest,
        ]  # fmt: skip
        self._of_bytes: list[Callable[[bytearray], bytes | bytearray]] = [
            self.flip, self.flip, self.flip, self.cut, self.insert, self.repeat, self.drop, self.overwrite, self.lie,
        ]  # fmt: skip

    def message(self, sample: Sample, others: Sequence[Sample]) -> bytes:
        """Return a body that is made from `sample`, and perhaps from pieces of the others."""
        rng, self.names = self._rng, []
        body: bytes | bytearray = sample.body
        if rng.random() < 0.6:
            head: Any = copied(sample.head)
            blob = bytearray(sample.blob)
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                if not isinstance(head, dict):
                    break
                change = rng.choice(self._of_structure)
                self.names.append(change.__name__)
                head = change(head, blob)
            padding = rng.randrange(200) if rng.random() < 0.03 else None
            body = envelope(head, bytes(blob), padding)
        if body is sample.body or rng.random() < 0.1:
            for _ in range(rng.choice([1, 1, 2])):
                if rng.random() < 0.05:
                    self.names.append("splice")
                    other = rng.choice(others).body
                    body = body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other)) :]
                else:
                    body = self.of_bytes(body)
        return bytes(body)

    def of_bytes(self, body: bytes | bytearray) -> bytes:
        """Return the body with a change of its bytes."""
        change = self._rng.choice(self._of_bytes)
        self.names.append(change.__name__)
        return bytes(change(bytearray(body)))

    def claims(self, sample: Sample) -> bytes:
        """Return a body that differs from the sample in its numbers alone."""
        head, blob = copied(sample.head), bytearray(sample.blob)
        self.names = []
        for _ in range(self._rng.choice([0, 1, 1, 2])):
            change = self._rng.choice([self.number, self.values])
            self.names.append(change.__name__)
            change(head, blob)
        return envelope(head, bytes(blob))

    # Structure: each gets the header and the blob, and returns the header

    def _spot(self, head: dict[str, Any]) -> tuple[Any, Any] | None:
        found = paths(head)
        if not found:
            return None
        *way, last = self._rng.choice(found)
        here: Any = head
        for key in way:
            here = here[key]
        return here, last

    def replace(self, head: Any, _blob: bytearray) -> Any:
        if spot := self._spot(head):
            spot[0][spot[1]] = hostile(self._rng)
        return head

    def number(self, head: Any, _blob: bytearray) -> Any:
        """Put an extreme number in the place of one."""
        ways = [way for way in paths(head["body"]) if isinstance(head["body"], dict)] if "body" in head else []
        numbers = []
        for *way, last in ways:
            here = head["body"]
            for key in way:
                here = here[key]
            if isinstance(here[last], int | float):
                numbers.append((here, last))
        if numbers:
            here, last = self._rng.choice(numbers)
            here[last] = self._rng.choice(NUMBERS)
        return head

    def delete(self, head: Any, _blob: bytearray) -> Any:
        if spot := self._spot(head):
            del spot[0][spot[1]]
        return head

    def add(self, head: Any, _blob: bytearray) -> Any:
        spot = self._spot(head)
        if spot and isinstance(spot[0], dict):
            spot[0][self._rng.choice(TEXTS)] = hostile(self._rng)
        elif spot:
            spot[0].extend([spot[0][spot[1]]] * self._rng.choice([1, 64, 1000]))
        return head

    def rename(self, head: Any, _blob: bytearray) -> Any:
        if (spot := self._spot(head)) and isinstance(spot[0], dict):
            spot[0][self._rng.choice(TEXTS)] = spot[0].pop(spot[1])
        return head

    def twice(self, head: Any, _blob: bytearray) -> Any:
        """Name a key twice in one map."""
        at = self._rng.choice(["head", "body"])
        if at == "body" and isinstance(head.get("body"), dict) and head["body"]:
            pairs = list(head["body"].items())
            head["body"] = Pairs([*pairs, self._rng.choice(pairs)])
            return head
        pairs = list(head.items())
        return Pairs([*pairs, self._rng.choice(pairs)]) if pairs else head

    def swap(self, head: Any, _blob: bytearray) -> Any:
        """Exchange two fields' values."""
        one, other = self._spot(head), self._spot(head)
        if one and other:
            value = copied(other[0][other[1]])
            other[0][other[1]] = copied(one[0][one[1]])
            one[0][one[1]] = value
        return head

    def other_kind(self, head: Any, _blob: bytearray) -> Any:
        from fedmq.schemas.messages import MESSAGE_TYPES

        head["kind"] = self._rng.choice(list(MESSAGE_TYPES))
        return head

    def entries(self, head: Any, _blob: bytearray) -> Any:
        """Make many tensors, or tensors of extreme shapes."""
        rng, found = self._rng, head.get("tensors")
        if not isinstance(found, list) or not found or not isinstance(found[0], dict):
            return head
        if rng.random() < 0.005:
            template = copied(found[0]) | {"shape": rng.choice([[], [0], [1] * 16])}
            head["tensors"] = [template | {"name": f"t{i}"} for i in range(rng.choice([1000, 4096, 4097]))]
            return head
        entry = rng.choice([one for one in found if isinstance(one, dict)])
        entry["shape"] = [rng.choice([0, 1, 2, 2**31, 2**62, 2**63, -1, True, 1.5]) for _ in range(rng.randrange(20))]
        return head

    def values(self, head: Any, blob: bytearray) -> Any:
        """Put values into the tensors that are legal and extreme, or not finite."""
        if len(blob) >= 8:
            at = self._rng.randrange(len(blob) // 4) * 4
            number = self._rng.choice([3.4e38, -3.4e38, 1e-45, 0.0, float("nan"), float("inf")])
            blob[at : at + 4] = struct.pack("<f", number)
        if self._rng.random() < 0.1:
            del blob[self._rng.randrange(len(blob) + 1) :]
        return head

    def manifest(self, head: Any, _blob: bytearray) -> Any:
        """Claim that the payload travels in chunks, with extreme numbers, or change such a claim."""
        body = head.get("body")
        if not isinstance(body, dict):
            return head
        number = [0, 1, 1024, 4096, 65_000, 65_001, 2**30, 2**32, 2**33, 2**33 + 1, 2**63, -1]
        size, chunk = self._rng.choice(number), self._rng.choice(number)
        count = -(-size // chunk) if chunk > 0 and self._rng.random() < 0.7 else self._rng.choice(number)
        body["chunks"] = {
            "payload_id": self._rng.choice(["one", "", "x" * 65]), "num_bytes": size, "chunk_bytes": chunk,
            "count": count, "digest": self._rng.choice(["0" * 64, "g" * 64, ""]),
        }  # fmt: skip
        if self._rng.random() < 0.8:
            head.pop("tensors", None)
        return head

    # Bytes

    def flip(self, body: bytearray) -> bytearray:
        for _ in range(self._rng.choice([1, 1, 1, 2, 8])):
            if body:
                body[self._rng.randrange(len(body))] ^= 1 << self._rng.randrange(8)
        return body

    def cut(self, body: bytearray) -> bytearray:
        return body[: self._rng.randrange(len(body) + 1)]

    def insert(self, body: bytearray) -> bytearray:
        at = self._rng.randrange(len(body) + 1)
        body[at:at] = self._rng.randbytes(self._rng.choice([1, 2, 9, 100]))
        return body

    def repeat(self, body: bytearray) -> bytearray:
        at = self._rng.randrange(len(body) + 1)
        piece = body[at : at + self._rng.choice([1, 4, 40, 400])]
        body[at:at] = piece * self._rng.choice([1, 2, 50])
        return body

    def drop(self, body: bytearray) -> bytearray:
        at = self._rng.randrange(len(body) + 1)
        del body[at : at + self._rng.choice([1, 2, 4, 40])]
        return body

    def overwrite(self, body: bytearray) -> bytearray:
        at = self._rng.randrange(len(body) + 1)
        width = self._rng.choice([1, 4, 16])
        body[at : at + width] = self._rng.choice([b"\0", b"\xff", b"\x91", b"\x80", b"\xc1", b"\xcb"]) * width
        return body

    def lie(self, body: bytearray) -> bytearray:
        """Announce a huge length."""
        at = self._rng.randrange(len(body) + 1)
        marker = self._rng.choice(MARKERS)
        body[at : at + self._rng.choice([0, len(marker)])] = marker
        return body


class Headers:
    """Makes the properties of messages as AMQP has them: bytes of a content header."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def properties(self, valid: Sequence[bytes]) -> bytes:
        """Return the pieces that pika encoded, changed. The header table is the second or third of them."""
        rng, whole = self._rng, bytearray(b"".join(valid))
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(whole) + 1)
            change = rng.randrange(6)
            if change == 0 and whole:
                whole[min(at, len(whole) - 1)] ^= 1 << rng.randrange(8)
            elif change == 1:
                del whole[at:]
            elif change == 2:
                whole[at:at] = rng.randbytes(rng.choice([1, 4, 200]))
            elif change == 3:
                whole[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
            elif change == 4:
                return self.table()
            else:
                del whole[at : at + rng.choice([1, 2, 8])]
        return bytes(whole)

    def table(self) -> bytes:
        """Return properties that have a hostile header table alone."""
        rng = self._rng
        kind = rng.randrange(7)
        entries = b""
        if kind == 0:
            levels, inside = rng.choice([5, 9, 500, 10_000]), rng.choice([b"F", b"F", b"A"])
            entries = b"".join(b"\x01a" + inside + struct.pack(">I", 7 * level) for level in reversed(range(levels)))
        elif kind == 1:
            entries = b"\x01aV" * rng.choice([10, 512, 513, 5000, 40_000])
        elif kind == 2:
            entries = b"".join(b"\x05%05dt\x01" % i for i in range(rng.choice([100, 512, 2000])))
        elif kind == 3:
            entries = b"\x04when" + rng.choice([b"T", b"d", b"D", b"f"]) + rng.randbytes(8)
        elif kind == 4:
            entries = b"\x05chunk" + rng.choice([b"t\x01", b"l" + b"\xff" * 8, b"V", b"S\0\0\0\x011"]) * 2
        elif kind == 5:
            entries = b"\x01\xff" + bytes([rng.randrange(256)]) + rng.randbytes(rng.randrange(40))
        else:
            entries = b"\x01aS" + struct.pack(">I", 100_000) + b"x" * 100_000
        return b"\x20\x00" + struct.pack(">I", len(entries)) + entries
