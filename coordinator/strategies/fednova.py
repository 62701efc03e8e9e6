"""FedNova: a participant that took more local steps does not pull harder.

Wang, Liu, Liang, Joshi, Poor 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization" (NeurIPS), the algorithm FedNova, with p_i = q_i/Σ q_j:

    x ← x + τ_eff·Σ p_i·Δ_i/a_i        τ_eff = Σ p_i·a_i

a_i is the l1 norm of the weights that participant i's optimiser gives its gradients: num_steps for SGD, and for SGD
with momentum ρ a_i = (t - ρ·(1 - ρ^t)/(1 - ρ))/(1 - ρ) with t = num_steps. A plain mean of Δ_i goes to an optimum
weighted by p_i·a_i, and this rule to the optimum weighted by p_i. In the authors' code `training.proximal_mu` changes
a_i too; here it does not.

The steps are what participants say. So an a_i counts in τ_eff for at most ten times the mean of the smaller ones
(math/capped_sum.py). Its own Δ_i is divided by all of it.

The paper's rounds are synchronous. With a `buffer_size` K the same rule makes a version of every K updates, and
p_i = s(τ_i)·q_i/Σ s(τ_j)·q_j over the buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.capped_sum import limit_of
from fedmq.coordinator.strategies.math.server_optimizers import Decay
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import RoundsOrBuffer, TimeoutS
from fedmq.coordinator.strategies.states.buffer import BufferState, check_coefficient
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters

MOST_NORM = 10.0
"""Largest a_i that counts in τ_eff, as a multiple of the mean of the smaller ones."""


@plain_dataclass
class FedNovaState(BufferState):
    """Σ (q_i/a_i)·Δ_i of trainable tensors, Σ q_i·Δ_i of the others."""

    norms: list[float] = field(default_factory=list)
    """a_i, in order of arrival."""
    non_trainable: frozenset[str] = frozenset()

    def accumulate_normalized(self, update: ClientUpdate, coefficient: float, norm: float) -> None:
        """Add an update over its norm a_i. Raises ValueError, and changes nothing, if the update does not fit."""
        self.check(update)
        check_coefficient(update, coefficient)
        for name, acc in self.sums.items():
            divisor = 1.0 if name in self.non_trainable else norm
            arithmetic.scale_add(acc, coefficient / divisor, update.payload[name])
        self.coefficients.append(coefficient)
        self.norms.append(norm)

    def clear(self) -> None:
        super().clear()
        self.norms.clear()

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"norms": list(self.norms)}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        super().load(arrays, scalars)
        self.norms = [float(a) for a in scalars["norms"]]
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedNova(RoundsOrBuffer):
    """A new version of `cohort_size` updates, or of at least `min_updates` at the deadline.

    If `buffer_size` is set there are no rounds, and a new version of every so many updates.

    Non-trainable floating tensors (BatchNorm statistics) are averaged plainly, with p_i.
    """

    takes_new_tensors: ClassVar[bool] = True
    cohort_size: Annotated[int, Field(ge=1)] = 10
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """ceil(cohort_size·over_selection) participants are asked; the first `cohort_size` updates count."""
    round_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    min_updates: Annotated[int, Field(ge=1)] = 1
    local_momentum: Decay = 0.0
    """ρ of the participants' SGD, with which the app's model was compiled."""
    buffer_size: Annotated[int, Field(ge=1)] | None = None
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    """The timeout of the buffer, to which `min_updates` then belongs."""
    staleness: AnyStalenessWeight | None = None
    """s(τ) of the asynchronous form; None means 1."""
    name: Literal["fednova"] = "fednova"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        self.check_form()
        return self

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> FedNovaState:
        state = FedNovaState.zero(parameters, None)
        state.non_trainable = parameters.non_trainable
        return state

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> FedNovaState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: FedNovaState, update: ClientUpdate, staleness: int) -> FedNovaState:
        state.accumulate_normalized(update, self.coefficient(update, staleness), self.norm(update.num_steps))
        return state

    def weights(self, state: FedNovaState) -> tuple[float, ...]:
        """Return τ_eff·p_i/a_i, the factor of each Δ_i."""
        rate, mean = self._rate_and_mean(state)
        return tuple(rate * mean * q / a for q, a in zip(state.coefficients, state.norms, strict=True))

    def aggregate(self, state: FedNovaState, parameters: Parameters) -> tuple[FedNovaState, Parameters]:
        new = state.step(parameters, *self._rate_and_mean(state))
        state.clear()
        return state, new

    def norm(self, num_steps: int) -> float:
        """Return a_i. An update that reports no steps counts as an update of 1 step."""
        steps, rho = max(num_steps, 1), self.local_momentum
        return (steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho)

    def _rate_and_mean(self, state: FedNovaState) -> tuple[float, float]:
        """Return τ_eff and 1/Σ q; nothing moves if every q is 0."""
        total = state.total()
        if total == 0:
            return 1.0, 0.0
        most = limit_of(state.norms, MOST_NORM)
        return sum(q / total * min(a, most) for q, a in zip(state.coefficients, state.norms, strict=True)), 1.0 / total
