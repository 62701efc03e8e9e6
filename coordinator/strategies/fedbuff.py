"""FedBuff: buffered asynchronous aggregation.

Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (AISTATS), with client weights q:

    at K updates   x ← x + η_g·(1/K)·Σ s(τ_i)·q_i·Δ_i

The divisor is K, once; `normalize="weights"` divides by Σ s·q instead. Δ_i is taken against the version that the
participant started from, so what the model did since then stays untouched.

FLSim (facebookresearch/FLSim) sums by default and leaves 1/K to the learning rate. It also divides s by s of an average
staleness, which is 1 unless it is set: at our settings its learning rate is η_g·s(1)/K.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math.server_optimizers import AnyServerOptimizer
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight, Polynomial
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.coordinator.strategies.weighted_mean import WeightedMean


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedBuff(WeightedMean):
    """A new version of every `buffer_size` updates."""

    staleness: AnyStalenessWeight = Polynomial(0.5)
    """s(τ)."""
    normalize: Literal["count", "weights"] = "count"
    server_optimizer: AnyServerOptimizer | None = None
    name: Literal["fedbuff"] = "fedbuff"

    @model_validator(mode="after")
    def _one_learning_rate(self) -> Self:
        if self.server_optimizer is not None and self.server_learning_rate != 1.0:
            raise ValueError(
                f"server_learning_rate = {self.server_learning_rate} has no effect beside a server_optimizer: leave it "
                "out and set server_optimizer.learning_rate"
            )
        return self

    def weight(self, update: ClientUpdate, staleness: int) -> float:
        """Return s(τ)·q."""
        return self.staleness(staleness) * update.client_weight

    def divisor(self, state: BufferState) -> float:
        """Return K, or Σ s·q."""
        return state.total() if self.normalize == "weights" else float(state.count)
