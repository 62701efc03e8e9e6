"""FedBuff: buffered asynchronous aggregation.

Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (AISTATS), with client weights q:

    at K updates   x ← x + η_g·(1/K)·Σ s(τ_i)·q_i·Δ_i

The divisor is K, once; `normalize="weights"` divides by Σ s·q instead. Δ_i is against the version that the participant
started from: whatever the model did since then stays untouched. (FLSim, facebookresearch/FLSim, sums by default and
leaves 1/K to the learning rate, and it divides s by s of an average staleness, 1 where nothing is set: at our settings
its learning rate is η_g·s(1)/K.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import next_version
from fedmq.coordinator.strategies.math.server_optimizers import AnyServerOptimizer
from fedmq.coordinator.strategies.math.staleness_weights import AnyStaleness, Polynomial
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered
from fedmq.coordinator.strategies.states.buffer import BufferState, scaled
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedBuff(Buffered):
    """A new version at every `buffer_size` updates.

    Non-trainable floating tensors (BatchNorm statistics) take the same mean with rate 1 and no server optimiser.
    """

    buffer_size: Annotated[int, Field(ge=1)] = 10
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    staleness: AnyStaleness = Polynomial(0.5)
    normalize: Literal["count", "weights"] = "count"
    server_optimizer: AnyServerOptimizer | None = None
    """Takes Δ̄ = (1/K)·Σ s·q·Δ with a learning rate of its own."""
    name: Literal["fedbuff"] = "fedbuff"

    @model_validator(mode="after")
    def _one_learning_rate(self) -> Self:
        if self.server_optimizer is not None and self.server_learning_rate != 1.0:
            raise ValueError(
                f"server_learning_rate = {self.server_learning_rate} has no effect beside a server_optimizer: leave it "
                "out and set server_optimizer.learning_rate"
            )
        return self

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> BufferState:
        return BufferState.zero(parameters, self.server_optimizer)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> BufferState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: BufferState, update: ClientUpdate, staleness: int) -> BufferState:
        state.add(update, self.staleness(staleness) * update.client_weight)
        return state

    def weights(self, state: BufferState) -> tuple[float, ...]:
        """η_g·s·q/divisor of each update; with a server optimiser, its share s·q/divisor of Δ̄."""
        mean = self._mean_factor(state)
        return tuple(self.server_learning_rate * mean * c for c in state.coefficients)

    def aggregate(self, state: BufferState, parameters: Parameters) -> tuple[BufferState, Parameters]:
        mean = self._mean_factor(state)
        if self.server_optimizer is None:
            made = state.step(parameters, self.server_learning_rate, mean)
        else:
            made, new = next_version(parameters)
            for name, total in state.sums.items():
                x, out = parameters[name], new[name]
                if name in parameters.non_trainable:
                    arithmetic.step(x, mean, total, out)
                else:
                    state.optimize(self.server_optimizer, name, x, scaled(total, mean), out)
        state.clear()
        return state, made

    def _mean_factor(self, state: BufferState) -> float:
        """1/K, or 1/Σ s·q; 0 where every weight is 0, so that nothing moves."""
        if self.normalize == "weights":
            return state.per_total()
        count = state.count
        return 1.0 / count if count else 0.0
