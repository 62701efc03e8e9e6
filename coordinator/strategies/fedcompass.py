"""FedCompass: slow and fast participants come back together, because each is asked for as many steps as it makes.

Li et al. 2024, "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices Using a Computing
Power Aware Scheduler" (ICLR). Who is asked for how many steps, and who waits for whom, is decided by the core
(coordinator.decisions.arrival_groups, with the scheduler's rules). The strategy adds a group's updates up when it
ends, with those that came late for an earlier one, and with client weights q:

    x ← x + η_g·(1/N)·Σ s(τ_i)·q_i·Δ_i

The divisor is N, all participants of the federation, and not the number of updates: a group of two moves the model as
much as two participants may. So has it the aggregator of the authors' implementation with `gradient_based`
(FedCompassAggregator in APPFL; η_g is its `alpha`, Δ_i the negative of its gradients; without `gradient_based` it mixes
in parameters, as FedAsync does). What is different from that implementation here:

- The update of a participant's first task, which belongs to no group, makes a version with the late updates, if there
  are any. There it makes one alone, and the late ones wait for a group.
- A participant whose update is late, and whose next one comes before the late one is in a version, has both in the
  model. There the next one takes the late one's place.
- BatchNorm statistics move as the rest does, with η_g = 1. There the plain mean of those in the version replaces them.
- `alpha` is 0.9 and s constant there where nothing is set; here η_g is 1 and s(τ) = (1 + τ)^-½, as FedBuff has them.
- Participants may decline, vanish and come back: arrival_groups.py has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight, Polynomial
from fedmq.coordinator.strategies.protocol import Arrays, Arrivals, ClientUpdate
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters

LATE = "late"
"""The buffer of what came late; a group's is called by its number."""
MOST_STEPS = 10_000
"""As many epochs as a task may ask for."""
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]


@plain_dataclass(slots=True)
class CompassState:
    """A buffer for each group that has an update, and one for late ones."""

    model: Parameters
    """Of the current version, by reference: what the buffers of new groups are made after."""
    buffers: dict[str, BufferState] = field(default_factory=dict)
    orders: dict[str, list[int]] = field(default_factory=dict)
    """Of the updates in each buffer, among all of the run."""
    accumulated: int = 0
    """Updates in the run."""
    closing: str | None = None

    @property
    def count(self) -> int:
        return sum(buffer.count for buffer in self.buffers.values())

    def accumulate(self, update: ClientUpdate, coefficient: float) -> None:
        """Add an update to its group's buffer. Raises ValueError, and changes nothing, if it does not fit."""
        name = LATE if update.group is None else str(update.group)
        buffer = self.buffers.get(name) or BufferState.zero(self.model, None)
        buffer.accumulate(update, coefficient)
        self.buffers[name] = buffer
        self.accumulated += 1
        self.orders.setdefault(name, []).append(self.accumulated)

    def coefficients(self) -> list[float]:
        """Of the group that is closing and of late ones, in order of acceptance."""
        names = [name for name in (LATE, self.closing) if name in self.buffers]
        pairs = [p for n in names if n for p in zip(self.orders[n], self.buffers[n].coefficients, strict=True)]
        return [coefficient for _, coefficient in sorted(pairs)]

    def arrays(self) -> dict[str, Array]:
        return {f"{name}/{n}": a for name, buffer in self.buffers.items() for n, a in buffer.arrays().items()}

    def scalars(self) -> dict[str, Any]:
        return {
            "accumulated": self.accumulated,
            "orders": {name: list(orders) for name, orders in self.orders.items()},
            "buffers": {name: buffer.scalars() for name, buffer in self.buffers.items()},
        }

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        """Take over what `arrays()` and `scalars()` gave; raises CheckpointError where it is of something else."""
        buffers = scalars.get("buffers")
        unknown = sorted(n for n in arrays if buffers is None or n.partition("/")[0] not in buffers)
        if buffers is None or unknown:
            raise CheckpointError(
                f"the checkpoint's strategy state tells nothing of arrival groups, or has unknown arrays "
                f"{unknown[:3]}; resume with the strategy and model that wrote it"
            )
        for name, fields in buffers.items():
            own = {n.removeprefix(f"{name}/"): a for n, a in arrays.items() if n.startswith(f"{name}/")}
            self.buffers[name] = BufferState.zero(self.model, None).load(own, fields)
        self.orders = {name: [int(order) for order in orders] for name, orders in scalars["orders"].items()}
        self.accumulated = int(scalars["accumulated"])
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedCompass:
    """A new version whenever an arrival group ends.

    Non-trainable floating tensors (BatchNorm statistics) move with rate 1.
    """

    num_participants: Annotated[int, Field(ge=1)]
    """N."""
    min_steps: Steps = 20
    max_steps: Steps = 100
    first_steps: Steps | None = None
    """Of a participant's first task; None is `max_steps`."""
    latest_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    """λ: a group's latest time is so many times as far from its opening as its expected one."""
    speed_momentum: Annotated[float, Field(gt=0, le=1)] = 0.9
    """What the newest measurement counts in a participant's speed."""
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    staleness: AnyStalenessWeight = Polynomial(0.5)
    name: Literal["fedcompass"] = "fedcompass"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is more than max_steps = {self.max_steps}: swap them")
        return self

    @property
    def reply(self) -> Reply:
        return "delta"

    @property
    def cohort(self) -> None:
        return None

    @property
    def arrivals(self) -> Arrivals:
        first = self.max_steps if self.first_steps is None else self.first_steps
        return Arrivals(self.min_steps, self.max_steps, first, self.latest_factor, self.speed_momentum)

    def init(self, parameters: Parameters) -> CompassState:
        return CompassState(parameters)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> CompassState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: CompassState, update: ClientUpdate, staleness: int) -> CompassState:
        state.accumulate(update, self.staleness(staleness) * update.client_weight)
        return state

    def close_group(self, state: CompassState, group: int) -> CompassState:
        if str(group) not in state.buffers:
            raise ValueError(f"no update of group {group} is here, but of {', '.join(state.buffers) or 'none'}")
        state.closing = str(group)
        return state

    def ready(self, state: CompassState, now: float) -> bool:  # noqa: ARG002 - the groups ask for the time
        return state.closing is not None

    def weights(self, state: CompassState) -> tuple[float, ...]:
        """η_g·s·q/N."""
        return tuple(self.server_learning_rate * c / self.num_participants for c in state.coefficients())

    def aggregate(self, state: CompassState, parameters: Parameters) -> tuple[CompassState, Parameters]:
        if state.closing is None:
            raise ValueError("no group was closed")
        buffer, late = state.buffers.pop(state.closing), state.buffers.pop(LATE, None)
        if late is not None:
            buffer.merge(late)
        made = buffer.step(parameters, self.server_learning_rate, 1.0 / self.num_participants)
        for name in (state.closing, LATE):
            state.orders.pop(name, None)
        state.model, state.closing = made, None
        return state, made
