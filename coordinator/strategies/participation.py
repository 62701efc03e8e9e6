"""Participation correction: FedBuff in which the updates of rare participants count for more.

In an asynchronous run a participant gives a share p_i of the updates, a fast one more than a slow one, and FedBuff goes
to the optimum of Σ p_i·f_i. The weights w_i = 1/(N·p_i) make it the optimum of the plain mean (1/N)·Σ f_i:

    at K updates   x ← x + η_g·(1/K)·Σ w_i·q_i·Δ_i

p_i is not known. It is measured (`measure`), each time by a mean over the participant's updates so far:

    staleness   w_i = (K·τ̄_i + 1)/N        τ̄_i versions are K·τ̄_i updates, and one more is its own
    duration    w_i = T̄_i·(1/N)·Σ_j 1/T̄_j  T_i: training time; one that always trains gives 1/T_i updates a second
    interval    w_i = S̄_i/N                S_i: accepted updates from its last one to this one; w_i = 1 for its first

T_i is what participants say. So w_i is at most ten times 1/(N·p_i) with the share p_i of the updates so far: one that
claims to train in no time lifts the weights of the others by no more than that. The divisor is fixed. The sum of the
weights in the buffer (FedStaleWeight) would bring a part of the bias back, because a buffer of slow participants would
count as much as one of fast participants. The first two measures assume that every participant has a task at all times
(`concurrency` is their number or more). `interval` holds for any selection, and begins with a participant's second
update.

`staleness` uses the average staleness of Ma, Tu, Chen, Reddi 2024, "FedStaleWeight"; their test bench has this form, by
the staleness of single updates. `interval` is the online estimate of Wang, Ji 2024, "A Lightweight Method for Tackling
Unknown Participation Statistics in Federated Averaging" (FedAU), counted in updates and not in rounds. FedAU takes the
time to a participant's first update for its first interval, and cuts intervals off at a length. Here a first update
gives no interval, and `max_weight` caps the mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.coordinator.strategies.states.participation_counts import CountingBufferState
from fedmq.coordinator.strategies.weighted_mean import WeightedMean
from fedmq.schemas.parameters import Parameters

SHORTEST_S = 1e-6
"""The duration of a training that reports none."""
MOST_OF_SEEN = 10.0
"""Largest weight by durations, as a multiple of the weight by the updates that were seen."""
LONGEST_S = 1e9
"""The longest duration that counts, 30 years: a participant's claim must not make a weight that no sum can hold."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ParticipationCorrection(WeightedMean):
    """A new version of every `buffer_size` updates."""

    measure: Literal["staleness", "duration", "interval"] = "staleness"
    num_participants: Annotated[int, Field(ge=1)] | None = None
    """N; None counts those that have sent an update. `duration` always does."""
    max_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """An upper limit on w: less variance from rare participants, for some bias against them."""
    name: Literal["participation"] = "participation"

    def init(self, parameters: Parameters) -> CountingBufferState:
        return CountingBufferState.zero(parameters, None)

    def weight(self, update: ClientUpdate, staleness: int, state: CountingBufferState) -> float:
        """Return w·q."""
        measured = self._measured(update, staleness, state)
        w = 1.0 if measured is None else self._correction(update.participant_id, measured, state)
        return w * update.client_weight

    def accumulate(self, state: CountingBufferState, update: ClientUpdate, staleness: int) -> Any:
        super().accumulate(state, update, staleness)
        state.record(update.participant_id, self._measured(update, staleness, state))
        return state

    def weights(self, state: CountingBufferState) -> tuple[float, ...]:
        """Return η_g·w·q/K, multiplied before it is divided: ledgers are verified to the last bit."""
        return tuple(self.server_learning_rate * c / state.count for c in state.coefficients)

    def _measured(self, update: ClientUpdate, staleness: int, state: CountingBufferState) -> float | None:
        """Return τ, T or S of this update; None if it is the first and has no S."""
        if self.measure == "staleness":
            return float(staleness)
        if self.measure == "duration":
            return min(max(update.train_s, SHORTEST_S), LONGEST_S)
        last = state.participation.last.get(update.participant_id)
        return None if last is None else float(state.order + 1 - last)

    def _correction(self, participant_id: str, measured: float, state: CountingBufferState) -> float:
        counts = state.participation
        mean = counts.mean_with(participant_id, measured)
        if self.measure == "duration":
            given = counts.counts.get(participant_id, 0) + 1
            seen = (state.order + 1) / (counts.known_with(participant_id) * given)
            w = min(mean * counts.mean_reciprocal_with(participant_id, measured), MOST_OF_SEEN * seen)
        else:
            known = self.num_participants or counts.known_with(participant_id)
            w = (mean if self.measure == "interval" else self.buffer_size * mean + 1.0) / known
        return w if self.max_weight is None else min(w, self.max_weight)
