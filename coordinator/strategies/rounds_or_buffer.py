"""The two forms of aggregation that strategies share: a buffer, and rounds or a buffer by choice.

A buffer that does not fill may make its version after `buffer_timeout_s`. What a strategy divides by the number of
updates K is then divided by the number that is there: a mean stays a mean.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field

from fedmq.coordinator.strategies.fedavg import check_minimum, check_this_round, round_is_ready
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight
from fedmq.coordinator.strategies.protocol import BufferTimeout, ClientUpdate, Cohort, State
from fedmq.coordinator.strategies.states.buffer import BufferState

S = TypeVar("S", bound=BufferState)
TimeoutS = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Run time (seconds) after its first update at which a buffer makes a version of what is there."""
MinUpdates = Annotated[int, Field(ge=1)]
"""Fewest updates that make a version by the timeout."""


class Buffered:
    """A new version of every `buffer_size` updates, for a strategy that declares these hyper-parameters.

    The timeout's two are None by default: there is no timeout, and 1 update is enough for one.
    """

    buffer_size: int
    buffer_timeout_s: float | None = None
    min_updates: int | None = None

    @property
    def cohort(self) -> None:
        return None

    @property
    def buffer_timeout(self) -> BufferTimeout | None:
        if self.buffer_timeout_s is None:
            return None
        return BufferTimeout(self.buffer_timeout_s, self.min_updates or 1)

    def ready(self, state: State, now: float) -> bool:  # noqa: ARG002 - only cohorts look at the time
        return state.count >= self.buffer_size


class RoundsOrBuffer:
    """Synchronous rounds like FedAvg's, or with a `buffer_size` a new version of every so many updates.

    The strategy declares these hyper-parameters. The defaults of the rounds' four are 10, 1, 600 and 1. `min_updates`
    also belongs to a buffer with a timeout.
    """

    name: str
    cohort_size: int
    over_selection: float
    round_deadline_s: float
    min_updates: int
    buffer_size: int | None
    buffer_timeout_s: float | None
    staleness: AnyStalenessWeight | None

    def check_form(self) -> None:
        """Raise ValueError if hyper-parameters of both forms are set."""
        if self.buffer_size is None:
            check_minimum(self.min_updates, self.cohort_size)
            if self.staleness is not None:
                raise ValueError("staleness has no effect in synchronous rounds: leave it out, or set buffer_size")
            if self.buffer_timeout_s is not None:
                raise ValueError(
                    f"buffer_timeout_s = {self.buffer_timeout_s} has no effect in synchronous rounds: set "
                    "round_deadline_s in its place, or set buffer_size"
                )
            return
        rounds = (self.cohort_size, self.over_selection, self.round_deadline_s)
        if rounds != (10, 1.0, 600.0) or (self.min_updates != 1 and self.buffer_timeout_s is None):
            raise ValueError(
                f"buffer_size = {self.buffer_size} makes {self.name} asynchronous, and cohort_size, over_selection, "
                "round_deadline_s and min_updates belong to synchronous rounds: leave out the one or the others. "
                "min_updates goes with a buffer_timeout_s too"
            )
        check_buffer_minimum(self.min_updates, self.buffer_size)

    @property
    def cohort(self) -> Cohort | None:
        if self.buffer_size is not None:
            return None
        return Cohort(self.cohort_size, self.over_selection, self.round_deadline_s, self.min_updates)

    @property
    def buffer_timeout(self) -> BufferTimeout | None:
        if self.buffer_size is None or self.buffer_timeout_s is None:
            return None
        return BufferTimeout(self.buffer_timeout_s, self.min_updates)

    def open_round(self, state: S, now: float) -> S:
        state.opened_at_s = now
        return state

    def coefficient(self, update: ClientUpdate, staleness: int) -> float:
        """Return s(τ)·q. Raises ValueError for an update that is stale in a round."""
        if self.buffer_size is None:
            check_this_round(update, staleness)
        freshness = 1.0 if self.staleness is None else self.staleness(staleness)
        return freshness * update.client_weight

    def ready(self, state: BufferState, now: float) -> bool:
        cohort = self.cohort
        return state.count >= (self.buffer_size or 1) if cohort is None else round_is_ready(state, cohort, now)


def check_timeout(strategy: Any) -> Any:
    """Validate the timeout of a `Buffered` strategy, and return the strategy.

    Raises ValueError for a `min_updates` without effect.
    """
    if strategy.buffer_timeout_s is None and strategy.min_updates is not None:
        raise ValueError(
            f"min_updates = {strategy.min_updates} has no effect without a buffer_timeout_s: set one, or leave it out"
        )
    check_buffer_minimum(strategy.min_updates or 1, strategy.buffer_size)
    return strategy


def check_buffer_minimum(min_updates: int, buffer_size: int) -> None:
    """Raise ValueError if a buffer would be full before it has enough for its timeout."""
    if min_updates > buffer_size:
        raise ValueError(
            f"min_updates = {min_updates} is more than buffer_size = {buffer_size}: the buffer is full before, and the "
            "timeout would have no effect; set it to the buffer's size or less"
        )
