"""Port: an update counts by its freshness, and by how well it agrees with the model's way since its base.

Su, Li 2022, "How Asynchronous can Federated Learning Be?" (IWQoS): the aggregation weights of Port, as in its authors'
implementation (in Plato), with client weights q in the place of its shares of examples:

    at K updates   x ← x + Σ w_i·Δ_i        w_i ∝ q_i·(σ·(1 + cos(Δ_i, x_t - x_{t-τ}))/2 + ρ·β/(τ + β)),  Σ w_i = 1

The cosine is over all trainable floating tensors together. It is 1 for a fresh update, because nothing has moved that
the update could disagree with. Port bounds the staleness of the updates that it accepts; `run.max_staleness` does so
here. The authors' implementation takes the cosine only for τ > 1, over all tensors, and always with the model of two
rounds before.

RAM and every checkpoint also hold the models of the last `history` versions. An update that is staler than that is
compared with the model's way since the oldest of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.server_optimizers import Positive
from fedmq.coordinator.strategies.math.staleness_weights import NonNegative
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import MinUpdates, TimeoutS, check_timeout
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.coordinator.strategies.weighted_mean import MeanOfDeltas
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.parameters import Array, Parameters


@plain_dataclass
class PortState(BufferState):
    """A buffer, and the trainable floating tensors of the last versions, by reference, the current version last."""

    versions: list[dict[str, Array]] = field(default_factory=list)

    def cosine(self, update: ClientUpdate, staleness: int) -> float:
        """Return the cosine between the update and the model's way since the update's base."""
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
class Port(MeanOfDeltas):
    """A new version of every `buffer_size` updates. There is no server learning rate: the weights sum to 1."""

    takes_new_tensors: ClassVar[bool] = False
    buffer_size: Annotated[int, Field(ge=1)] = 10
    similarity_weight: NonNegative = 1.0
    """σ."""
    staleness_weight: NonNegative = 1.0
    """ρ."""
    beta: Positive = 10.0
    """β: the staleness at which the second part has come down to a half."""
    history: Annotated[int, Field(ge=1)] = 5
    """Older versions that are kept."""
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    min_updates: MinUpdates | None = field(default=None, kw_only=True)
    """None means 1."""
    name: Literal["port"] = "port"

    _timeout = model_validator(mode="after")(check_timeout)

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.similarity_weight == 0 and self.staleness_weight == 0:
            raise ValueError(
                "similarity_weight and staleness_weight are both 0: no update would count; set one of them"
            )
        return self

    def init(self, parameters: Parameters) -> PortState:
        state = PortState.zero(parameters, None)
        state.versions = [_trainable(parameters)]
        return state

    def weight(self, update: ClientUpdate, staleness: int, state: PortState) -> float:
        """Return q·(σ·(1 + cos)/2 + ρ·β/(τ + β))."""
        agreement = (1.0 + state.cosine(update, staleness)) / 2.0
        freshness = self.beta / (staleness + self.beta)
        factor = self.similarity_weight * agreement + self.staleness_weight * freshness
        return factor * update.client_weight

    def divisor(self, state: PortState) -> float:
        """Return the sum of the buffer's weights."""
        return state.total()

    def aggregate(self, state: PortState, parameters: Parameters) -> tuple[PortState, Parameters]:
        _, made = super().aggregate(state, parameters)
        state.versions = [*state.versions, _trainable(made)][-self.history - 1 :]
        return state, made


def _trainable(parameters: Parameters) -> dict[str, Array]:
    return {n: parameters[n] for n in parameters.averaged() if n not in parameters.non_trainable}
