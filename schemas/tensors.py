"""Tensors as bytes: the dtypes that travel, their places in the blob, and the checks of a model's tensors.

The blob holds every tensor's elements in C order, little-endian, in the order of the header's entries. Each tensor
starts at the next multiple of 16. The gaps are zero bytes. The blob ends with the last tensor's last byte. Offsets are
not sent: they follow from the entries, so they cannot overlap or point outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast, get_args

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fedmq.schemas.errors import AppError, LimitExceeded, MalformedMessage, NotFinite, Overflow, SpecMismatch, shown
from fedmq.schemas.layout import Layout, layout
from fedmq.schemas.limits import Limits
from fedmq.schemas.parameters import Array, Parameters, is_floating

DtypeName = Literal[
    "float16", "float32", "float64", "bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
]  # fmt: skip

TENSOR_ALIGNMENT_BYTES = 16
MOST_MAGNITUDE = 1e15
"""Largest size of an element of an update. Its square, times any weight that counts, is still a float32."""
_CHUNK_ELEMENTS = 65_536
"""Elements that a check looks at in one go if it needs scratch memory: 256 KiB of float32, inside any L2 cache."""
_SMALL_ELEMENTS = 1024
"""Elements up to which a tensor is checked in the way that has the least overhead."""


def _little_endian(name: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    # The dtype's letters give numpy's own object if the machine is little-endian.
    return dtype if name == "bfloat16" else np.dtype(str(dtype.newbyteorder("<").str))


DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType({name: _little_endian(name) for name in get_args(DtypeName)})
"""Every dtype that may travel, little-endian, by its name in an envelope."""

_NAMES: Mapping[np.dtype[Any], str] = {
    order: name for name, dtype in DTYPES.items() for order in (dtype, dtype.newbyteorder(">"))
}
"""Names by dtype, in both byte orders. (numpy computes `dtype.name` in Python each time: 2 µs, twice per tensor.)"""


_MOST_NAME_CHARS = 512
"""Characters of a tensor's name."""


class TensorEntry(BaseModel):
    """One tensor in an envelope's header."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=_MOST_NAME_CHARS)]
    dtype: DtypeName
    shape: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    """Dimensions: none for a scalar; a 0 anywhere makes a tensor without elements."""
    trainable: bool
    """False for a tensor that no optimiser may step, such as BatchNorm's moving mean."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    trainable: bool = True

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor, exact for any shape: Python integers do not overflow."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{shown(self.name)} {self.dtype}{list(self.shape)}"


ModelSpec = tuple[TensorSpec, ...]


def spec_of(parameters: Parameters) -> ModelSpec:
    """Return names, dtypes, shapes and trainable flags, in the model's order.

    Raises AppError for a tensor that no envelope can carry: the model has to change.
    """
    return tuple(
        TensorSpec(name, _dtype_name(name, array), array.shape, name not in parameters.non_trainable)
        for name, array in parameters.items()
    )


def averaged_spec(spec: ModelSpec) -> ModelSpec:
    """Return the part of a model's spec that an update carries: its floating-point tensors (`Parameters.averaged`)."""
    return tuple(s for s in spec if is_floating(DTYPES[s.dtype]))


def layout_of_spec(spec: ModelSpec) -> Layout | None:
    """Return the layout of tensors of one floating-point dtype; None if they have several dtypes or another one."""
    dtypes = {s.dtype for s in spec}
    if len(dtypes) != 1 or not is_floating(DTYPES[spec[0].dtype]):
        return None
    return layout(DTYPES[spec[0].dtype], tuple((s.name, s.shape) for s in spec))


def check_spec(parameters: Parameters, expected: ModelSpec) -> None:
    """Raise SpecMismatch, naming the first differences, unless names, order, dtypes and shapes are the expected ones.

    Trainable flags are not compared: the coordinator uses its own, and a participant may freeze a layer.
    """
    got = spec_of(parameters)
    if [(s.name, s.dtype, s.shape) for s in got] == [(s.name, s.dtype, s.shape) for s in expected]:
        return
    differences = list(_differences({s.name: s for s in got}, {s.name: s for s in expected}))
    if not differences:
        differences = [
            f"tensor {i} is {shown(g.name)} where {shown(e.name)} was expected: the same tensors in another order"
            for i, (g, e) in enumerate(zip(got, expected, strict=True))
            if g.name != e.name
        ]
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise SpecMismatch(
        f"the tensors differ from the model's: {'; '.join(differences[:3])}{more}. "
        "Coordinator and participants must build the same model"
    )


def check_finite(parameters: Parameters) -> None:
    """Raise NotFinite, naming the first tensor that holds a NaN or an infinity. One pass, no temporary copy."""
    # Sums of large finite values may overflow, and infinities subtract to NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        if parameters.block is not None and _all_finite(parameters.block):
            return
        bad = next(((name, a) for name, a in parameters.items() if is_floating(a.dtype) and not _all_finite(a)), None)
    if bad is not None:
        name, array = bad
        raise NotFinite(
            f"tensor {shown(name)}: {_count_not_finite(array)} of its {array.size} values are NaN or infinite. "
            "The training diverged; a lower learning rate usually helps"
        )


