"""The method's memory of each participant, as tensors of the model (`protocol.RemembersParticipants`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.protocol import MEMORY, Arrays
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.parameters import Array

GIB = 2**30


def check_bytes_kept(strategy: str, tensors: Mapping[str, Array], participants: int, others: int, limit: int) -> None:
    """Raise ConfigError if models of all participants, and `others` models besides, have more bytes than the limit."""
    model_bytes = sum(x.nbytes for x in tensors.values())
    needed = (participants + others) * model_bytes
    if needed > limit:
        raise ConfigError(
            f"strategy {strategy} would keep {needed:,} bytes ({needed / GIB:.1f} GiB): {model_bytes:,} bytes for each "
            f"of {participants} participants, and {others} times as much besides. That is more than "
            f"memory_limit_bytes = {limit:,}: raise it if the machine has that much RAM, or take a strategy that keeps "
            "no models of participants (participation, fedstaleweight)"
        )


def memories_in(arrays: Arrays) -> dict[str, dict[str, Array]]:
    """Return participant -> tensor -> array, from the arrays that `restore` is given."""
    found: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        if name.startswith(MEMORY):
            participant_id, tensor = name[len(MEMORY) :].split("/", 1)
            found.setdefault(participant_id, {})[tensor] = array
    return found


def own_copy(x: Array, weight: float = 1.0) -> Array:
    """Return weight·x in x's dtype, as a copy: the message that x lies in is not kept alive."""
    if weight == 1.0:
        return np.array(x, order="C")
    wide = arithmetic.accumulator_dtype(x.dtype)
    return np.asarray(x.astype(wide) * wide.type(weight)).astype(x.dtype)
