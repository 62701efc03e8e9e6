"""FedCompass: slow and fast participants come back together, because each gets as many steps as suit its speed.

Li et al. 2024, "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices Using a Computing
Power Aware Scheduler" (ICLR). The core decides the steps of each participant and the groups that wait for one another
(coordinator/decisions/participants/arrival_groups.py has the scheduler's rules). The strategy sums the updates of a
group when the group ends, with the updates that came late for an earlier group, and with client weights q:

    x ← x + η_g·(1/N)·Σ s(τ_i)·q_i·Δ_i

The divisor is N, all participants of the federation, and not the number of updates: a group of two moves the model as
much as two participants may. The aggregator of the authors' implementation (FedCompassAggregator in APPFL) has the same
divisor with `gradient_based`; η_g is its `alpha`, and Δ_i the negative of its gradients. Without `gradient_based` it
mixes parameters, as FedAsync does. That implementation also differs in these points:

- The update of a participant's first task belongs to no group. Here it makes a version together with the late updates.
  There it makes a version alone, and the late updates wait for a group.
- A participant's next update may come before its late one is in a version. Here both go into the model. There the next
  one replaces the late one.
- BatchNorm statistics move like the rest here, with η_g = 1. There the plain mean of the version's statistics replaces
  them.
- The defaults there are `alpha` = 0.9 and a constant s. Here they are FedBuff's: η_g = 1 and s(τ) = (1 + τ)^-½.
- Participants may decline, vanish and come back here: arrival_groups.py has the rules.
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
"""Name of the buffer of late updates; the buffer of a group is named by its number."""
MOST_STEPS = 10_000
"""Most steps of a task, as many as a task may ask for epochs."""
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]


@plain_dataclass(slots=True)
class CompassState:
    """A buffer for each group that has an update, and one for the late updates."""

    model: Parameters
    """Parameters of the current version, by reference: the pattern for the buffers of new groups."""
    buffers: dict[str, BufferState] = field(default_factory=dict)
    orders: dict[str, list[int]] = field(default_factory=dict)
    """buffer -> orders of its updates among all updates of the run."""
    accumulated: int = 0
    """Updates accumulated in the run."""
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

    def drop(self, group: int | None) -> None:
        """Lose the updates of a group, and the late ones."""
        for name in (LATE, str(group)):
            self.buffers.pop(name, None)
            self.orders.pop(name, None)
        self.closing = None

    def coefficients(self) -> list[float]:
        """Return the coefficients of the closing group's updates and of the late ones, in order of acceptance."""
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
        """Read what `arrays()` and `scalars()` gave. Raises CheckpointError if it belongs to something else."""
        buffers = scalars.get("buffers")
        unknown = sorted(n for n in arrays if buffers is None or n.partition("/")[0] not in buffers)
        if buffers is None or unknown:
            raise CheckpointError(
                f"the checkpoint's strategy state has no arrival groups, or it has unknown arrays {unknown[:3]}; "
                "resume with the strategy and model that wrote it"
            )
        for name, fields in buffers.items():
            own = {n.removeprefix(f"{name}/"): a for n, a in arrays.items() if n.startswith(f"{name}/")}
            self.buffers[name] = BufferState.zero(self.model, None).load(own, fields)
        self.orders = {name: [int(order) for order in orders] for name, orders in scalars["orders"].items()}
        self.accumulated = int(scalars["accumulated"])
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedCompass:
    """A new version at the end of each arrival group.

    Non-trainable floating tensors (BatchNorm statistics) move with rate 1.
    """

    num_participants: Annotated[int, Field(ge=1)]
    """N."""
    min_steps: Steps = 20
    max_steps: Steps = 100
    first_steps: Steps | None = None
    """Steps of a participant's first task; None means `max_steps`."""
    latest_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    """λ: longest duration of a group, as a multiple of its expected duration."""
    speed_momentum: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the newest measurement in a participant's speed."""
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
            there = ", ".join(state.buffers) or "none"
            raise ValueError(f"no update of group {group} is here; the groups with updates are: {there}")
        state.closing = str(group)
        return state

    def ready(self, state: CompassState, now: float) -> bool:  # noqa: ARG002 - the groups look at the time
        return state.closing is not None

    def weights(self, state: CompassState) -> tuple[float, ...]:
        """Return η_g·s·q/N."""
        return tuple(self.server_learning_rate * c / self.num_participants for c in state.coefficients())

    def aggregate(self, state: CompassState, parameters: Parameters) -> tuple[CompassState, Parameters]:
        if state.closing is None:
            raise ValueError("no group was closed: call close_group first")
        buffer, late = state.buffers.pop(state.closing), state.buffers.pop(LATE, None)
        if late is not None:
            buffer.merge(late)
        made = buffer.step(parameters, self.server_learning_rate, 1.0 / self.num_participants)
        for name in (state.closing, LATE):
            state.orders.pop(name, None)
        state.model, state.closing = made, None
        return state, made
