"""AREA: the model is the plain mean of all participants' last parameters, however often each of them takes part.

Iakovidou, Kim 2024, "Asynchronous Federated Stochastic Optimization for Heterogeneous Objectives Under Arbitrary
Delays" (arXiv 2405.10123), with m_i the parameters that participant i sent last, and m_i = x_0 before its first ones:

    at K updates   x ← x + (1/N)·Σ (y_i - m_i)        then m_i ← y_i for the participants in the buffer

Therefore x = x_0 + (1/N)·Σ_j (m_j - x_0) over all N participants at all times. It is computed in this form, with the
sum in float64: nothing drifts. There is no server learning rate, because any rate but 1 would change the point at which
x stands still. With client weights the terms are w_i·(m_i - x_0), and w_i is the q_i of a participant's last update.

The method's memory is the m_i. Either side can keep them:

- `memory = "participant"` is the paper's way: participants keep their m_i and send y_i - m_i. The published server
  (AREAAggregator in APPFL) adds (1/N)·Σ of K such updates to x. The coordinator keeps x_0 and the sum, however many
  participants there are. A participant's first update is y_i itself: m_i is 0 there, and x_0 is subtracted here. Client
  weights are not possible, because nobody could subtract the old w_i·m_i. A participant that loses its disk cannot go
  on, because nobody knows its share of the model.
- `memory = "coordinator"`: participants send y_i, and the coordinator keeps the m_i. The numbers are the same, and a
  participant that loses its disk loses nothing of the method. It costs the RAM of N models. In a deployment the ledger
  holds them, and a commit writes only those that changed.

N is fixed for the run: participants beyond the first N get no tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.protocol import MEMORY, Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered, MinUpdates, TimeoutS, check_timeout
from fedmq.coordinator.strategies.states.buffer import check_coefficient, check_payload
from fedmq.coordinator.strategies.states.per_participant import GIB, check_bytes_kept, memories_in, own_copy
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters


@plain_dataclass(slots=True)
class AreaState:
    """x_0, the m_i, and Σ_j w_j·(m_j - x_0). The m_i are replaced, and the rest changes in place."""

    initial: dict[str, Array]
    """Floating tensors of x_0."""
    total: dict[str, Array]
    """Σ_j w_j·(m_j - x_0) by tensor, in float64."""
    weights: dict[str, float] = field(default_factory=dict)
    """participant -> w_i."""
    cache: dict[str, dict[str, Array]] = field(default_factory=dict)
    """participant -> m_i."""
    changed: set[str] = field(default_factory=set)
    """Participants whose m_i is not in the ledger yet."""
    coefficients: list[float] = field(default_factory=list)
    """Coefficients of the updates in the buffer, in order of arrival."""
    buffered: list[str] = field(default_factory=list)
    """Participants in the buffer, if the coordinator keeps the m_i."""
    num_participants: int = 1
    """N."""

    @property
    def count(self) -> int:
        return len(self.coefficients)

    def accumulate_parameters(self, update: ClientUpdate) -> None:
        """Replace m_i by y_i. Raises ValueError, and changes nothing, if the update does not fit."""
        check_payload(update, {n: x.shape for n, x in self.initial.items()})
        check_coefficient(update, update.client_weight)
        who = update.participant_id
        weight = update.client_weight
        before, old = self.cache.get(who, self.initial), self.weights.get(who, weight)
        after = {n: own_copy(update.payload[n]) for n in self.initial}
        for name, total in self.total.items():
            arithmetic.scale_add(total, weight, after[name])
            arithmetic.scale_add(total, -old, before[name])
            if weight != old:
                arithmetic.scale_add(total, old - weight, self.initial[name])
        self.cache[who], self.weights[who] = after, weight
        self.changed.add(who)
        self.coefficients.append(weight)
        self.buffered.append(who)

    def accumulate_change(self, update: ClientUpdate) -> None:
        """Add y_i - m_i; the participant keeps m_i. Raises ValueError, and changes nothing, if it does not fit.

        Raises OverflowError if the model would leave the range of float16: a sum that participants remember their parts
        of cannot lose a part again.
        """
        check_payload(update, {n: x.shape for n, x in self.initial.items()})
        for name, x in self.initial.items():
            if x.dtype == np.float16:
                base = x.astype(np.float64)
                total = self.total[name] + update.payload[name] - (base if update.first else 0.0)
                arithmetic.check_range(base + total / self.num_participants, x.dtype, f"tensor {name!r} of the model")
        for name, total in self.total.items():
            arithmetic.scale_add(total, 1.0, update.payload[name])
            if update.first:
                arithmetic.scale_add(total, -1.0, self.initial[name])
        self.coefficients.append(1.0)

    def drop(self, group: int | None) -> None:  # noqa: ARG002 - there are no groups
        """Lose the updates of the buffer: the m_i of its participants are x_0 again, as before their first update.

        Changes of m_i that participants keep stay in the sum, because the participants have moved theirs.
        """
        for who in dict.fromkeys(self.buffered):
            weight, kept = self.weights[who], self.cache[who]
            for name, total in self.total.items():
                arithmetic.scale_add(total, -weight, kept[name])
                arithmetic.scale_add(total, weight, self.initial[name])
            self.cache[who] = {n: own_copy(x) for n, x in self.initial.items()}
            self.changed.add(who)
        self.coefficients.clear()
        self.buffered.clear()

    def changed_memories(self) -> dict[str, Mapping[str, Array]]:
        changed, self.changed = self.changed, set()
        return {participant_id: self.cache[participant_id] for participant_id in sorted(changed)}

    def arrays(self) -> dict[str, Array]:
        initial = {f"initial/{n}": x for n, x in self.initial.items()}
        return initial | {f"total/{n}": x for n, x in self.total.items()}

    def scalars(self) -> dict[str, Any]:
        return {
            "weights": dict(self.weights),
            "coefficients": list(self.coefficients),
            "buffered": list(self.buffered),
        }


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Area(Buffered):
    """A new version of every `buffer_size` updates; all floating tensors, BatchNorm statistics too, count alike."""

    num_participants: Annotated[int, Field(ge=1)]
    """N: number of participants in the run."""
    buffer_size: Annotated[int, Field(ge=1)] = 1
    memory: Literal["coordinator", "participant"] = "coordinator"
    """The side that keeps the m_i."""
    memory_limit_bytes: Annotated[int, Field(ge=1)] = 4 * GIB
    """Most bytes of RAM for the kept parameters; a run that needs more is refused at its start."""
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    min_updates: MinUpdates | None = field(default=None, kw_only=True)
    """None means 1."""
    name: Literal["area"] = "area"

    _timeout = model_validator(mode="after")(check_timeout)

    @property
    def reply(self) -> Reply:
        return "parameters" if self.memory == "coordinator" else "change"

    @property
    def max_participants(self) -> int:
        return self.num_participants

    def init(self, parameters: Parameters) -> AreaState:
        """Return the first state. Raises ConfigError if N models are larger than `memory_limit_bytes`."""
        averaged = {n: parameters[n] for n in parameters.averaged()}
        kept = self.num_participants if self.memory == "coordinator" else 0
        check_bytes_kept(self.name, averaged, kept, 2, self.memory_limit_bytes)
        total = {n: np.zeros(x.shape, np.float64) for n, x in averaged.items()}
        return AreaState(averaged, total, num_participants=self.num_participants)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> AreaState:
        state = self.init(parameters)
        given = {n: x for n, x in arrays.items() if not n.startswith(MEMORY)}
        own = {n: (x.shape, x.dtype) for n, x in state.arrays().items()}
        if {n: (x.shape, x.dtype) for n, x in given.items()} != own:
            raise CheckpointError(
                f"the checkpoint's strategy state has the arrays {sorted(given)[:3]}..., expected {sorted(own)[:3]}... "
                "of this model's shapes; resume with the strategy and model that wrote it"
            )
        state.initial = {n: given[f"initial/{n}"] for n in state.initial}
        for name, total in state.total.items():
            np.copyto(total, given[f"total/{name}"])
        state.weights = {str(p): float(w) for p, w in scalars["weights"].items()}
        state.coefficients = [float(c) for c in scalars["coefficients"]]
        state.buffered = [str(p) for p in scalars.get("buffered", ())]
        state.cache = memories_in(arrays)
        return state

    def accumulate(self, state: AreaState, update: ClientUpdate, staleness: int) -> AreaState:  # noqa: ARG002
        if self.memory == "coordinator":
            state.accumulate_parameters(update)
        else:
            state.accumulate_change(update)
        return state

    def weights(self, state: AreaState) -> tuple[float, ...]:
        """Return w/N, the factor of each y_i - m_i."""
        return tuple(c / self.num_participants for c in state.coefficients)

    def aggregate(self, state: AreaState, parameters: Parameters) -> tuple[AreaState, Parameters]:
        new = arithmetic.allocate_like(state.initial)
        for name, total in state.total.items():
            arithmetic.step(state.initial[name], 1.0 / self.num_participants, total, new[name])
        state.coefficients.clear()
        state.buffered.clear()
        return state, parameters.replace({**parameters, **new})
