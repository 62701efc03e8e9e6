"""The two forms of aggregation that strategies share: a buffer, and rounds or a buffer by choice."""

from __future__ import annotations

from typing import TypeVar

from fedmq.coordinator.strategies.fedavg import check_minimum, check_this_round, round_is_ready
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight
from fedmq.coordinator.strategies.protocol import ClientUpdate, Cohort, State
from fedmq.coordinator.strategies.states.buffer import BufferState

S = TypeVar("S", bound=BufferState)


class Buffered:
    """A new version of every `buffer_size` updates, for a strategy that declares this hyper-parameter."""

    buffer_size: int

    @property
    def cohort(self) -> None:
        return None

    def ready(self, state: State, now: float) -> bool:  # noqa: ARG002 - only cohorts look at the time
        return state.count >= self.buffer_size


class RoundsOrBuffer:
    """Synchronous rounds like FedAvg's, or with a `buffer_size` a new version of every so many updates.

    The strategy declares these hyper-parameters. The defaults of the rounds' four are 10, 1, 600 and 1.
    """

    name: str
    cohort_size: int
    over_selection: float
    round_deadline_s: float
    min_updates: int
    buffer_size: int | None
    staleness: AnyStalenessWeight | None

    def check_form(self) -> None:
        """Raise ValueError if hyper-parameters of both forms are set."""
        check_minimum(self.min_updates, self.cohort_size)
        rounds = (self.cohort_size, self.over_selection, self.round_deadline_s, self.min_updates)
        if self.buffer_size is not None and rounds != (10, 1.0, 600.0, 1):
            raise ValueError(
                f"buffer_size = {self.buffer_size} makes {self.name} asynchronous, and cohort_size, over_selection, "
                "round_deadline_s and min_updates belong to synchronous rounds: leave out the one or the others"
            )
        if self.buffer_size is None and self.staleness is not None:
            raise ValueError("staleness has no effect in synchronous rounds: leave it out, or set buffer_size")

    @property
    def cohort(self) -> Cohort | None:
        if self.buffer_size is not None:
            return None
        return Cohort(self.cohort_size, self.over_selection, self.round_deadline_s, self.min_updates)

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
