"""Parameters in one file, between the coordinator's process and the worker that loads the app."""

from __future__ import annotations

from pathlib import Path

from fedmq.coordinator.state import checkpoint
from fedmq.schemas.errors import CheckpointError, shown
from fedmq.schemas.parameters import Parameters


def write_parameters(path: Path, parameters: Parameters) -> None:
    """Write the tensors and their non-trainable flags to one file."""
    checkpoint.write(path, parameters, {"non_trainable": sorted(parameters.non_trainable)})


def read_parameters(path: Path, *, most_bytes: int | None = None, named_by_user: bool = False) -> Parameters:
    """Read a file of `write_parameters`, or a run's final model. Raises CheckpointError, as `checkpoint.read` does."""
    found = checkpoint.read(path, most_bytes=most_bytes, named_by_user=named_by_user)
    fixed = found.meta.get("non_trainable", [])
    if not isinstance(fixed, list) or not all(isinstance(name, str) for name in fixed):
        raise CheckpointError(f"checkpoint {path} says of no tensor that it is not trainable: {shown(fixed)}")
    return Parameters(found.arrays, set(fixed))
