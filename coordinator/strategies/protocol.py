"""What a strategy is: a small frozen value with pure functions (design.md, section 3).

    state = strategy.init(parameters)
    state = strategy.accumulate(state, update, staleness)      for each accepted update
    if strategy.ready(state, now):
        weights = strategy.weights(state)                       for the ledger: one per accumulated update
        state, parameters = strategy.aggregate(state, parameters)

A strategy never mutates its hyper-parameters nor the `parameters` it is given (tasks of older versions may still
be sent from them); it may update arrays inside its own state in place. State is a plain object with
`arrays()`/`scalars()` for the checkpoint and is rebuilt by `strategy.restore(arrays, scalars, parameters)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy.typing as npt

from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters

Arrays = Mapping[str, npt.NDArray[Any]]


class ClientUpdate(NamedTuple):
    """One accepted update, as a strategy sees it."""

    update_id: str
    participant_id: str
    base_version: int
    payload: Parameters
    """Floating tensors only, `Parameters.averaged()` of the model: the delta or the parameters, as `reply` says."""
    num_examples: int
    num_steps: int = 1
    metrics: Mapping[str, float] = MappingProxyType({})
    client_weight: float = 1.0
    """q_i (coordinator.strategies.math.client_weights), mean 1 over known participants."""
    train_s: float = 0.0
    """How long its participant trained, by its own clock."""
    beside: Mapping[str, Parameters] = MappingProxyType({})
    """The method's groups of tensors (`schemas.methods`), as its `reply` has them."""
    first: bool = True
    """Whether it is the first that was accepted of its participant, for methods whose participants remember."""
    group: int | None = None
    """The arrival group that it came in time for; None where it came late, or where the strategy has none."""


class State(Protocol):
    """A strategy's memory between updates."""

    @property
    def count(self) -> int:
        """Updates accumulated since the last aggregation."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays for the checkpoint, by names of the state's own choosing."""

    def scalars(self) -> dict[str, Any]:
        """Everything else for the checkpoint, as JSON values (floats survive `repr` exactly)."""


MEMORY = "memory/"
"""restore() is given what `RemembersParticipants` gave as arrays named memory/{participant_id}/{tensor}."""


@runtime_checkable
class RemembersParticipants(Protocol):
    """What a state has in addition where it holds arrays of each participant: too many to be written at every commit.

    They are not in `arrays()`. A strategy with such a state bounds it, by `max_participants`.
    """

    def changed_memories(self) -> dict[str, Mapping[str, npt.NDArray[Any]]]:
        """participant -> tensor -> array, of those that changed since the last call. These arrays are replaced and
        never changed in place, because a commit may write them later."""


def max_participants(strategy: Strategy[Any]) -> int | None:
    """How many participants a strategy has room for, by its optional attribute of this name; None is any number.

    The first so many to say hello are in; those that come later get no tasks.
    """
    return getattr(strategy, "max_participants", None)


@runtime_checkable
class SendsBeside(Protocol):
    """What a state has in addition where tasks carry groups of tensors beside the parameters (`schemas.methods`)."""

    def beside(self, parameters: Parameters) -> Mapping[str, Mapping[str, npt.NDArray[Any]]]:
        """group -> tensor -> array, for tasks that start from `parameters`, which are the current ones. These arrays
        are never changed in place: tasks of this version may be sent later."""


S = TypeVar("S", bound=State)


class Strategy(Protocol[S]):
    """See the module docstring."""

    @property
    def name(self) -> str:
        """The word for it in a federation file: "fedasync", "fedbuff", "fedavg"."""

    @property
    def reply(self) -> Reply:
        """What participants must send back."""

    @property
    def cohort(self) -> Cohort | None:
        """None for asynchronous strategies; the round's shape for synchronous ones."""

    def init(self, parameters: Parameters) -> S: ...

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> S: ...

    def accumulate(self, state: S, update: ClientUpdate, staleness: int) -> S: ...

    def ready(self, state: S, now: float) -> bool: ...

    def weights(self, state: S) -> tuple[float, ...]:
        """The aggregation coefficient of each accumulated update, in order of arrival: for FedBuff η_g·s·q/K, for
        FedAsync α·s·q, for FedAvg α_i."""

    def aggregate(self, state: S, parameters: Parameters) -> tuple[S, Parameters]: ...


@dataclass(frozen=True, slots=True)
class Cohort:
    """A synchronous round: the core asks ceil(size·over_selection) participants, takes the first `size` updates, and
    at the deadline goes on with at least `min_updates` or asks others."""

    size: int
    over_selection: float
    deadline_s: float
    min_updates: int


class Synchronous(Strategy[S], Protocol[S]):
    """What a strategy with a cohort has in addition."""

    def open_round(self, state: S, now: float) -> S:
        """A round begins now (also when a deadline is extended): `ready` counts the deadline from here."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrival groups (coordinator.decisions.arrival_groups): participants get as many steps, within bounds, as bring
    them back when the others of a group are expected."""

    min_steps: int
    max_steps: int
    first_steps: int
    """Of a participant whose speed is not known yet, and who is in no group."""
    latest_factor: float
    """A group ends at the latest this many times as long after its beginning as it is expected to take."""
    speed_momentum: float
    """What the newest measurement counts in a participant's speed."""


class Grouped(Strategy[S], Protocol[S]):
    """What a strategy with arrival groups has in addition. Its updates come with a `group`, and a version is made of
    one group's and of all late ones, so that updates of other groups that came before stay for another version."""

    @property
    def arrivals(self) -> Arrivals: ...

    def close_group(self, state: S, group: int) -> S:
        """The next version is of this group, which has an update: `weights` and `aggregate` are of it and of the late
        ones, in order of acceptance, and until then the strategy is `ready`."""


def arrivals(strategy: Strategy[Any]) -> Arrivals | None:
    """A strategy's arrival groups, by its optional attribute of this name."""
    return getattr(strategy, "arrivals", None)
