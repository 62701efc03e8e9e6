"""The model and the strategy's state as the named arrays of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.records import Snapshot
from coordinator.strategies.base import State, Strategy
from schemas.parameters import Array, Parameters

PARAMETERS, STRATEGY = "parameters/", "strategy/"


def to_arrays(parameters: Parameters, state: State) -> dict[str, Array]:
    """Live arrays: write, copy or compare them before the next step."""
    return {f"{PARAMETERS}{name}": a for name, a in parameters.items()} | {
        f"{STRATEGY}{name}": a for name, a in state.arrays().items()
    }


def from_snapshot(strategy: Strategy[Any], snapshot: Snapshot) -> tuple[Parameters, Any]:
    """The parameters and the strategy's state; what it remembers of participants is among the arrays."""
    scalars: Mapping[str, Any] = snapshot.scalars
    tensors = {name: snapshot.arrays[PARAMETERS + name] for name in scalars["tensors"]}
    parameters = Parameters(tensors, frozenset(scalars["non_trainable"]))
    arrays = {name.removeprefix(STRATEGY): a for name, a in snapshot.arrays.items() if name.startswith(STRATEGY)}
    return parameters, strategy.restore(arrays, scalars["strategy"], parameters)
