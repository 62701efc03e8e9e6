"""Bad updates in a codec: what a hostile participant can do to the parts, to the zstd frame and to the update's words.

`CodedNoise` has the codec of one episode. It makes the honest participants' updates too, with their memory marks.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.schemas.codec import encode
from fedmq.schemas.codecs.codec import Encoded, Part, Places
from fedmq.schemas.codecs.known import UplinkCodec, codec_of
from fedmq.schemas.codecs.names import BUILT_IN
from fedmq.schemas.codecs.wire import GROUP
from fedmq.schemas.messages import Reply, Task, Update, Uplink
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES, spec_of
from tests.security.fuzzing.mutations import Sample, envelope

Array = npt.NDArray[Any]
Parts = dict[str, Array]


@dataclass(frozen=True)
class Fragile:
    """A codec of the user's own, which raises whatever Python has for a value that it does not like."""

    name = "fragile"

    def parts(self, places: Places) -> tuple[Part, ...]:
        return (Part("half", "float16", places.size, places.size),)

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:
        return Encoded({"half": values.astype(np.float16)})

    def decode(self, parts: Mapping[str, Array], places: Places) -> npt.NDArray[np.float32]:
        half = parts["half"]
        if not np.isfinite(half).all():
            raise [ZeroDivisionError, KeyError, MemoryError, RecursionError, AssertionError][half.size % 5]("\n\x1b[2J")
        return half.astype(np.float32) if half.max() < 1000 else np.zeros(places.size + 1, np.float32)


UPLINKS = (
    *(Uplink(codec=codec, lossless=zstd) for codec in BUILT_IN for zstd in ("none", "zstd")),  # type: ignore[arg-type]
    Uplink(codec="topk", fraction=0.3, values="int8", error_feedback=True),
    Uplink(codec="topk", fraction=0.3, values="bf16", error_feedback=True, lossless="zstd"),
    Uplink(codec="int4", rounding="nearest", error_feedback=True),
    Uplink(codec="topk", fraction=1.0),
    Uplink(codec="powersgd", rank=256, lossless="zstd"),
    Uplink(codec="fragile"),
    Uplink(codec="fragile", lossless="zstd"),
)
"""Orders of the episodes: each codec with and without zstd, with and without a memory."""
HUGE = (0, 1, 2**16, 2**31, 2**32 - 1, 2**62, 2**63 - 2, 2**64 - 1)


def uplink_of(number: int) -> UplinkCodec:
    """Return the codec of the episode with this number."""
    order = UPLINKS[number % len(UPLINKS)]
    codec = codec_of(order, Fragile())
    assert codec is not None
    return UplinkCodec(order, codec)


