"""The outcome of one run in virtual time, as columns."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.coordinator.strategies.math.client_weights import ClientWeightKind, ClientWeights
from fedmq.schemas.errors import InputError
from fedmq.schemas.parameters import Parameters


@dataclass(slots=True)
class Updates:
    """One row for each accepted update, in the order in which they were counted."""

    time_s: array[float] = field(default_factory=lambda: array("d"))
    participant: array[int] = field(default_factory=lambda: array("l"))
    base_version: array[int] = field(default_factory=lambda: array("l"))
    staleness: array[int] = field(default_factory=lambda: array("l"))
    weight: array[float] = field(default_factory=lambda: array("d"))
    """Aggregation coefficient (`Strategy.weights`). A row whose version never came has none: the column ends before it,
    or holds 0 if the version of a later row came first (arrival groups)."""
    client_weight: array[float] = field(default_factory=lambda: array("d"))
    tasks_out: array[int] = field(default_factory=lambda: array("l"))
    """Tasks out just after the update: the concurrency over time."""
    bytes_up: array[float] = field(default_factory=lambda: array("d"))
    """Bytes that all participants have sent until then, lost and discarded updates included."""
    bytes_down: array[float] = field(default_factory=lambda: array("d"))

    def weigh(self, weights: Sequence[float], orders: Sequence[int] | None) -> None:
        """Note the weights of a new version: of the next rows, or of the rows with these orders (from 1)."""
        if orders is None:
            self.weight.extend(weights)
            return
        self.weight.extend([0.0] * (max(orders) - len(self.weight)))
        for order, weight in zip(orders, weights, strict=True):
            self.weight[order - 1] = weight

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return each column as a numpy view, by name."""
        return {name: np.asarray(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One central evaluation, and how far the run was."""

    version: int
    time_s: float
    updates: int
    bytes_up: float
    bytes_down: float
    metrics: Mapping[str, float]
    tasks_issued: int = 0
    """Tasks that participants have taken until then: the trips of clients."""
    tasks_withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class ParticipantResult:
    """One participant's part in a run."""

    participant: int
    """Index in the population, as in `Updates.participant`."""
    participant_id: str
    num_examples: int
    mean_task_s: float
    """Mean seconds that a task takes, apart from dropouts and times off."""
    accepted: int
    """Number of its updates that were accepted."""
    weight: float
    """Effective weight: the sum of the aggregation coefficients of its updates."""
    intended_weight: float
    """Client weight of its last update, or of a first one if there was none. Its mean is about 1."""


@dataclass(slots=True)
class Outcome:
    """Everything that one run left. `parameters` are the final version's."""

    parameters: Parameters
    updates: Updates = field(default_factory=Updates)
    version_s: array[float] = field(default_factory=lambda: array("d"))
    """Virtual time (s) at which version 1, 2, ... was made."""
    by_timeout: list[int] = field(default_factory=list)
    """Versions that their buffer's timeout made."""
    plain: list[int] = field(default_factory=list)
    """Versions that the strategy would have distilled, and could not: they are the plain mean."""
    evaluations: list[Evaluation] = field(default_factory=list)
    finished: str = ""
    """Reason of the run's end: the name of a limit or goal, "diverged" or "stuck"."""
    diverged_s: float | None = None
    """Virtual time (s) of the first update, or the first evaluation, that held NaN or infinite values."""
    time_s: float = 0.0
    bytes_up: float = 0.0
    """Bytes that all participants sent in the whole run, what came after the last accepted update included."""
    bytes_down: float = 0.0
    discarded: dict[str, int] = field(default_factory=dict)
    tasks_issued: int = 0
    """Tasks that participants took in the whole run. Each is a trip: the model goes down, whatever comes back."""
    tasks_withdrawn: int = 0
    """Tasks that were withdrawn before the run's end, such as those of a round that is over."""
    dropouts: int = 0
    missed_arrivals: int = 0
    """Offers of participants that were busy or off (open loop)."""
    num_examples: list[int] = field(default_factory=list)
    """Training examples of each participant."""
    mean_task_s: list[float] = field(default_factory=list)
    """Mean seconds that a task of each participant takes, apart from dropouts and times off. It follows from the laws.
    If each task is asked for steps of its own, it is the mean of the tasks that the participant had, or the time of a
    first task if it had none."""
    participant_ids: list[str] = field(default_factory=list)
    intended_weights: list[float] = field(default_factory=list)
    """Client weight of each participant (`ParticipantResult.intended_weight`)."""
    cohorts: int = 0
    trained: int = 0
    backend: str = ""

    def name_participants(self, participant_ids: Sequence[str], client_weights: ClientWeightKind) -> None:
        """Note the participants' names, and the weights that are intended for them."""
        self.participant_ids = list(participant_ids)
        weights, counts = ClientWeights(client_weights), list(enumerate(self.num_examples))
        for i, count in counts:
            weights.observe(str(i), count, {})
        intended = np.array([weights.weight(str(i), count, {}) for i, count in counts])
        if client_weights == "quality":  # the others follow from the examples alone
            rows = self.updates.columns()
            intended[rows["participant"]] = rows["client_weight"]
        self.intended_weights = intended.tolist()

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each evaluation: its version, time_s, updates, bytes_up and bytes_down, and its metrics by name."""
        return [
            {
                "version": e.version, "time_s": e.time_s, "updates": e.updates, "bytes_up": e.bytes_up,
                "bytes_down": e.bytes_down, **e.metrics,
            }
            for e in self.evaluations
        ]  # fmt: skip

    @property
    def participants(self) -> list[ParticipantResult]:
        """A row for each participant, in the order of the population."""
        rows, count = self.updates.columns(), len(self.participant_ids)
        weighed = rows["participant"][: len(rows["weight"])]
        columns = (
            self.participant_ids,
            self.num_examples,
            self.mean_task_s,
            np.bincount(rows["participant"], minlength=count).tolist(),
            np.bincount(weighed, rows["weight"], count).tolist(),
            self.intended_weights,
        )
        return [ParticipantResult(i, *row) for i, row in enumerate(zip(*columns, strict=True))]

    def digest(self) -> str:
        """Return a SHA-256 over the parameters, every update and every version: equal if runs are equal bit for bit."""
        hashed = hashlib.sha256(self.finished.encode())
        for name, tensor in self.parameters.items():
            hashed.update(name.encode() + str(tensor.dtype).encode() + np.ascontiguousarray(tensor).tobytes())
        for name, column in self.updates.columns().items():
            hashed.update(name.encode() + column.tobytes())
        hashed.update(self.version_s.tobytes())
        for e in self.evaluations:
            hashed.update(repr((e.version, e.time_s, sorted(e.metrics.items()))).encode())
        return hashed.hexdigest()


class Stuck(InputError):
    """Nothing is left to happen, and the run has not ended. `outcome` is what there is until then."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome
