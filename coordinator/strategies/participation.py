"""Participation correction: FedBuff whose updates count for more, the more rarely their participant takes part.

In an asynchronous run a participant gives a share p_i of the updates, a fast one more than a slow one, and FedBuff goes
to the optimum of Σ p_i·f_i. Weights w_i = 1/(N·p_i) make it that of the plain mean (1/N)·Σ f_i:

    at K updates   x ← x + η_g·(1/K)·Σ w_i·q_i·Δ_i

p_i is not known, but measured (`measure`), each by a mean over the participant's updates so far:

    staleness   w_i = (K·τ̄_i + 1)/N        τ̄_i versions are K·τ̄_i updates, and one more is its own
    duration    w_i = T̄_i·(1/N)·Σ_j 1/T̄_j  T_i: how long it trained; who always trains gives 1/T_i updates a second
    interval    w_i = S̄_i/N                S_i: accepted updates from its last one to this one; 1 for its first

The divisors are fixed: dividing by the sum of the weights in the buffer instead (FedStaleWeight) brings a part of the
bias back, because a buffer of slow participants would count as much as one of fast ones. The first two measures take it
that every participant has a task at all times (`concurrency` is their number or more); `interval` holds for any
selection, and needs a participant's second update to begin.

The first is by the average staleness of Ma, Tu, Chen, Reddi 2024, "FedStaleWeight" (whose authors' test bench has this
form, of single updates' staleness). The third is the online estimate of Wang, Ji 2024, "A Lightweight Method for
Tackling Unknown Participation Statistics in Federated Averaging" (FedAU), in updates for its rounds. FedAU takes the
time to a participant's first update for its first interval, and cuts intervals off at a length; here the first update
tells none, and `max_weight` caps the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered
from fedmq.coordinator.strategies.states.participation_counts import TallyState
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Parameters

SHORTEST_S = 1e-6
"""What a training of no measured duration counts as."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ParticipationCorrection(Buffered):
    """A new version at every `buffer_size` updates.

    Non-trainable floating tensors (BatchNorm statistics) take the same mean with rate 1.
    """

    buffer_size: Annotated[int, Field(ge=1)] = 10
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    measure: Literal["staleness", "duration", "interval"] = "staleness"
    num_participants: Annotated[int, Field(ge=1)] | None = None
    """N; None counts those that have sent an update. `duration` always does."""
    max_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """An upper limit on w: less variance from rare participants, for some bias against them."""
    name: Literal["participation"] = "participation"

    @property
    def reply(self) -> Reply:
        return "delta"

    def init(self, parameters: Parameters) -> TallyState:
        return TallyState.zero(parameters, None)

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> TallyState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: TallyState, update: ClientUpdate, staleness: int) -> TallyState:
        value = self._value(state, update, staleness)
        state.add(update, self._weight(state, update.participant_id, value) * update.client_weight)
        state.order += 1
        state.tally.add(update.participant_id, state.order, value)
        return state

    def _value(self, state: TallyState, update: ClientUpdate, staleness: int) -> float | None:
        """What this update tells of its participant."""
        if self.measure == "staleness":
            return float(staleness)
        if self.measure == "duration":
            return max(update.train_s, SHORTEST_S)
        last = state.tally.last.get(update.participant_id)
        return None if last is None else float(state.order + 1 - last)

    def _weight(self, state: TallyState, participant_id: str, value: float | None) -> float:
        if value is None:
            return 1.0
        mean = state.tally.mean_with(participant_id, value)
        if self.measure == "duration":
            weight = mean * state.tally.mean_reciprocal_with(participant_id, value)
        else:
            known = self.num_participants or state.tally.known_with(participant_id)
            weight = (mean if self.measure == "interval" else self.buffer_size * mean + 1.0) / known
        return weight if self.max_weight is None else min(weight, self.max_weight)

    def weights(self, state: TallyState) -> tuple[float, ...]:
        """η_g·w·q/K."""
        return tuple(self.server_learning_rate * c / state.count for c in state.coefficients)

    def aggregate(self, state: TallyState, parameters: Parameters) -> tuple[TallyState, Parameters]:
        new = state.step(parameters, self.server_learning_rate, 1.0 / state.count)
        state.clear()
        return state, new