class CodedNoise:
    """Honest and bad updates in one codec. `names` has what was done to the last bad one, for a report."""

    def __init__(self, rng: random.Random, model: Parameters, uplink: UplinkCodec, reply: Reply) -> None:
        self._rng = rng
        self._uplink = uplink
        self._wire = uplink.wire(update_spec(reply, spec_of(model)))
        self._marks: dict[str, str] = {}
        self._number = 0
        self.names: list[str] = []
        self._of_parts: list[Callable[[Parts], None]] = [
            self.floats, self.floats, self.bits, self.lengths, self.dtypes, self.names_of_parts, self.gaps, self.gaps,
            self.frame, self.frame, self.shapes, self.plain_beside,
        ]  # fmt: skip
        self._of_words: list[Callable[[dict[str, Any]], None]] = [
            self.codec_word, self.payload_word, self.marks, self.entry, self.entry,
        ]  # fmt: skip

    def honest(self, update: Update, payload: Parameters) -> tuple[Update, Parameters]:
        """Return an honest participant's update of these tensors, in the codec and with its memory marks."""
        self._number += 1
        sent = self._wire.encode(payload, self._number, None, {})
        words: dict[str, Any] = {"codec": self._wire.codec.name}
        if self._uplink.order.remembers:
            mark = f"mark-{self._number}"
            words |= {"memory": self._marks.get(update.participant_id), "next_memory": mark}
            self._marks[update.participant_id] = mark
        return update.model_copy(update=words), sent.tensors

    def bad(self, update: Update) -> bytes:
        """Return a body that is wrong in its parts, its words, or both."""
        rng, self.names = self._rng, []
        seed = rng.randrange(2**32)
        values = np.random.default_rng(seed)
        payload = Parameters({t.name: values.normal(0, 0.01, t.shape).astype(DTYPES[t.dtype]) for t in self._wire.spec})
        parts: Parts = {
            name: array.copy() for name, array in self._wire.encode(payload, seed, None, {}).tensors.items()
        }
        words = {"codec": self._wire.codec.name}
        if self._uplink.order.remembers:
            words["next_memory"] = f"bad-{seed}"
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            change = rng.choice(self._of_parts)
            self.names.append(change.__name__)
            change(parts)
        sample = Sample.of(encode(update.model_copy(update=words), Parameters(parts)))
        head = sample.head
        for _ in range(rng.choice([0, 0, 1, 2])):
            change_words = rng.choice(self._of_words)
            self.names.append(change_words.__name__)
            change_words(head)
        return envelope(head, sample.blob)

    def task(self, task: Task) -> Task:
        """Return the task as the coordinator sends it to a participant that has the codec."""
        return task.model_copy(update={"uplink": self._uplink.order})

    # Parts

    def _some(self, parts: Parts, kind: str = "") -> str | None:
        return self._rng.choice(
            [name for name, a in parts.items() if a.size and a.dtype.kind in (kind or "fiuV")] or [None]
        )  # type: ignore[list-item]

    def floats(self, parts: Parts) -> None:
        """Put scales and values that are not finite, negative, tiny or far too large."""
        name = self._some(parts, "f")
        if name is not None:
            number = self._rng.choice([np.nan, np.inf, -np.inf, -1.0, 3.4e38, -3.4e38, 1e-45, 0.0, 1e30])
            with np.errstate(over="ignore"):
                flat = parts[name].reshape(-1)
                flat[slice(None) if self._rng.random() < 0.2 else self._rng.randrange(flat.size)] = number

    def bits(self, parts: Parts) -> None:
        if (name := self._some(parts)) is not None:
            raw = np.frombuffer(bytearray(parts[name].tobytes()), np.uint8)
            for _ in range(self._rng.choice([1, 2, 8, 100])):
                raw[self._rng.randrange(raw.size)] ^= 1 << self._rng.randrange(8)
            parts[name] = raw.view(parts[name].dtype).reshape(parts[name].shape)

    def lengths(self, parts: Parts) -> None:
        """Make a part longer or shorter, often by one element."""
        if (name := self._some(parts)) is not None:
            size = parts[name].size
            parts[name] = np.resize(parts[name], self._rng.choice([0, 1, size - 1, size + 1, 2 * size, size + 60_000]))

    def shapes(self, parts: Parts) -> None:
        if (name := self._some(parts)) is not None:
            parts[name] = parts[name].reshape(self._rng.choice([(-1, 1), (1, -1), (1, 1, -1)]))

    def dtypes(self, parts: Parts) -> None:
        """Say that the bytes have another dtype, of the same or another size."""
        if (name := self._some(parts)) is not None:
            raw = np.frombuffer(parts[name].tobytes(), np.uint8)
            dtype = DTYPES[self._rng.choice(sorted(DTYPES))]
            parts[name] = raw[: raw.size // dtype.itemsize * dtype.itemsize].copy().view(dtype)

    def names_of_parts(self, parts: Parts) -> None:
        """Drop, add, rename or reorder parts."""
        rng, names = self._rng, list(parts)
        change = rng.randrange(5)
        if change == 0 and names:
            del parts[rng.choice(names)]
        elif change == 1:
            parts[f"{GROUP}:{rng.choice(['q', 'scale', 'gap', 'value', 'p', 'zstd', '', 'x' * 500])}"] = np.zeros(
                rng.choice([0, 1, 3]), rng.choice([np.float32, np.uint8])
            )
        elif change == 2 and names:
            parts[f"{GROUP}:other"] = parts.pop(rng.choice(names))
        else:
            rng.shuffle(names)
            for name in names:
                parts[name] = parts.pop(name)

    def gaps(self, parts: Parts) -> None:
        """Put indices that do not rise, are far too large, or are no LEB128; else any bytes in a part of bytes."""
        name = f"{GROUP}:gap" if f"{GROUP}:gap" in parts else self._some(parts, "u")
        if name is None:
            return
        rng, size = self._rng, parts[name].size
        tail = rng.choice([b"\0", b"\x80", b"\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff\x01", b"\x80\0", b"\x7f"])
        made = bytearray(parts[name].tobytes())
        change = rng.randrange(4)
        if change == 0:
            made[-len(tail) :] = tail
        elif change == 1:
            made = bytearray((tail * (size + 1))[: max(size, 1)])
        elif change == 2:
            at = rng.randrange(size + 1)
            made[at : at + len(tail)] = tail
        else:
            made = bytearray(rng.randbytes(size))
        parts[name] = np.frombuffer(made, np.uint8)

    def frame(self, parts: Parts) -> None:
        """Put a zstd frame by hand: a bomb, a lie about its size or window, a dictionary, a tail, skippable frames."""
        rng = self._rng
        least, most = self._wire.bounds()
        size = rng.choice([*HUGE, least, most, most - 1, least + 1])
        name = f"{GROUP}:zstd"
        whole = parts[name].tobytes() if name in parts else b""
        made = rng.choice([
            zstd_frame(size, rng.choice([None, 0, 0x88, 0xF8, 0xFF]), rng.choice([0, 1, 40, 3000]), rng.choice([0, 7])),
            zstd_frame(None, 0x88, 100),
            whole + whole, whole[: rng.randrange(len(whole) + 1)], whole + b"\0",
            b"\x50\x2a\x4d\x18" + struct.pack("<I", size & 0xFFFFFFFF) + whole,
            b"\x50\x2a\x4d\x18" + struct.pack("<I", min(size, 40_000)) + bytes(min(size, 40_000)),
            rng.randbytes(200), b"", b"\x28\xb5\x2f\xfd",
        ])  # fmt: skip
        parts[name] = np.frombuffer(made, np.uint8)

    def plain_beside(self, parts: Parts) -> None:
        """Send plain tensors of the model beside the coded ones, or in their place."""
        if self._rng.random() < 0.5:
            parts.clear()
        for tensor in self._wire.spec[: self._rng.choice([1, 2])]:
            parts[tensor.name] = np.full(tensor.shape, self._rng.choice([0.01, np.nan]), DTYPES[tensor.dtype])

    # The update's words, in its header

    def codec_word(self, head: dict[str, Any]) -> None:
        named = [*BUILT_IN, "none", "zstd", "custom", "fragile", "", "x" * 65, None, 1, ["int8"], "__class__", "ïnt8"]
        head["body"]["codec"] = self._rng.choice(named)

    def payload_word(self, head: dict[str, Any]) -> None:
        head["body"]["payload"] = self._rng.choice(["none", "delta", "parameters", "change", "scaffold"])
        if self._rng.random() < 0.3:
            head.pop("tensors", None)

    def marks(self, head: dict[str, Any]) -> None:
        """Claim a memory: nobody's, an honest participant's, the same before and after, one that is no id."""
        stolen = self._rng.choice([*self._marks.values(), "mark-1"])
        for name in ("memory", "next_memory"):
            head["body"][name] = self._rng.choice([None, stolen, "m", "m", "x" * 65, 3, "\n"])

    def entry(self, head: dict[str, Any]) -> None:
        """Announce another dtype or size of a tensor than its bytes have."""
        found = head.get("tensors")
        if found:
            entry = self._rng.choice(found)
            if self._rng.random() < 0.5:
                entry["dtype"] = self._rng.choice([*DTYPES, "object", "", 1, "<f4"])
            else:
                entry["shape"] = [self._rng.choice([*HUGE, -1, 2, 3])] * self._rng.choice([0, 1, 1, 2, 33])


def zstd_frame(size: int | None, window: int | None, blocks: int, dictionary: int = 0) -> bytes:
    """Return a frame of blocks that repeat a zero 128 KiB long. `window` is the window's byte; without it the frame is
    a single segment. The frame says `size`, whatever it holds; None says nothing."""
    single = window is None and size is not None
    head = (0 if size is None else 3) << 6 | single << 5 | (3 if dictionary else 0)
    made = b"\x28\xb5\x2f\xfd" + bytes([head]) + (b"" if single else bytes([window or 0]))
    made += struct.pack("<I", dictionary) if dictionary else b""
    made += b"" if size is None else struct.pack("<Q", size & (2**64 - 1))
    repeated = (1 << 1 | 131_072 << 3).to_bytes(3, "little") + b"\0"
    return made + repeated * blocks + (1).to_bytes(3, "little")
