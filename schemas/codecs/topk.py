"""topk: the k = ceil(f·d) largest values of the whole model and their indices (Stich et al. 2018, "Sparsified SGD with
Memory", section 1).

Of equally large values those with the lowest index are taken. The indices rise and travel as gaps in LEB128: the first
index, then the distance from each to the next. The values are float32, bfloat16, or int8 in blocks of 256.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fedmq.schemas.codecs import leb128
from fedmq.schemas.codecs.bf16 import Bf16
from fedmq.schemas.codecs.blocks import Int8
from fedmq.schemas.codecs.codec import Array, Codec, Encoded, Part, Places, Values, places_of
from fedmq.schemas.errors import MalformedMessage
from fedmq.schemas.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class TopK:
    """The codec of the module docstring. It is contractive, and needs error feedback to be of use."""

    fraction: float = 0.01
    values: Literal["float32", "bf16", "int8"] = "float32"
    name: ClassVar[str] = "topk"

    def kept(self, size: int) -> int:
        """Return k for a model of this size."""
        return min(size, math.ceil(self.fraction * size))

    def parts(self, places: Places) -> tuple[Part, ...]:
        kept = self.kept(places.size)
        own = (Part("value", "float32", kept, kept),)
        return (*(own if self.values == "float32" else self._inner.parts(_flat(kept))), self._gaps(places.size, kept))

    def encode(self, values: Array, places: Places, seed: int, warm: Mapping[str, Array]) -> Encoded:
        kept = self.kept(places.size)
        indices = largest(values, kept)
        chosen = values[indices]
        inside: dict[str, Array] = {"value": chosen.astype(np.float32, copy=False)}
        if self.values != "float32":
            inside = dict(self._inner.encode(chosen, _flat(kept), seed, warm).parts)
        return Encoded({**inside, "gap": leb128.pack(np.diff(indices, prepend=0))})

    def decode(self, parts: Mapping[str, Array], places: Places) -> Values:
        kept = self.kept(places.size)
        gaps = leb128.unpack(parts["gap"], kept)
        if (gaps[1:] == 0).any():
            raise MalformedMessage("two kept values have one index, expected indices that rise")
        indices = np.cumsum(gaps, out=gaps)
        if kept and indices[-1] >= places.size:
            raise MalformedMessage(f"a kept value has the index {indices[-1]}, the model has {places.size} elements")
        made = np.zeros(places.size, np.float32)
        inner = parts["value"] if self.values == "float32" else self._inner.decode(parts, _flat(kept))
        made[indices] = inner
        return made

    @property
    def _inner(self) -> Codec:
        return Bf16() if self.values == "bf16" else Int8("nearest")

    @staticmethod
    def _gaps(size: int, kept: int) -> Part:
        # The gaps add up to less than the size, so few of them can be long: n bytes need a gap of 2^(7(n-1)).
        longer = sum(min(kept, size >> 7 * more) for more in range(1, leb128.MOST_BYTES))
        # A distance has a byte for each seven bits, and distances are like exponential ones of the mean size / kept.
        more = sum(math.exp(-(1 << 7 * n) * kept / max(size, 1)) for n in range(1, leb128.MOST_BYTES))
        return Part("gap", "uint8", kept, kept + longer, usual=round(kept * (1 + more)))


def largest(values: Array, count: int) -> npt.NDArray[np.int64]:
    """Return the rising indices of the `count` values of the largest size, of equals those with the lowest index."""
    if count >= values.size:
        return np.arange(values.size)
    sizes = np.abs(values)
    border = np.partition(sizes, values.size - count)[values.size - count]
    chosen = sizes > border
    missing = count - int(np.count_nonzero(chosen))
    chosen[np.flatnonzero(sizes == border)[:missing]] = True
    return np.flatnonzero(chosen)


def _flat(size: int) -> Places:
    return places_of((TensorSpec("value", "float32", (size,)),))
