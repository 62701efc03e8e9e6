"""FedStaleWeight: within a buffer, updates count in proportion to how stale their participants' updates usually are.

Ma, Tu, Chen, Reddi 2024, "FedStaleWeight: Buffered Asynchronous Federated Learning with Fair Aggregation via Staleness
Reweighting" (arXiv 2406.02877): fast participants send more updates, so that each of theirs must count for less. By the
mean staleness τ̄_i of a participant's updates so far it gives one in K·τ̄_i + 1 of all updates, hence

    at K updates   x ← x + η_g·Σ w_i·Δ_i        w_i = (K·τ̄_i + 1)·q_i / Σ_j (K·τ̄_j + 1)·q_j

over the buffer. The weights of each buffer sum to 1; `participation` is the same correction with a fixed divisor.

The authors' test bench (github.com/18jeffreyma/afl-bench) has two forms of it: (K·τ_i + 1)/N by the staleness of the
update itself, with a fixed divisor, and K·τ̄_i by the mean over a participant's last updates, divided by its sum over
the buffer. Here it is the second with the first one's + 1: without it a participant whose updates are always fresh
would never count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered
from fedmq.coordinator.strategies.states.participation_counts import TallyState
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedStaleWeight(Buffered):
    """A new version at every `buffer_size` updates.

    Non-trainable floating tensors (BatchNorm statistics) take the same mean with rate 1.
    """

    buffer_size: Annotated[int, Field(ge=1)] = 10
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    name: Literal["fedstaleweight"] = "fedstaleweight"

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> TallyState:
        return TallyState.zero(parameters, None)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> TallyState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: TallyState, update: ClientUpdate, staleness: int) -> TallyState:
        mean = state.tally.mean_with(update.participant_id, float(staleness))
        state.add(update, (self.buffer_size * mean + 1.0) * update.client_weight)
        state.order += 1
        state.tally.add(update.participant_id, state.order, float(staleness))
        return state

    def weights(self, state: TallyState) -> tuple[float, ...]:
        """η_g·w; all 0 in the odd case that every q is 0."""
        mean = state.per_total()
        return tuple(self.server_learning_rate * mean * c for c in state.coefficients)

    def aggregate(self, state: TallyState, parameters: Parameters) -> tuple[TallyState, Parameters]:
        new = state.step(parameters, self.server_learning_rate, state.per_total())
        state.clear()
        return state, new
