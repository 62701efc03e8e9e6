"""The strategy protocol: a small frozen value with pure functions.

    state = strategy.init(parameters)
    state = strategy.accumulate(state, update, staleness)      for each accepted update
    if strategy.ready(state, now):
        weights = strategy.weights(state)                       for the ledger: one per accumulated update
        state, parameters = strategy.aggregate(state, parameters)

A strategy never changes its hyper-parameters, and never the `parameters` that it is given: tasks of older versions may
still be sent from them. It may change the arrays of its own state in place. A state is a plain object. Its `arrays()`
and `scalars()` go into the checkpoint, and `strategy.restore(arrays, scalars, parameters)` rebuilds it from them.
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
    """An accepted update, as a strategy sees it."""

    update_id: str
    participant_id: str
    base_version: int
    payload: Parameters
    """The delta or the parameters, as the strategy's `reply` says: the model's floating tensors, and no others."""
    num_examples: int
    num_steps: int = 1
    metrics: Mapping[str, float] = MappingProxyType({})
    client_weight: float = 1.0
    """q_i (math/client_weights.py). Its mean over the known participants is 1."""
    train_s: float = 0.0
    """Training time in seconds, by the participant's own clock."""
    beside: Mapping[str, Parameters] = MappingProxyType({})
    """group -> tensors: the groups that the method's updates carry beside the payload (`schemas.methods`)."""
    first: bool = True
    """True if this is the participant's first accepted update, for methods whose participants remember."""
    group: int | None = None
    """The arrival group that the update was in time for; None if it was late, or if the strategy has no groups."""


class State(Protocol):
    """The state of a strategy between updates."""

    @property
    def count(self) -> int:
        """Number of updates accumulated since the last aggregation."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays for the checkpoint, by names that the state chooses."""

    def scalars(self) -> dict[str, Any]:
        """Return everything else for the checkpoint, as JSON values (floats survive `repr` exactly)."""


MEMORY = "memory/"
"""Prefix of the method's memory among the arrays that `restore` is given: memory/{participant_id}/{tensor}."""


@runtime_checkable
class RemembersParticipants(Protocol):
    """The addition to a state that holds arrays of each participant, the method's memory.

    They are too many to be written at every commit, so they are not in `arrays()`. The strategy bounds their number by
    `max_participants`.
    """

    def changed_memories(self) -> dict[str, Mapping[str, npt.NDArray[Any]]]:
        """Return participant -> tensor -> array, for the participants whose arrays changed since the last call.

        These arrays are replaced and never changed in place, because a commit may write them later.
        """


@runtime_checkable
class DropsBuffer(Protocol):
    """The addition to a state that can lose the updates that no version holds yet.

    It is called on a state that is finite and whole, after a version of these updates failed. A state without it is
    replaced by `strategy.init(parameters)`.
    """

    def drop(self, group: int | None) -> None:
        """Take out the updates since the last version; with arrival groups, those of this group and the late ones.

        What participants remember of their accepted updates must still fit the state.
        """


def takes_new_tensors(strategy: Strategy[Any]) -> bool:
    """Return True if a strategy's state may grow by tensors between two versions: its optional attribute of this name.

    Then `restore` must take the arrays of a state between two versions, with those of `init` for the new tensors.
    """
    return bool(getattr(strategy, "takes_new_tensors", False))


def max_participants(strategy: Strategy[Any]) -> int | None:
    """Return the number of participants that a strategy has room for: its optional attribute of this name.

    None means any number. The first participants to say hello get the places
    (decisions.participants.places); others get no tasks.
    """
    return getattr(strategy, "max_participants", None)


@runtime_checkable
class SendsBeside(Protocol):
    """The addition to a state whose tasks carry groups of tensors beside the parameters (`schemas.methods`)."""

    def beside(self, parameters: Parameters) -> Mapping[str, Mapping[str, npt.NDArray[Any]]]:
        """Return group -> tensor -> array, for tasks that start from `parameters`, the current ones.

        These arrays are never changed in place: tasks of this version may be sent later.
        """


S = TypeVar("S", bound=State)