def check_magnitudes(parameters: Parameters, most: float = MOST_MAGNITUDE) -> None:
    """Raise NotFinite as `check_finite` does, and Overflow for a finite value beyond ±`most`. One pass for most models.

    Honest training has no such values, and sums of them would leave the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if parameters.block is not None and _square_length(parameters.block) <= most * most:
            return
        large = [
            (name, a) for name, a in parameters.items() if is_floating(a.dtype) and not _square_length(a) <= most * most
        ]
    check_finite(Parameters(dict(large)))
    for name, array in large:
        largest = _largest(array)
        if largest > most:
            raise Overflow(
                f"tensor {shown(name)} has a value of size {largest:.3g}, the limit is {most:g}. "
                "The training diverged; a lower learning rate usually helps"
            )


def all_finite(arrays: Mapping[str, Array]) -> bool:
    """Return True if no floating-point array holds a NaN or an infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(_all_finite(array) for array in arrays.values() if is_floating(array.dtype))


def pack(parameters: Parameters) -> list[memoryview | bytes]:
    """Return the blob in pieces, ready to be joined. Contiguous little-endian tensors are not copied here."""
    pieces: list[memoryview | bytes] = []
    end = 0
    for name, array in parameters.items():
        gap = -end % TENSOR_ALIGNMENT_BYTES
        if gap:
            pieces.append(bytes(gap))
        plain = np.asarray(array, dtype=DTYPES[_dtype_name(name, array)], order="C")
        # As bytes, because bfloat16 has no letter in the buffer protocol.
        pieces.append(plain.reshape(-1).view(np.uint8).data)
        end += gap + plain.nbytes
    return pieces


def packed_bytes(spec: ModelSpec) -> int:
    """Return the length of these tensors' blob in bytes."""
    end = 0
    for tensor in spec:
        end += -end % TENSOR_ALIGNMENT_BYTES + tensor.num_bytes
    return end


def read_entries(entries: Sequence[Any], limits: Limits) -> ModelSpec:
    """Return header entries as specs. Raises LimitExceeded, MalformedMessage, or pydantic's ValidationError."""
    if len(entries) > limits.max_tensors:
        raise LimitExceeded(f"{len(entries)} tensors in one message, the limit is {limits.max_tensors}")
    specs = []
    names = set()
    for entry in entries:
        valid = _plain_entry(entry) or TensorEntry.model_validate(entry)
        if len(valid.shape) > limits.max_rank:
            raise LimitExceeded(
                f"tensor {shown(valid.name)} has {len(valid.shape)} dimensions, the limit is {limits.max_rank}"
            )
        if valid.name in names:
            raise MalformedMessage(f"two tensors are named {shown(valid.name)}; names must be unique")
        names.add(valid.name)
        if isinstance(valid, TensorEntry):
            valid = TensorSpec(valid.name, valid.dtype, valid.shape, valid.trainable)
        specs.append(valid)
    return tuple(specs)


def _plain_entry(entry: Any) -> TensorSpec | None:
    """Return an entry in which everything is as TensorEntry wants it; None if TensorEntry has to judge. It is three
    times as fast, and nearly every entry is of this kind."""
    if type(entry) is not dict or entry.keys() != _ENTRY_KEYS:
        return None
    name, dtype, shape, trainable = entry["name"], entry["dtype"], entry["shape"], entry["trainable"]
    if type(name) is not str or not 0 < len(name) <= _MOST_NAME_CHARS or type(dtype) is not str or dtype not in DTYPES:
        return None
    if type(shape) is not tuple or type(trainable) is not bool:
        return None
    for dimension in shape:
        if type(dimension) is not int or not 0 <= dimension < 2**63:
            return None
    return TensorSpec(name, dtype, shape, trainable)


_ENTRY_KEYS = frozenset(TensorEntry.model_fields)


def unpack(blob: memoryview, spec: ModelSpec) -> Parameters:
    """Return read-only views into `blob`, one per entry. Raises MalformedMessage unless the lengths agree exactly."""
    offsets = []
    end, has_bytes, most = 0, blob.nbytes, max(blob.nbytes, _MAX_EMPTY_EXTENT_BYTES)
    for tensor in spec:
        start = end + -end % TENSOR_ALIGNMENT_BYTES
        num_bytes = tensor.num_bytes
        end = start + num_bytes
        # numpy multiplies the dimensions that are not 0, even if another one is 0.
        extent = num_bytes or math.prod(d for d in tensor.shape if d) * DTYPES[tensor.dtype].itemsize
        if end > has_bytes or extent > most:
            raise MalformedMessage(f"tensor {tensor} needs more bytes than there are: {blob.nbytes} in the tensor blob")
        offsets.append(start if num_bytes else 0)
    if end != blob.nbytes:
        raise MalformedMessage(f"the tensor blob has {blob.nbytes} bytes, the tensor entries describe {end}")
    flat = _without_gaps(spec)
    if flat is not None:
        block: Array = np.ndarray((flat.size,), flat.dtype, buffer=blob)
        return Parameters.in_block(flat, block, frozenset(t.name for t in spec if not t.trainable))
    tensors = {
        t.name: np.ndarray(t.shape, DTYPES[t.dtype], buffer=blob, offset=offset)
        for t, offset in zip(spec, offsets, strict=True)
    }
    for name, array in tensors.items():
        if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            raise MalformedMessage(f"tensor {shown(name)} is bool and holds bytes other than 0 and 1")
    return Parameters(tensors, frozenset(t.name for t in spec if not t.trainable))


