"""FedStaleWeight: an update counts in proportion to how stale its participant's updates usually are.

Ma, Tu, Chen, Reddi 2024, "FedStaleWeight: Buffered Asynchronous Federated Learning with Fair Aggregation via Staleness
Reweighting" (arXiv 2406.02877). Fast participants send more updates, so each of theirs must count for less. If the
updates of a participant so far have the mean staleness τ̄_i, it gives one in K·τ̄_i + 1 of all updates, hence

    at K updates   x ← x + η_g·Σ w_i·Δ_i        w_i = (K·τ̄_i + 1)·q_i / Σ_j (K·τ̄_j + 1)·q_j

over the buffer. The weights of each buffer sum to 1; `participation` is the same correction with a fixed divisor.

The authors' test bench (github.com/18jeffreyma/afl-bench) has two forms. One is (K·τ_i + 1)/N by the staleness of the
update itself, with a fixed divisor. The other is K·τ̄_i by the mean over a participant's last updates, divided by its
sum over the buffer. This is the second form with the + 1 of the first: without it a participant whose updates are
always fresh would never count.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.coordinator.strategies.states.participation_counts import CountingBufferState
from fedmq.coordinator.strategies.weighted_mean import WeightedMean
from fedmq.schemas.parameters import Parameters


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedStaleWeight(WeightedMean):
    """A new version of every `buffer_size` updates."""

    name: Literal["fedstaleweight"] = "fedstaleweight"

    def init(self, parameters: Parameters) -> CountingBufferState:
        return CountingBufferState.zero(parameters, None)

    def weight(self, update: ClientUpdate, staleness: int, state: CountingBufferState) -> float:
        """Return (K·τ̄ + 1)·q."""
        mean = state.participation.mean_with(update.participant_id, float(staleness))
        return (self.buffer_size * mean + 1.0) * update.client_weight

    def divisor(self, state: CountingBufferState) -> float:
        """Return the sum of the buffer's (K·τ̄ + 1)·q."""
        return state.total()

    def accumulate(self, state: CountingBufferState, update: ClientUpdate, staleness: int) -> Any:
        super().accumulate(state, update, staleness)
        state.record(update.participant_id, float(staleness))
        return state
