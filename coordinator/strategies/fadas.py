"""FADAS: an adaptive server step on buffered updates, smaller if one of them is very stale.

Wang, Wang, Lu, Chen 2024, "FADAS: Towards Federated Adaptive Asynchronous Optimization" (ICML), and its delay-adaptive
learning rate, with client weights q (the paper has none, which is `client_weights = "equal"`):

    Δ̄ = (1/K)·Σ q_i·Δ_i               m ← β₁·m + (1 - β₁)·Δ̄
    v ← β₂·v + (1 - β₂)·Δ̄²            v̂ ← max(v̂, v)
    η_t = η if τ_max ≤ τ_c, else min(η, 1/τ_max)          late_rate = "cap"
                            else η/τ_max                  late_rate = "divide"
    x ← x + η_t·m/(√v̂ + ε)

τ_max is the largest staleness in the buffer. If there is no `delay_threshold` τ_c, the step is always η: the paper's
plain FADAS. The cap changes nothing while η is below 1/τ_max, and the usual η = 0.001 always is. The authors' published
code (github.com/yujiaw98/FADAS) divides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.server_optimizers import AmsGrad, Decay, Positive
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered, MinUpdates, TimeoutS, check_timeout
from fedmq.coordinator.strategies.states.buffer import BufferState, scaled
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters


@plain_dataclass
class FadasState(BufferState):
    """A buffer, and the largest staleness in it."""

    highest_staleness: int = 0

    def clear(self) -> None:
        super().clear()
        self.highest_staleness = 0

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"highest_staleness": self.highest_staleness}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        super().load(arrays, scalars)
        self.highest_staleness = int(scalars["highest_staleness"])
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fadas(Buffered):
    """A new version of every `buffer_size` updates. Non-trainable floating tensors take the plain mean update."""

    takes_new_tensors: ClassVar[bool] = True
    buffer_size: Annotated[int, Field(ge=1)] = 10
    learning_rate: Positive = 0.001
    """η."""
    delay_threshold: Annotated[int, Field(ge=0)] | None = None
    """τ_c, in versions."""
    late_rate: Literal["cap", "divide"] = "cap"
    """The rule for η_t above the threshold."""
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    epsilon: Positive = 1e-8
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    min_updates: MinUpdates | None = field(default=None, kw_only=True)
    """None means 1."""
    name: Literal["fadas"] = "fadas"

    _timeout = model_validator(mode="after")(check_timeout)

    @model_validator(mode="after")
    def _threshold_for_late_rate(self) -> Self:
        if self.late_rate != "cap" and self.delay_threshold is None:
            raise ValueError(f"late_rate = {self.late_rate!r} has no effect without a delay_threshold: set one")
        return self

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> FadasState:
        return FadasState.zero(parameters, self._optimizer(0))

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> FadasState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: FadasState, update: ClientUpdate, staleness: int) -> FadasState:
        state.accumulate(update, update.client_weight)
        state.highest_staleness = max(state.highest_staleness, staleness)
        return state

    def weights(self, state: FadasState) -> tuple[float, ...]:
        """Return q/K, the share of each update in Δ̄."""
        return tuple(c / state.count for c in state.coefficients)

    def aggregate(self, state: FadasState, parameters: Parameters) -> tuple[FadasState, Parameters]:
        mean = 1.0 / state.count
        optimizer = self._optimizer(state.highest_staleness)
        new = arithmetic.allocate_like({n: parameters[n] for n in state.sums})
        for name, total in state.sums.items():
            if name in parameters.non_trainable:
                arithmetic.step(parameters[name], mean, total, new[name])
            else:
                state.optimize(optimizer, name, parameters[name], scaled(total, mean), new[name])
        state.clear()
        return state, parameters.replace({**parameters, **new})

    def rate(self, highest_staleness: int) -> float:
        """Return η_t."""
        if self.delay_threshold is None or highest_staleness <= self.delay_threshold:
            return self.learning_rate
        if self.late_rate == "divide":
            return self.learning_rate / highest_staleness
        return min(self.learning_rate, 1.0 / highest_staleness)

    def _optimizer(self, highest_staleness: int) -> AmsGrad:
        return AmsGrad(self.rate(highest_staleness), self.beta_1, self.beta_2, self.epsilon)
