"""The codecs that every fedmq has, by their names, and the one that a federation's own file adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedmq.schemas.codecs import zstd
from fedmq.schemas.codecs.bf16 import Bf16
from fedmq.schemas.codecs.blocks import Int4, Int8
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.codecs.names import BUILT_IN, CUSTOM, DOWNLINK, REFERENCE
from fedmq.schemas.codecs.powersgd import PowerSgd
from fedmq.schemas.codecs.topk import TopK
from fedmq.schemas.codecs.wire import Wire, check_names
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import Uplink
from fedmq.schemas.tensors import ModelSpec

_BUILT_IN: Mapping[str, Callable[[Uplink], Codec]] = MappingProxyType(
    {
        "bf16": lambda uplink: Bf16(),  # noqa: ARG005
        "int8": lambda uplink: Int8(uplink.rounding),
        "int4": lambda uplink: Int4(uplink.rounding),
        "topk": lambda uplink: TopK(uplink.fraction, uplink.values),
        "powersgd": lambda uplink: PowerSgd(uplink.rank),
    }
)


_READS = (DOWNLINK, REFERENCE)
"""Forms of tasks that this fedmq reads, beside plain ones."""


def codec_of(uplink: Uplink, own: Codec | None = None) -> Codec | None:
    """Return the codec that a task asks for; None if this process does not have it.

    `own` is the codec of the federation's own file.
    """
    if uplink.codec in _BUILT_IN:
        return _BUILT_IN[uplink.codec](uplink)
    return own if own is not None and own.name == uplink.codec else None


@dataclass(frozen=True, slots=True)
class UplinkCodec:
    """The codec of a run: the order that its tasks carry, and the codec that decodes what comes back."""

    order: Uplink
    codec: Codec

    def wire(self, spec: ModelSpec) -> Wire:
        """Return the codec on the tensors of an update (`schemas.methods.update_spec`). Raises AppError if a name of
        the model's would be read as a part of a coded update."""
        check_names(spec)
        return Wire(self.codec, self.order.lossless == "zstd", spec)


def capabilities(own: Codec | None = None) -> tuple[str, ...]:
    """Return the names that a hello lists: codecs, "zstd" if its package is installed, DOWNLINK and REFERENCE."""
    return (*BUILT_IN, *([] if own is None else [own.name]), *(["zstd"] if zstd.installed() else []), *_READS)


def check_name(own: Codec) -> None:
    """Raise AppError if a codec of one's own has the name of something else."""
    if own.name in (*BUILT_IN, CUSTOM, "none", "zstd", *_READS):
        raise AppError(f"the codec {type(own).__name__} has the name {own.name!r}, which is fedmq's: give it another")