_MOST_IN_BLOCK = 1000
"""Most tensors of an envelope whose layout is cached: a peer must not be able to fill the RAM."""


@lru_cache(maxsize=16)
def _without_gaps(spec: ModelSpec) -> Layout | None:
    """Return the blob's layout if there is no gap between its tensors, else None."""
    if not 0 < len(spec) <= _MOST_IN_BLOCK or any(
        t.num_bytes == 0 or t.num_bytes % TENSOR_ALIGNMENT_BYTES for t in spec[:-1]
    ):
        return None
    return layout_of_spec(spec)


_MAX_EMPTY_EXTENT_BYTES = 2**31
"""Largest product of the non-zero dimensions of a tensor without elements. It keeps numpy's sizes from overflowing."""


def _dtype_name(name: str, array: Array) -> str:
    found = _NAMES.get(array.dtype)
    if found is None:
        raise AppError(
            f"tensor {shown(name)} has dtype {array.dtype}, which fedmq does not carry; use one of {', '.join(DTYPES)}"
        )
    return found


def _differences(got: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> Iterable[str]:
    for name, want in expected.items():
        have = got.get(name)
        if have is None:
            yield f"{want} is missing"
        elif (have.dtype, have.shape) != (want.dtype, want.shape):
            yield f"{have} was expected as {want.dtype}{list(want.shape)}"
    for name, have in got.items():
        if name not in expected:
            yield f"{have} is not in the model"


def _all_finite(array: Array) -> bool:
    """Tell if all values are finite. The caller silences numpy's complaints about sums."""
    if array.size <= _SMALL_ELEMENTS:  # many small tensors in one message must not cost more than its bytes pay for
        return bool(np.isfinite(array).all())
    # The opposite does not hold: the squares of large finite values can overflow. Then the exact look decides.
    return math.isfinite(_square_length(array)) or _count_not_finite(array, stop_at_first=True) == 0


def _square_length(array: Array) -> float:
    """Return the sum of the squares: infinity or NaN if an element is not finite, and perhaps if one is very large.

    BLAS does it in a third of the time of a plain sum. It is infinity if that would take a copy, as for 16-bit floats.
    The caller silences numpy's complaints.
    """
    in_one_piece = array.flags.c_contiguous or array.flags.f_contiguous
    if array.dtype.itemsize <= 2 or not in_one_piece or not array.dtype.isnative:
        return math.inf
    flat = array.ravel(order="K")
    return float(np.dot(flat, flat))


def _largest(array: Array) -> float:
    """Return the largest size of an element of a finite array; no copy is made."""
    if not array.size or array.dtype == np.float16:
        return 0.0  # a float16 is never too large
    if array.dtype.itemsize > 2:
        return max(abs(float(array.max())), abs(float(array.min())))
    bits = np.ascontiguousarray(array).view(np.uint16)  # numpy compares this dtype one by one: compare its bits
    highest = np.uint16(max(int(bits.view(np.int16).max()), int(bits.max()) & 0x7FFF))
    return float(np.asarray(highest).view(array.dtype.newbyteorder("=")))


def _count_not_finite(array: Array, stop_at_first: bool = False) -> int:
    count = 0
    native = array.dtype.newbyteorder("=")
    chunks = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=["readonly"],
        op_dtypes=[native],
        buffersize=_CHUNK_ELEMENTS,
    )
    for chunk in chunks:
        values = cast(Array, chunk)
        if native.itemsize == 2 and not _has_full_exponent(values):
            continue
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            count += values.size - int(np.count_nonzero(np.isfinite(values)))
        if count and stop_at_first:
            break
    return count


def _has_full_exponent(values: Array) -> bool:
    """True if any of these 16-bit floats has all exponent bits set, as only NaN and infinity do.

    It compares the bits, because numpy computes these dtypes one by one, many times slower. Read as signed integers,
    the positive values of that kind are the largest; read as unsigned integers, the negative ones are.
    """
    exponent = 0x7F80 if values.dtype.name == "bfloat16" else 0x7C00
    bits = np.ascontiguousarray(values)
    return bool(
        bits.size and (bits.view(np.int16).max() >= exponent or bits.view(np.uint16).max() >= exponent + 0x8000)
    )
