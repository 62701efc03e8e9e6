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
from fedmq.schemas.codecs import zstd
from fedmq.schemas.codecs.codec import Encoded, Part, Places
from fedmq.schemas.codecs.known import UplinkCodec, capabilities, codec_of
from fedmq.schemas.codecs.names import BUILT_IN
from fedmq.schemas.codecs.wire import GROUP, Wire
from fedmq.schemas.messages import HeldModel, Reply, Task, Update, Uplink
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES, spec_of
from tests.security.fuzzing.mutations import Sample, envelope
from tests.security.fuzzing.parts import Array, PartNoise, Parts


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
MOST_GOOD = 8
"""Good updates that the bad ones are made from: encoding takes more time than decoding."""
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
        self._parts = PartNoise(rng, f"{GROUP}:")
        self._parts.of_parts += [self.frame, self.frame, self.plain_beside]
        self._inside = PartNoise(rng, f"{GROUP}:")
        self._uplink = uplink
        self._wire = uplink.wire(update_spec(reply, spec_of(model)))
        self._marks: dict[str, str] = {}
        self._digests: list[str] = []
        self._good: list[Parts] = []
        self._number = 0
        self.names: list[str] = []
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
        if len(self._good) < MOST_GOOD:
            self._good.append(self._good_parts(seed))
        parts = {name: array.copy() for name, array in rng.choice(self._good).items()}
        words = {"codec": self._wire.codec.name}
        if self._uplink.order.remembers:
            words["next_memory"] = f"bad-{seed}"
        within = rng.random() < 0.6  # a good frame around bad parts
        if self._wire.compressed and within:
            self.names += [f"{name} inside" for name in self._inside.spoil(parts)]
        if self._wire.compressed:
            parts = self._framed(parts)
        if not (self._wire.compressed and within):
            self.names += self._parts.spoil(parts, (0, 1, 1, 1, 2))
        body = encode(update.model_copy(update=words), Parameters(parts))
        times = rng.choice([0, 0, 1, 2])
        if not times:
            return body
        sample = Sample.of(body)
        head = sample.head
        for _ in range(times):
            change_words = rng.choice(self._of_words)
            self.names.append(change_words.__name__)
            change_words(head)
        return envelope(head, sample.blob)

    def claims(self) -> dict[str, Any]:
        """Return what a hostile hello says about codecs, frozen parts and the hidden state that it has."""
        rng = self._rng
        digest = rng.choice(["0" * 64, "f" * 64, *self._digests])
        known = capabilities(Fragile())
        return {
            "codecs": rng.choice([known, known, known[1:], (), ("x" * 64,) * 64, known + known[::-1] * 6]),
            "frozen": rng.choice([None, (), (digest,), (digest,) * 64]),
            "model": rng.choice([None, HeldModel(version=rng.choice([0, 1, 2, 40, 2**53]), digest=digest)]),
        }

    def note(self, task: Task) -> None:
        """Note the digests in a task: a hostile participant has seen them."""
        found = (task.frozen, None if task.downlink is None else task.downlink.digest)
        self._digests = [*self._digests, *(one for one in found if one is not None)][-8:]

    def _good_parts(self, seed: int) -> Parts:
        """Return the good parts of an update, and the tensors beside them, without a frame around the parts."""
        values = np.random.default_rng(seed)
        size = self._rng.choice([0.0, 0.01, 0.01, 1.0])
        spec = self._wire.spec
        payload = Parameters({t.name: values.normal(0, size, t.shape).astype(DTYPES[t.dtype]) for t in spec})
        plain = Wire(self._wire.codec, False, self._wire.spec)
        return dict(plain.encode(payload, seed, None, {}).tensors)

    def _framed(self, parts: Parts) -> Parts:
        """Return the tensors of an update whose parts, good or bad, are in a frame that is as it should be."""
        inside = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for n, a in parts.items() if n.startswith(GROUP)]
        frame = zstd.compress(b"".join(a.data for a in inside))
        beside = {name: array for name, array in parts.items() if not name.startswith(GROUP)}
        return {f"{GROUP}:zstd": np.frombuffer(bytearray(frame), np.uint8), **beside}

    # Parts

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
        parts[name] = np.frombuffer(bytearray(made), np.uint8)

    def plain_beside(self, parts: Parts) -> None:
        """Send plain tensors of the model beside the coded ones, or in their place."""
        if self._rng.random() < 0.5:
            parts.clear()
        if self._rng.random() < 0.3:  # a frozen one, if the run has a frozen part
            parts["001/bias"] = np.full(4, self._rng.choice([0, 0, 1]), np.float32)
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