class Strategy(Protocol[S]):
    """A frozen dataclass with these functions; see the top of this file."""

    @property
    def name(self) -> str:
        """The strategy's name in a federation file, as "fedasync", "fedbuff" or "fedavg"."""

    @property
    def reply(self) -> Reply:
        """The kind of tensors that participants must send back."""

    @property
    def cohort(self) -> Cohort | None:
        """The shape of a synchronous round; None for an asynchronous strategy."""

    def init(self, parameters: Parameters) -> S:
        """Return the state before the first update."""

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> S:
        """Return the state that gave these arrays and scalars. Raises CheckpointError if they are of something else."""

    def accumulate(self, state: S, update: ClientUpdate, staleness: int) -> S:
        """Return the state with one more update in it. If it raises, the state is as it was."""

    def ready(self, state: S, now: float) -> bool:
        """Return True if the next version is due at this run time (seconds)."""

    def weights(self, state: S) -> tuple[float, ...]:
        """Return the aggregation coefficient of each accumulated update, in order of arrival.

        It is η_g·s·q/K for FedBuff, α·s·q for FedAsync and α_i for FedAvg.
        """

    def aggregate(self, state: S, parameters: Parameters) -> tuple[S, Parameters]:
        """Return the state after the next version, and the version's parameters."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """The shape of a synchronous round.

    The core asks ceil(size·over_selection) participants and takes the first `size` updates. At the deadline it goes on
    if it has at least `min_updates`, and asks other participants if it has fewer.
    """

    size: int
    over_selection: float
    deadline_s: float
    min_updates: int


@dataclass(frozen=True, slots=True)
class BufferTimeout:
    """The time after which a buffer that does not fill makes a version (decisions.versions.buffer_timer)."""

    timeout_s: float
    """Run time since the buffer's first update (seconds)."""
    min_updates: int
    """Fewest updates of such a version."""


def buffer_timeout(strategy: Strategy[Any]) -> BufferTimeout | None:
    """Return the timeout of a strategy's buffer: its optional attribute of this name; None if the buffer has none."""
    found = getattr(strategy, "buffer_timeout", None)
    return found if isinstance(found, BufferTimeout) else None


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The models that a version is distilled from. No array of it is ever changed in place."""

    start: Parameters
    """The parameters to begin with: the version that the plain aggregation makes."""
    models: tuple[Parameters, ...]
    weights: tuple[float, ...]
    """Weight of each model's logits in their mean; the sum is 1."""


@runtime_checkable
class Distils(Protocol):
    """The addition to a strategy whose versions are distilled (decisions.versions.distilling).

    `ensemble` is asked when the strategy is `ready`. The answer is adopted; `aggregate` makes the version if there is
    none.
    """

    @property
    def distil_timeout_s(self) -> float:
        """Run time (seconds) that a distillation may take."""

    def ensemble(self, state: Any, parameters: Parameters) -> Ensemble:
        """Return what the next version is to be distilled from, and change nothing. Without models it is not."""

    def adopt(self, state: Any, parameters: Parameters, distilled: Parameters) -> tuple[Any, Parameters]:
        """Return the state after a version that was distilled, and the version. In place of `aggregate`."""


class Synchronous(Strategy[S], Protocol[S]):
    """The addition to a strategy that has a cohort."""

    def open_round(self, state: S, now: float) -> S:
        """Begin a round, or extend its deadline: `ready` counts the deadline from `now`, in run time (seconds)."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Settings of arrival groups (`coordinator.decisions.participants.arrival_groups`).

    A participant gets as many local steps, within bounds, as bring it back when the others of its group are expected.
    """

    min_steps: int
    max_steps: int
    first_steps: int
    """Steps of a participant whose speed is not known yet; it is in no group."""
    latest_factor: float
    """Longest duration of a group, as a multiple of its expected duration."""
    speed_momentum: float
    """Share of the newest measurement in a participant's speed."""


class Grouped(Strategy[S], Protocol[S]):
    """The addition to a strategy that has arrival groups.

    Its updates come with a `group`. A version is made of one group's updates and of all late ones. Updates of other
    groups wait for another version, even if they came earlier.
    """

    @property
    def arrivals(self) -> Arrivals: ...

    def close_group(self, state: S, group: int) -> S:
        """Make the next version one of this group, which has an update; the strategy is `ready` until it is made.

        `weights` and `aggregate` take the group's updates and the late ones, in order of acceptance.
        """


def arrivals(strategy: Strategy[Any]) -> Arrivals | None:
    """Return the settings of a strategy's arrival groups: its optional attribute of this name."""
    return getattr(strategy, "arrivals", None)
