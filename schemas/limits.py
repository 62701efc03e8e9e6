"""Limits on what a peer may send, all checked before anything of that size is allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of one envelope. An envelope beyond them is refused with LimitExceeded."""

    max_body_bytes: int = 128 * 1024 * 1024
    """The whole message body. RabbitMQ 3.10 has the same default limit; RabbitMQ 4 has 16 MiB."""
    max_header_bytes: int = 1024 * 1024
    """The header map: message fields and tensor entries (about 60 bytes per tensor)."""
    max_tensors: int = 10_000
    """Tensors in one message. Keras's largest built-in models have about 3,000."""
    max_rank: int = 16
    """Dimensions of one tensor. numpy stops at 32 (64 since numpy 2); models need 6."""


DEFAULT_LIMITS = Limits()

CHUNK_BYTES = 4 * 1024 * 1024
"""Size of one piece of a payload that is too large for one message. Larger pieces are no faster, and cost more to send
again."""
MAX_PAYLOAD_BYTES = 4 * 1024**3
"""The largest payload that may travel in chunks: an envelope's blob ends there."""
