"""What one run in virtual time leaves behind, as columns."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.schemas.parameters import Parameters


@dataclass(slots=True)
class Updates:
    """One row for each accepted update, in the order in which they were counted."""

    time_s: array[float] = field(default_factory=lambda: array("d"))
    participant: array[int] = field(default_factory=lambda: array("l"))
    base_version: array[int] = field(default_factory=lambda: array("l"))
    staleness: array[int] = field(default_factory=lambda: array("l"))
    weight: array[float] = field(default_factory=lambda: array("d"))
    """Its aggregation coefficient (`Strategy.weights`); rows whose version never came have none yet: fewer entries, or
    0 where a later row's version came before (arrival groups)."""
    client_weight: array[float] = field(default_factory=lambda: array("d"))
    tasks_out: array[int] = field(default_factory=lambda: array("l"))
    """Just after it: the concurrency over time."""
    bytes_up: array[float] = field(default_factory=lambda: array("d"))
    """Sent by all participants until then, with what was lost or discarded."""
    bytes_down: array[float] = field(default_factory=lambda: array("d"))

    def weigh(self, weights: Sequence[float], orders: Sequence[int] | None) -> None:
        """A version came, of the next rows or of those of these orders."""
        if orders is None:
            self.weight.extend(weights)
            return
        self.weight.extend([0.0] * (max(orders) - len(self.weight)))
        for order, weight in zip(orders, weights, strict=True):
            self.weight[order - 1] = weight

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Views by name."""
        return {name: np.asarray(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One central evaluation, with where the run was."""

    version: int
    time_s: float
    updates: int
    bytes_up: float
    bytes_down: float
    metrics: Mapping[str, float]


@dataclass(slots=True)
class Outcome:
    """See the module docstring. `parameters` are the final version's."""

    parameters: Parameters
    updates: Updates = field(default_factory=Updates)
    version_s: array[float] = field(default_factory=lambda: array("d"))
    """When version 1, 2, ... was made."""
    evaluations: list[Evaluation] = field(default_factory=list)
    finished: str = ""
    """Why the run ended: the name of a limit or goal, or "diverged"."""
    diverged_s: float | None = None
    """When the first update came that held NaN or infinite values, or a version's loss did."""
    time_s: float = 0.0
    bytes_up: float = 0.0
    """Sent by all participants in the whole run, with what came after the last accepted update."""
    bytes_down: float = 0.0
    discarded: dict[str, int] = field(default_factory=dict)
    dropouts: int = 0
    missed_arrivals: int = 0
    """Open loop: offers of participants that were busy or off."""
    num_examples: list[int] = field(default_factory=list)
    """Of each participant."""
    mean_task_s: list[float] = field(default_factory=list)
    """How long a task of each takes on average, before it drops out or is off: by the laws; where each task is asked
    for steps of its own, the mean of those that it had, or what the first one takes where it had none."""
    cohorts: int = 0
    trained: int = 0
    backend: str = ""

    def digest(self) -> str:
        """SHA-256 over the parameters, every update and every version: equal for runs that are equal bit for bit."""
        hashed = hashlib.sha256(self.finished.encode())
        for name, tensor in self.parameters.items():
            hashed.update(name.encode() + str(tensor.dtype).encode() + np.ascontiguousarray(tensor).tobytes())
        for name, column in self.updates.columns().items():
            hashed.update(name.encode() + column.tobytes())
        hashed.update(self.version_s.tobytes())
        for e in self.evaluations:
            hashed.update(repr((e.version, e.time_s, sorted(e.metrics.items()))).encode())
        return hashed.hexdigest()
