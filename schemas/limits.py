"""Limits on what a peer may send, all checked before anything of that size is allocated.

The limits follow from what a message can be at most, so no honest message meets them. `limits_for` gives those of a
model, and `PLAIN` those of a queue whose messages carry no tensors. The time to judge a message grows with its header:
with the default limits a body under 1 MiB costs less than 50 ms (`python -m tests.security.fuzz` measures it).
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_TENSORS = 4096
"""Tensors in one message by default. Keras's largest built-in models have about 3,000."""

FIELD_BYTES = 32 * 1024
"""The most that the fields of a hello, decline, receipt, notice or update take: 64 metrics with names of 64 characters,
or a text of 4,000, each character up to 4 bytes."""
TENSOR_BYTES = 256
"""Bytes of a tensor entry for which a header has room: a name of 150 letters, a shape of four dimensions. The header
of a message with longer names still has room if few of them are long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of one envelope. An envelope beyond them is refused with LimitExceeded."""

    max_body_bytes: int = 128 * 1024 * 1024
    """The whole message body. RabbitMQ 3.10 has the same default limit; RabbitMQ 4 has 16 MiB."""
    max_header_bytes: int = 1024 * 1024
    """The header map: message fields and tensor entries (about 60 bytes per tensor)."""
    max_tensors: int = MAX_TENSORS
    """Tensors in one message."""
    max_rank: int = 16
    """Dimensions of one tensor. numpy stops at 32 (64 since numpy 2); models need 6."""

    @property
    def max_containers(self) -> int:
        """Maps and arrays in the header: two for each tensor, and some for the fields. An honest message has a dozen
        for its fields."""
        return 2 * self.max_tensors + 64


DEFAULT_LIMITS = Limits()
PLAIN = Limits(max_body_bytes=FIELD_BYTES + 256, max_header_bytes=FIELD_BYTES, max_tensors=0)
"""Limits of a message without tensors: a hello or a decline."""


def header_bytes(max_tensors: int) -> int:
    """Return the room for a header of so many tensors. It is never below that of DEFAULT_LIMITS."""
    return max(DEFAULT_LIMITS.max_header_bytes, FIELD_BYTES + TENSOR_BYTES * max_tensors)


def limits_for(max_body_bytes: int, num_tensors: int, entry_bytes: int, max_tensors: int = MAX_TENSORS) -> Limits:
    """Return the limits of a message with the tensors of a model: `num_tensors` of them, whose entries take
    `entry_bytes` in a header.

    There is room for twice as many and some more, so that a participant with another model is told which tensors
    differ.
    """
    room = min(2 * num_tensors + 64, max(max_tensors, num_tensors))
    return Limits(max_body_bytes, FIELD_BYTES + max(TENSOR_BYTES * room, 2 * entry_bytes), room)


def update_bytes(payload_bytes: int, num_tensors: int, entry_bytes: int, max_tensors: int = MAX_TENSORS) -> int:
    """Return the most bytes of an update that are worth a look, if its tensors have `payload_bytes`: an update of a
    model twice as large is still told which tensors differ."""
    header = limits_for(0, num_tensors, entry_bytes, max_tensors).max_header_bytes
    return 2 * payload_bytes + header + OTHER_MODEL_BYTES


OTHER_MODEL_BYTES = 256 * 1024
"""Room for the tensors of another small model: a full window of such messages stays near the memory budget."""

CHUNK_BYTES = 4 * 1024 * 1024
"""Size of one piece of a payload that is too large for one message. Larger pieces are no faster, and cost more to send
again."""
MAX_PAYLOAD_BYTES = 4 * 1024**3
"""The largest payload that may travel in chunks: an envelope's blob ends there."""
