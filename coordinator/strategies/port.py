"""Port: an update counts by its freshness, and by how well it agrees with where the model went meanwhile.

Su, Li 2022, "How Asynchronous can Federated Learning Be?" (IWQoS), the aggregation weights of Port, as its authors'
implementation (in Plato) has them, with client weights q for its shares of examples:

    at K updates   x ← x + Σ w_i·Δ_i        w_i ∝ q_i·(σ·(1 + cos(Δ_i, x_t - x_{t-τ}))/2 + ρ·β/(τ + β)),  Σ w_i = 1

The cosine is over all trainable floating tensors together, and 1 for a fresh update: nothing has moved that it could
disagree with. Port bounds the staleness of what it takes in; so does `run.max_staleness`. (That implementation takes
the cosine where τ > 1 alone, over all tensors, and with the model of two rounds before, whatever τ is.)

Memory and every checkpoint hold the models of the last `history` versions besides: an update that is staler than that
is compared with what the model did since the oldest of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.server_optimizers import Positive
from fedmq.coordinator.strategies.math.staleness_weights import NonNegative
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered
from fedmq.coordinator.strategies.states.buffer import BufferState, check_payload
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters


@plain_dataclass
class PortState(BufferState):
    """A buffer, and the trainable floating tensors of the last versions by reference, the current one last."""

    versions: list[dict[str, Array]] = field(default_factory=list)

    def direction(self, update: ClientUpdate, staleness: int) -> float:
        """The cosine between the update and what the model did since its base."""
        if staleness == 0:
            return 1.0
        base = max(0, len(self.versions) - 1 - staleness)
        return arithmetic.cosine(update.payload, self.versions[-1], self.versions[base])

    def arrays(self) -> dict[str, Array]:
        older = enumerate(self.versions[:-1])
        return super().arrays() | {f"version/{i}/{n}": x for i, tensors in older for n, x in tensors.items()}

    def scalars(self) -> dict[str, Any]:
        return super().scalars() | {"older_versions": len(self.versions) - 1}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        super().load({n: a for n, a in arrays.items() if not n.startswith("version/")}, scalars)
        (current,) = self.versions
        try:
            older = [{n: arrays[f"version/{i}/{n}"] for n in current} for i in range(scalars["older_versions"])]
        except KeyError as e:
            raise CheckpointError(
                f"the checkpoint's strategy state lacks the array {e}; resume with the strategy and model that wrote it"
            ) from e
        self.versions = [*older, current]
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Port(Buffered):
    """A new version at every `buffer_size` updates.

    Non-trainable floating tensors (BatchNorm statistics) take the same mean.
    """

    buffer_size: Annotated[int, Field(ge=1)] = 10
    similarity_weight: NonNegative = 1.0
    """σ."""
    staleness_weight: NonNegative = 1.0
    """ρ."""
    beta: Positive = 10.0
    """The staleness at which the second part has come down to a half."""
    history: Annotated[int, Field(ge=1)] = 5
    name: Literal["port"] = "port"

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.similarity_weight == 0 and self.staleness_weight == 0:
            raise ValueError(
                "similarity_weight and staleness_weight are both 0: no update would count; set one of them"
            )
        return self

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> PortState:
        state = PortState.zero(parameters, None)
        state.versions = [_trainable(parameters)]
        return state

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> PortState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: PortState, update: ClientUpdate, staleness: int) -> PortState:
        check_payload(update, {n: acc.shape for n, acc in state.sums.items()})
        agreement = (1.0 + state.direction(update, staleness)) / 2.0
        freshness = self.beta / (staleness + self.beta)
        factor = self.similarity_weight * agreement + self.staleness_weight * freshness
        state.add(update, factor * update.client_weight)
        return state

    def weights(self, state: PortState) -> tuple[float, ...]:
        """w_i; all 0 where every coefficient is."""
        mean = state.per_total()
        return tuple(mean * c for c in state.coefficients)

    def aggregate(self, state: PortState, parameters: Parameters) -> tuple[PortState, Parameters]:
        new = state.step(parameters, 1.0, state.per_total())
        state.versions = [*state.versions, _trainable(new)][-self.history - 1 :]
        state.clear()
        return state, new


def _trainable(parameters: Parameters) -> dict[str, Array]:
    return {n: parameters[n] for n in parameters.averaged() if n not in parameters.non_trainable}
