"""An update's tensors in coded form, as they travel: the part of every codec's work that is the same.

    coded:<part>     one flat tensor for each part of the codec's, in its order
    coded:zstd       in place of them, with lossless compression: their bytes one after the other, as one zstd frame
    <tensor>         each tensor that is not coded, as it is

Nothing is allocated that the model does not justify: the names, dtypes and lengths of all parts are compared with what
the codec makes of this model first. The decoded tensors have the model's dtypes and lie in one block where they can, so
that nobody behind the decoding knows that there was a codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedmq.schemas.codecs import zstd
from fedmq.schemas.codecs.checked import check_parts, decoded, encoded, parts_of
from fedmq.schemas.codecs.codec import Array, Codec, Part, Places, Values, places_of
from fedmq.schemas.errors import AppError, MalformedMessage, SpecMismatch, shown
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES, ModelSpec, TensorSpec, layout_of_spec, packed_bytes

GROUP = "coded"
_ZSTD = f"{GROUP}:zstd"
_FRAME_BYTES = 1024
"""More than a frame has beside its content, which zstd never makes longer by more than one byte in 256."""


@dataclass(frozen=True)
class Wire:
    """A codec with its lossless compression, on the tensors of one model."""

    codec: Codec
    compressed: bool
    """True if the parts travel as one zstd frame."""
    spec: ModelSpec
    """The decoded update (`schemas.methods.update_spec`)."""

    @property
    def places(self) -> Places:
        return places_of(self.spec)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Parts that an encoding of these tensors has. Raises AppError if they cannot travel."""
        return parts_of(self.codec, self.places)

    def bounds(self) -> tuple[int, int]:
        """Return the fewest and the most bytes that the tensors of an update take in a message.

        A plain one is always welcome. It may even be shorter: topk with a large fraction makes more than it is given.
        """
        places = self.places
        parts = self.parts
        plain = [TensorSpec(t.name, t.dtype, t.shape) for t in places.plain]
        most = [TensorSpec(f"{GROUP}:{p.name}", p.dtype, (p.most,)) for p in parts]
        least = [TensorSpec(f"{GROUP}:{p.name}", p.dtype, (p.least,)) for p in parts]
        if self.compressed:
            size = sum(t.num_bytes for t in most)
            most = [TensorSpec(_ZSTD, "uint8", (size + size // 256 + _FRAME_BYTES,))]
            least = [TensorSpec(_ZSTD, "uint8", (0,))]
        whole = packed_bytes(tuple(TensorSpec(t.name, t.dtype, t.shape) for t in self.spec))
        return min(whole, packed_bytes((*least, *plain))), max(whole, packed_bytes((*most, *plain)))

    @cached_property
    def usual_bytes(self) -> int:
        """Bytes that the tensors of a coded update usually take in a message, before lossless compression."""
        places = self.places
        parts = [TensorSpec(p.name, p.dtype, (p.most if p.usual is None else p.usual,)) for p in self.parts]
        return packed_bytes((*parts, *places.plain))

    def encode(self, tensors: Parameters, seed: int, residual: Array | None, warm: Mapping[str, Array]) -> Sent:
        """Encode an update's tensors, which are finite, with what earlier updates left (None: 0).

        Raises AppError if a codec of the user's own makes something else than it says, and TrainerError if it fails.
        """
        places = self.places
        values = flat(tensors, places)
        if residual is not None:
            values = values + residual
        made = encoded(self.codec, values, places, seed, warm)
        parts = made.parts
        coded = _compressed(parts) if self.compressed else {f"{GROUP}:{n}": a for n, a in parts.items()}
        plain = {t.name: tensors[t.name] for t in places.plain}
        non_trainable = tensors.non_trainable & plain.keys()
        return Sent(self, Parameters({**coded, **plain}, non_trainable), values, parts, plain, made.warm)

    def decode(self, coded: Parameters) -> Parameters:
        """Return the update's tensors. Raises a PeerError, and nothing else, whatever the tensors are."""
        places = self.places
        parts, rest = self._parts(coded)
        plain = {t.name: rest.pop(t.name, None) for t in places.plain}
        if rest:
            raise SpecMismatch(f"an update in {self.codec.name} has the tensor {shown(next(iter(rest)))} too many")
        for tensor in places.plain:
            array = plain[tensor.name]
            if array is None or (array.dtype, array.shape) != (DTYPES[tensor.dtype], tensor.shape):
                raise SpecMismatch(f"an update in {self.codec.name} must have the tensor {tensor} as it is")
        check_parts(self.parts, parts)
        values = decoded(self.codec, parts, places)
        return self.tensors(values, plain)

    def _parts(self, coded: Parameters) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the codec's parts, not checked yet, and the other tensors."""
        parts = {n.removeprefix(f"{GROUP}:"): a for n, a in coded.items() if n.startswith(f"{GROUP}:")}
        rest = {n: a for n, a in coded.items() if not n.startswith(f"{GROUP}:")}
        if not self.compressed:
            return parts, rest
        frame = parts.get("zstd")
        if list(parts) != ["zstd"] or frame is None or frame.dtype != np.uint8 or frame.ndim != 1:
            raise SpecMismatch(f"an update in {self.codec.name} with zstd must have the tensor {_ZSTD}, uint8 and flat")
        return _decompressed(frame, self.parts), rest

    def tensors(self, values: Values, plain: Mapping[str, Any]) -> Parameters:
        """Return the tensors of a flat array beside the plain ones, in the model's order and dtypes."""
        places, flags = self.places, frozenset(t.name for t in self.spec if not t.trainable)
        layout = layout_of_spec(self.spec) if not places.plain else None
        if layout is not None and layout.dtype == np.float32:
            return Parameters.in_block(layout, values, flags)
        found = dict(plain)
        with np.errstate(over="ignore"):  # beyond float16: the check of finiteness says so
            for tensor, (part, shape) in zip(places.coded, places.slices, strict=True):
                found[tensor.name] = values[part].reshape(shape).astype(DTYPES[tensor.dtype], copy=False)
        return Parameters({t.name: found[t.name] for t in self.spec}, flags)


@dataclass(frozen=True)
class Sent:
    """The result of an encoding."""

    _wire: Wire
    tensors: Parameters
    """Tensors of the message."""
    _values: Array
    _parts: Mapping[str, Array]
    _plain: Mapping[str, Array]
    warm: Mapping[str, Array]
    """Arrays of the codec's own that the next encoding starts from, once this one is accepted."""

    @cached_property
    def _decoded(self) -> Values:
        return decoded(self._wire.codec, self._parts, self._wire.places)

    @property
    def received(self) -> Parameters:
        """The update as its receiver decodes it."""
        return self._wire.tensors(self._decoded, self._plain)

    @property
    def residual(self) -> Array:
        """The values less those that were sent. The next update carries them, once this one is accepted."""
        return self._values - self._decoded


def flat(tensors: Parameters, places: Places) -> Array:
    """Return the coded tensors as one flat array, float64 if one of them is, else float32.

    It is a view if they lie in one block, else a copy.
    """
    wide = any(tensor.dtype == "float64" for tensor in places.coded)
    dtype = np.float64 if wide else np.float32
    if not places.plain and tensors.block is not None and tensors.block.dtype == dtype:
        return tensors.block
    values = np.empty(places.size, dtype)
    for tensor, (part, shape) in zip(places.coded, places.slices, strict=True):
        np.copyto(values[part].reshape(shape), tensors[tensor.name], casting="unsafe")
    return values


def check_names(spec: ModelSpec) -> None:
    """Raise AppError if a tensor of the model would be read as a part of a coded update."""
    for tensor in spec:
        if tensor.name.startswith(f"{GROUP}:"):
            raise AppError(
                f"the model's tensor {shown(tensor.name)} begins as a coded update does: give it another name"
            )


def _compressed(parts: Mapping[str, Array]) -> dict[str, Array]:
    data = b"".join(a.view(np.uint8).data for a in parts.values())
    return {_ZSTD: np.frombuffer(zstd.compress(data), np.uint8)}


def _decompressed(frame: Array, expected: tuple[Part, ...]) -> dict[str, Array]:
    """Return the parts in a frame: all but the last one have their only length."""
    sizes = [part.most * DTYPES[part.dtype].itemsize for part in expected]
    fewest = [part.least * DTYPES[part.dtype].itemsize for part in expected]
    data = memoryview(zstd.decompress(np.ascontiguousarray(frame).data, sum(fewest), sum(sizes)))
    found, end = {}, 0
    for part, size in zip(expected, sizes, strict=True):
        start, end = end, min(end + size, len(data))
        if (end - start) % DTYPES[part.dtype].itemsize:
            raise MalformedMessage(f"part {part.name} has {end - start} bytes, which are no whole {part.dtype}")
        found[part.name] = np.frombuffer(data[start:end], DTYPES[part.dtype])
    return found
