"""Lossless compression of what a codec made, with Zstandard (RFC 8878)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from fedmq.schemas.errors import LimitExceeded, MalformedMessage
from fedmq.schemas.local.extras import check_installed, require

LEVEL = 1
"""Higher levels win under 1 % on quantised weights, and cost several times as much."""
_NEEDED_FOR = 'uplink.lossless = "zstd"'
MOST_WINDOW_BYTES = 8 * 1024**2
"""Largest window of a frame: RFC 8878 (3.1.1.1.2) recommends it. A frame that is cut off would be given a buffer of the
window's size. Level 1 has windows of at most 512 KiB."""


def installed() -> bool:
    """Return True if the package is there: a participant without it says so in its hello."""
    return find_spec("zstandard") is not None


def check() -> None:
    """Raise MissingExtra without the package."""
    check_installed("zstandard", _NEEDED_FOR)


def compress(data: bytes) -> bytes:
    """Return one frame, which tells the size of its content. Raises MissingExtra without the package."""
    return bytes(_zstandard().ZstdCompressor(level=LEVEL, write_content_size=True).compress(data))


def decompress(frame: memoryview, least: int, most: int) -> bytes:
    """Return the content of one frame. Its size is looked at before anything of that size is allocated.

    Raises LimitExceeded unless the frame says that it holds between `least` and `most` bytes, MalformedMessage if it
    does not hold what it says, and MissingExtra without the package.
    """
    zstandard = _zstandard()
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if not least <= size <= most:  # unknown is 2^64 - 1
            raise LimitExceeded(f"a zstd frame announces {size} bytes, expected {least} to {most}")
        content: bytes = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES).decompress(
            frame, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise MalformedMessage(f"the compressed tensors cannot be read: {str(error)[:200]}") from None
    return content


def _zstandard() -> Any:
    return require("zstandard", _NEEDED_FOR)
