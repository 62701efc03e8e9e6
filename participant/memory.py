"""A participant's memory of a run, between the room that makes it and the room that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Memory:
    """A participant's memory of a run."""

    mark: str
    """Name of this memory, new with every training (schemas.messages.Update)."""
    tensors: Mapping[str, npt.NDArray[Any]]
    """Tensors by name: a method's in float64, a codec's (participant.training.uplink) in float32."""
    soft: bool = False
    """True if the participant can go on without it (schemas.methods.MemoryKind)."""
