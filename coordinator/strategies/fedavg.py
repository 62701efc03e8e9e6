"""FedAvg: synchronous rounds, by the same core with a cohort barrier.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data" (FederatedAveraging):

    θ = Σ α_i·θ_i        α_i = q_i / Σ q_j, so that Σ α_i = 1

With client_weights = "examples", q_i = n_i/n̄ and α_i = n_i/Σ n_j, the paper's weights. The mean n̄ cancels because it
stands still within a round (`ClientWeights.pin`). A server optimiser (Reddi et al. 2021) takes Δ̄ = θ - x.
Over-selection, deadline and minimum are those of Bonawitz et al. 2019, "Towards Federated Learning at Scale".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import next_version
from fedmq.coordinator.strategies.math.server_optimizers import AnyServerOptimizer
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate, Cohort
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedAvg:
    """A new version of `cohort_size` updates, or of at least `min_updates` at the deadline.

    Non-trainable floating tensors (BatchNorm statistics) are averaged plainly, without the server optimiser.
    """

    takes_new_tensors: ClassVar[bool] = True
    cohort_size: Annotated[int, Field(ge=1)] = 10
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """ceil(cohort_size·over_selection) participants are asked; the first `cohort_size` updates count."""
    round_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    min_updates: Annotated[int, Field(ge=1)] = 1
    server_optimizer: AnyServerOptimizer | None = None
    name: Literal["fedavg"] = "fedavg"

    @model_validator(mode="after")
    def _minimum_within_cohort(self) -> Self:
        check_minimum(self.min_updates, self.cohort_size)
        return self

    @property
    def reply(self) -> Reply:
        return "parameters"

    @property
    def cohort(self) -> Cohort:
        return Cohort(self.cohort_size, self.over_selection, self.round_deadline_s, self.min_updates)

    def init(self, parameters: Parameters) -> BufferState:
        return BufferState.zero(parameters, self.server_optimizer)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> BufferState:
        return self.init(parameters).load(arrays, scalars)

    def open_round(self, state: BufferState, now: float) -> BufferState:
        state.opened_at_s = now
        return state

    def accumulate(self, state: BufferState, update: ClientUpdate, staleness: int) -> BufferState:
        check_this_round(update, staleness)
        state.accumulate(update, update.client_weight)
        return state

    def ready(self, state: BufferState, now: float) -> bool:
        return round_is_ready(state, self.cohort, now)

    def weights(self, state: BufferState) -> tuple[float, ...]:
        """Return α_i; all of them are 0 if every q_i is."""
        total = state.total()
        return tuple(c / total if total > 0 else 0.0 for c in state.coefficients)

    def aggregate(self, state: BufferState, parameters: Parameters) -> tuple[BufferState, Parameters]:
        total = state.total()
        if total == 0:
            state.clear()
            return state, parameters
        made, new = next_version(parameters)
        for name, acc in state.sums.items():
            x, out = parameters[name], new[name]
            if self.server_optimizer is None or name in parameters.non_trainable:
                arithmetic.quotient(acc, total, out)
            else:
                state.optimize(self.server_optimizer, name, x, _mean_delta(acc, total, x), out)
        state.clear()
        return state, made


def check_minimum(min_updates: int, cohort_size: int) -> None:
    """Raise ValueError if a round could never have enough updates."""
    if min_updates > cohort_size:
        raise ValueError(
            f"min_updates = {min_updates} is more than cohort_size = {cohort_size}: a round would never have enough; "
            "set it to the cohort's size or less"
        )


def check_this_round(update: ClientUpdate, staleness: int) -> None:
    """Raise ValueError for an update of an earlier round."""
    if staleness:
        raise ValueError(
            f"update {update.update_id} is of an earlier round (staleness {staleness}), expected one of this round: an "
            "average has no place for stale parameters, discard it"
        )


def round_is_ready(state: BufferState, cohort: Cohort, now: float) -> bool:
    """Return True if the cohort is complete, or if the deadline is over and the minimum is there."""
    if state.count >= cohort.size:
        return True
    over = state.opened_at_s is not None and now >= state.opened_at_s + cohort.deadline_s
    return over and state.count >= cohort.min_updates


def _mean_delta(acc: Array, total: float, x: Array) -> arithmetic.FillChunk:
    """Return a function that writes chunks of Δ̄ = acc/total - x."""
    flat, by, base = acc.reshape(-1), acc.dtype.type(total), x.reshape(-1)

    def fill(part: slice, out: Array) -> None:
        np.divide(flat[part], by, out=out)
        np.subtract(out, base[part].astype(out.dtype, copy=False), out=out)

    return fill
