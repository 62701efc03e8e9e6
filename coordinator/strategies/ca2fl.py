"""CA2FL: every participant counts in every version, by its last update, which the coordinator keeps.

Wang, Cao, Wu, Chen, Chen 2024, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached Update
Calibration" (ICLR), the algorithm CA2FL, with client weights q:

    at K updates   v = h̄ + (1/K)·Σ (q_i·Δ_i - h_i)        h̄ = (1/N)·Σ_j h_j, over all N participants
                   x ← x + η_g·v
    then           h_i ← q_i·Δ_i for the participants in the buffer; h_i = 0 for those that have sent nothing yet

Updates of fast participants fill the buffer, but near the end their part q_i·Δ_i - h_i is small, and h̄ holds all
participants alike: there is no bias towards fast participants. If a participant is in a buffer twice, both of its
updates are calibrated by the h_i from before the buffer, and the last one is kept.

The method's memory is the h_i: N models of RAM at most, besides up to K updates of the open buffer. In a deployment the
ledger holds the h_i, and a commit writes only those that changed. N is fixed for the run: participants beyond the first
N get no tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.protocol import MEMORY, Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered, MinUpdates, TimeoutS, check_timeout
from fedmq.coordinator.strategies.states.buffer import BufferState, check_coefficient
from fedmq.coordinator.strategies.states.per_participant import GIB, check_bytes_kept, memories_in, own_copy
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters

_TOTAL, _PENDING = "total/", "pending/"


@plain_dataclass
class Ca2flState(BufferState):
    """The buffer holds Σ (q_i·Δ_i - h_i)."""

    kept_total: dict[str, Array] = field(default_factory=dict)
    """Σ_j h_j by tensor, in float64: a year of additions and subtractions leaves no trace."""
    cache: dict[str, dict[str, Array]] = field(default_factory=dict)
    """participant -> h_i. These arrays are replaced and never changed in place."""
    pending: dict[str, dict[str, Array]] = field(default_factory=dict)
    """participant -> q_i·Δ_i, for its last update in the open buffer."""
    changed: set[str] = field(default_factory=set)
    """Participants whose h_i is not in the ledger yet."""

    def accumulate(self, update: ClientUpdate, coefficient: float) -> None:
        """Add coefficient·Δ_i - h_i to the sums. Raises ValueError, and changes nothing, if the update does not fit."""
        self.check(update)
        check_coefficient(update, coefficient)
        kept = {n: own_copy(update.payload[n], coefficient) for n in self.sums}
        known = self.cache.get(update.participant_id, {})
        for name, acc in self.sums.items():
            arithmetic.scale_add(acc, 1.0, kept[name])
            if known:
                arithmetic.scale_add(acc, -1.0, known[name])
        self.pending[update.participant_id] = kept
        self.coefficients.append(coefficient)

    def remember(self) -> None:
        """Replace h_i by q_i·Δ_i, for all participants in the buffer."""
        for participant_id, kept in self.pending.items():
            known = self.cache.get(participant_id, {})
            for name, acc in self.kept_total.items():
                arithmetic.scale_add(acc, 1.0, kept[name])
                if known:
                    arithmetic.scale_add(acc, -1.0, known[name])
            self.cache[participant_id] = kept
            self.changed.add(participant_id)
        self.pending.clear()

    def drop(self, group: int | None) -> None:
        """Lose the updates of the buffer. The h_i stay, as they were before it."""
        self.pending.clear()
        super().drop(group)

    def changed_memories(self) -> dict[str, Mapping[str, Array]]:
        changed, self.changed = self.changed, set()
        return {participant_id: self.cache[participant_id] for participant_id in sorted(changed)}

    def arrays(self) -> dict[str, Array]:
        return (
            super().arrays()
            | {_TOTAL + n: a for n, a in self.kept_total.items()}
            | {f"{_PENDING}{p}/{n}": a for p, kept in self.pending.items() for n, a in kept.items()}
        )

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        for name, total in self.kept_total.items():
            if _TOTAL + name not in arrays:
                raise CheckpointError(
                    f"the checkpoint's strategy state lacks the array {_TOTAL + name!r}; resume with the strategy and "
                    "model that wrote it"
                )
            np.copyto(total, arrays[_TOTAL + name])
        self.cache = memories_in(arrays)
        pending = {MEMORY + n[len(_PENDING) :]: a for n, a in arrays.items() if n.startswith(_PENDING)}
        self.pending = memories_in(pending)
        rest = {n: a for n, a in arrays.items() if not n.startswith((MEMORY, _PENDING, _TOTAL))}
        super().load(rest, scalars)
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ca2fl(Buffered):
    """A new version of every `buffer_size` updates.

    Non-trainable floating tensors (BatchNorm statistics) take v with rate 1.
    """

    num_participants: Annotated[int, Field(ge=1)]
    """N: number of participants in the run."""
    buffer_size: Annotated[int, Field(ge=1)] = 10
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    memory_limit_bytes: Annotated[int, Field(ge=1)] = 4 * GIB
    """Most bytes of RAM for the kept updates; a run that needs more is refused at its start."""
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    min_updates: MinUpdates | None = field(default=None, kw_only=True)
    """None means 1."""
    name: Literal["ca2fl"] = "ca2fl"

    _timeout = model_validator(mode="after")(check_timeout)

    @property
    def reply(self) -> Reply:
        return "delta"

    @property
    def max_participants(self) -> int:
        return self.num_participants

    def init(self, parameters: Parameters) -> Ca2flState:
        """Return the first state. Raises ConfigError if N models are larger than `memory_limit_bytes`."""
        averaged = {n: parameters[n] for n in parameters.averaged()}
        check_bytes_kept(self.name, averaged, self.num_participants, self.buffer_size, self.memory_limit_bytes)
        state = Ca2flState.zero(parameters, None)
        state.kept_total = {n: np.zeros(x.shape, np.float64) for n, x in averaged.items()}
        return state

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> Ca2flState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: Ca2flState, update: ClientUpdate, staleness: int) -> Ca2flState:  # noqa: ARG002
        state.accumulate(update, update.client_weight)
        return state

    def weights(self, state: Ca2flState) -> tuple[float, ...]:
        """Return η_g·q/K, the factor of each Δ_i; the kept updates come on top."""
        return tuple(self.server_learning_rate * c / state.count for c in state.coefficients)

    def aggregate(self, state: Ca2flState, parameters: Parameters) -> tuple[Ca2flState, Parameters]:
        new = arithmetic.allocate_like({n: parameters[n] for n in state.sums})
        for name, calibrated in state.sums.items():
            rate = 1.0 if name in parameters.non_trainable else self.server_learning_rate
            step = _both(calibrated, rate / state.count, state.kept_total[name], rate / self.num_participants)
            arithmetic.step_by(parameters[name], step, new[name])
        state.remember()
        state.clear()
        return state, parameters.replace({**parameters, **new})


def _both(calibrated: Array, one: float, total: Array, other: float) -> arithmetic.FillChunk:
    """Return a function that writes chunks of one·calibrated + other·total."""
    first, second, factor = calibrated.reshape(-1), total.reshape(-1), calibrated.dtype.type(one)

    def fill(part: slice, out: Array) -> None:
        np.multiply(first[part], factor, out=out)
        np.add(out, second[part] * other, out=out, casting="same_kind")

    return fill
