"""The codec that a federation file's [uplink] table asks for.

    [uplink]
    codec = "custom"
    file = "codec.py"               # has build_codec(**options), which returns a fedmq.Codec
    options = { bits = 2 }

Participants read the same file: one that cannot load the codec, or lacks zstd, says so and sends plain tensors.
"""

from __future__ import annotations

from fedmq.coordinator.own_file import call
from fedmq.coordinator.settings import UplinkSettings
from fedmq.schemas.codecs import zstd
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.codecs.known import UplinkCodec, check_name, codec_of
from fedmq.schemas.errors import AppError, FedmqError
from fedmq.schemas.messages import Reply, is_identifier

NEEDED = ("name", "parts", "encode", "decode")


def own_codec(settings: UplinkSettings) -> Codec | None:
    """Return the codec of the user's own; None if the file asks for another one. Raises AppError."""
    if settings.file is None:
        return None
    codec = call(settings.file, settings.options, "codec", "uplink")
    missing = [name for name in NEEDED if not hasattr(codec, name)]
    if missing:
        raise AppError(
            f"build_codec in {settings.file} gave {type(codec).__name__}, which lacks {', '.join(missing)}: write all "
            "of fedmq.Codec"
        )
    if not is_identifier(codec.name):
        raise AppError(f"the codec {type(codec).__name__} has the name {codec.name!r}, expected letters, digits, . _ -")
    check_name(codec)
    return codec  # type: ignore[no-any-return]


def codec_here(settings: UplinkSettings) -> tuple[Codec | None, FedmqError | None]:
    """Return a participant's codec of the user's own, if any, and why it cannot send updates as the table asks; None if
    it can."""
    own: Codec | None = None
    try:
        own = own_codec(settings)
        _check_lossless(settings)
    except FedmqError as error:
        return own, error
    return own, None


def _check_lossless(settings: UplinkSettings) -> None:
    if settings.lossless == "zstd":
        zstd.check()


def uplink_codec(settings: UplinkSettings, reply: Reply) -> UplinkCodec | None:
    """Return the codec of a run whose updates carry `reply`; None for plain ones. Raises AppError, and MissingExtra
    without zstd."""
    _check_lossless(settings)
    own = own_codec(settings)
    order = settings.order(reply, None if own is None else own.name)
    if order is None:
        return None
    codec = codec_of(order, own)
    assert codec is not None, "the table's codecs are all known"
    return UplinkCodec(order, codec)
