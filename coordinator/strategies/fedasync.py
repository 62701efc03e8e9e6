"""FedAsync: a new version from each update.

Xie, Koyejo, Gupta 2019, "Asynchronous Federated Optimization" (the server: x_t = (1 - α_t)·x_{t-1} + α_t·x_new with
α_t = α·s(t - τ)), with client weights q:

    a = min(1, α·s(τ)·q)          x ← (1 - a)·x + a·y          y = the participant's parameters

α never compounds: each update starts from the same α. The product is capped at 1, because a client weight may be above
1, and a larger a would throw the model beyond the participant's parameters. The paper's participants minimise their
loss plus ρ/2·‖x - x_t‖². Here that is `training.proximal_mu`, which is 0 unless it is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import blocks, next_version
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight, Polynomial
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.states.buffer import check_coefficient, check_payload
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.layout import Layout, layout_of
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters


@plain_dataclass(slots=True)
class PendingUpdate:
    """The update that waits for its aggregation, by reference; there is none between versions."""

    shapes: dict[str, tuple[int, ...]]
    """Shapes of the model's floating tensors."""
    payload: Parameters | None = None
    weight: float = 0.0
    layout: Layout | None = None
    """Layout of the floating tensors; None unless they share one dtype."""

    @property
    def count(self) -> int:
        return 0 if self.payload is None else 1

    def drop(self, group: int | None) -> None:  # noqa: ARG002 - there are no groups
        self.payload, self.weight = None, 0.0

    def arrays(self) -> dict[str, Array]:
        return {} if self.payload is None else {f"pending/{n}": self.payload[n] for n in self.shapes}

    def scalars(self) -> dict[str, Any]:
        return {"weight": self.weight}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedAsync:
    """A new version of each update. All floating tensors, BatchNorm statistics too, are mixed alike."""

    takes_new_tensors: ClassVar[bool] = True
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    """The mixing rate α of a fresh update."""
    staleness: AnyStalenessWeight = Polynomial(0.5)
    name: Literal["fedasync"] = "fedasync"

    @property
    def reply(self) -> Reply:
        return "parameters"

    @property
    def cohort(self) -> None:
        return None

    def init(self, parameters: Parameters) -> PendingUpdate:
        averaged = {n: parameters[n] for n in parameters.averaged()}
        return PendingUpdate({n: x.shape for n, x in averaged.items()}, layout=layout_of(averaged))

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> PendingUpdate:
        state = self.init(parameters)
        if not arrays:
            return state
        expected = {f"pending/{n}" for n in state.shapes}
        if arrays.keys() != expected:
            raise CheckpointError(
                f"the checkpoint's strategy state has the arrays {sorted(arrays)[:3]}..., expected "
                f"{sorted(expected)[:3]}...; resume with the strategy and model that wrote it"
            )
        state.payload = Parameters({n: arrays[f"pending/{n}"] for n in state.shapes})
        state.weight = float(scalars["weight"])
        return state

    def accumulate(self, state: PendingUpdate, update: ClientUpdate, staleness: int) -> PendingUpdate:
        if state.payload is not None:
            raise ValueError(
                f"update {update.update_id} came before the last one was aggregated: FedAsync makes a version of each"
            )
        if update.payload.layout is None or update.payload.layout is not state.layout:
            check_payload(update, state.shapes)
        weight = self.alpha * self.staleness(staleness) * update.client_weight
        check_coefficient(update, weight)
        state.payload, state.weight = update.payload, min(1.0, weight)
        return state

    def ready(self, state: PendingUpdate, now: float) -> bool:  # noqa: ARG002 - only cohorts look at the time
        return state.payload is not None

    def weights(self, state: PendingUpdate) -> tuple[float, ...]:
        """Return min(1, α·s·q)."""
        return () if state.payload is None else (state.weight,)

    def aggregate(self, state: PendingUpdate, parameters: Parameters) -> tuple[PendingUpdate, Parameters]:
        if state.payload is None:
            return state, parameters
        made, new = next_version(parameters)
        together = blocks(parameters, state.payload, made)
        if together is not None:
            arithmetic.lerp(together[0], together[1], state.weight, together[2])
        else:
            for name, out in new.items():
                arithmetic.lerp(parameters[name], state.payload[name], state.weight, out)
        state.payload, state.weight = None, 0.0
        return state, made
