"""SCAFFOLD: control variates take the drift out of many local steps, whatever the participants' data and speed.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning"
(arXiv 1910.06378), Algorithm 1 with option II, over N participants:

    participant    y ← y - η·(g(y) - c_i + c)                 from y = x, K steps
                   Δc_i = (x - y)/(K·η) - c                   that is c_i⁺ - c_i with c_i⁺ = c_i - c + (x - y)/(K·η)
    coordinator    x ← x + η_g·(1/S)·Σ Δy_i,  c ← c + (1/N)·Σ Δc_i

A participant remembers c_i, the sum of its accepted Δc_i (zero at first). The coordinator remembers c, which is
therefore the mean of all c_i. At the point where everything stands still, c_i is participant i's own gradient and c
their mean, 0: x is the optimum of the plain mean of all objectives, even after many local steps and at any speeds. The
paper has no client weights. Here they weigh Δy_i, in rounds too. They do not move the point where x ends, because they
do not weigh Δc_i: once the c_i have settled, each Δy_i is about -K·η·c.

The paper's rounds are synchronous. With a `buffer_size` K every K updates make a version as in FedBuff: Δy_i has the
weight s(τ_i)·q_i, and c is that of the version that the participant started from. Δc_i has no weight in either form,
because c would no longer be the mean of the c_i. Participants must take plain gradient steps at
`training.learning_rate`: option II computes their mean gradient from the point where these steps end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import RoundsOrBuffer, TimeoutS
from fedmq.coordinator.strategies.states.buffer import BufferState, check_coefficient
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.messages import Reply
from fedmq.schemas.methods import CONTROL, trained
from fedmq.schemas.parameters import Array, Parameters

_CONTROLS, _CHANGES = "controls/", "changes/"


@plain_dataclass
class ScaffoldState(BufferState):
    """The buffer of Δy_i, and the control variates in float64: a year of additions leaves no trace."""

    num_participants: int = 1
    controls: dict[str, Array] = field(default_factory=dict)
    """Σ_j c_j of the current version."""
    changes: dict[str, Array] = field(default_factory=dict)
    """Σ Δc_i over the buffer."""

    def accumulate(self, update: ClientUpdate, coefficient: float) -> None:
        """Add Δy_i and Δc_i. Raises ValueError, and changes nothing, if one of them does not fit.

        Raises OverflowError if c would leave the range of float16: participants have moved their c_i, so no part of c
        can be lost again.
        """
        change = update.beside.get(CONTROL, Parameters({}))
        found, expected = ({n: a.shape for n, a in group.items()} for group in (change, self.changes))
        if found != expected:
            raise ValueError(
                f"update {update.update_id} has the control variates {found}, expected {expected}: a trainer must "
                "give back what it was given"
            )
        self.check(update)
        check_coefficient(update, coefficient)
        for name, total in self.changes.items():
            if change[name].dtype == np.float16:
                c = (self.controls[name] + total + change[name]) / self.num_participants
                arithmetic.check_range(c, change[name].dtype, f"the control variate of tensor {name!r}")
        for name, total in self.changes.items():
            arithmetic.scale_add(total, 1.0, change[name])
        super().accumulate(update, coefficient)

    def beside(self, parameters: Parameters) -> dict[str, dict[str, Array]]:
        """Return c, in the dtypes of the parameters."""
        return {CONTROL: {n: (x / self.num_participants).astype(parameters[n].dtype) for n, x in self.controls.items()}}

    def move_controls(self) -> None:
        """Add the buffer's Δc_i to Σ_j c_j."""
        for name, change in self.changes.items():
            self.controls[name] += change
            change.fill(0)

    def drop(self, group: int | None) -> None:
        """Lose the Δy_i of the buffer. The Δc_i stay: their participants have moved their c_i."""
        self.move_controls()
        super().drop(group)

    def arrays(self) -> dict[str, Array]:
        own = {_CONTROLS + n: a for n, a in self.controls.items()} | {_CHANGES + n: a for n, a in self.changes.items()}
        return super().arrays() | own

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        for prefix, mine in ((_CONTROLS, self.controls), (_CHANGES, self.changes)):
            for name, array in mine.items():
                if arrays.get(prefix + name, np.empty(0)).shape != array.shape:
                    raise CheckpointError(
                        f"the checkpoint's strategy state has no array {prefix + name!r} of shape {array.shape}; "
                        "resume with the strategy and model that wrote it"
                    )
                np.copyto(array, arrays[prefix + name])
        super().load({n: a for n, a in arrays.items() if not n.startswith((_CONTROLS, _CHANGES))}, scalars)
        return self


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Scaffold(RoundsOrBuffer):
    """Synchronous rounds like FedAvg's, or with a `buffer_size` a new version of every so many updates.

    Non-trainable floating tensors (BatchNorm statistics) take the same mean with rate 1 and have no control variates.
    """

    num_participants: Annotated[int, Field(ge=1)]
    """N: number of participants in the run."""
    server_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    cohort_size: Annotated[int, Field(ge=1)] = 10
    over_selection: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """ceil(cohort_size·over_selection) participants are asked; the first `cohort_size` updates count."""
    round_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    min_updates: Annotated[int, Field(ge=1)] = 1
    buffer_size: Annotated[int, Field(ge=1)] | None = None
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    """The timeout of the buffer, to which `min_updates` then belongs."""
    staleness: AnyStalenessWeight | None = None
    """s(τ) of the asynchronous form; None means 1."""
    name: Literal["scaffold"] = "scaffold"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        self.check_form()
        return self

    @property
    def reply(self) -> Reply:
        return "scaffold"

    @property
    def max_participants(self) -> int:
        return self.num_participants

    def init(self, parameters: Parameters) -> ScaffoldState:
        state = ScaffoldState.zero(parameters, None)
        shapes = {n: parameters[n].shape for n in trained(parameters)}
        state.controls, state.changes = ({n: np.zeros(shape) for n, shape in shapes.items()} for _ in range(2))
        state.num_participants = self.num_participants
        return state

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> ScaffoldState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: ScaffoldState, update: ClientUpdate, staleness: int) -> ScaffoldState:
        state.accumulate(update, self.coefficient(update, staleness))
        return state

    def weights(self, state: ScaffoldState) -> tuple[float, ...]:
        """Return η_g·s·q/S, the factor of each Δy_i."""
        return tuple(self.server_learning_rate * c / state.count for c in state.coefficients)

    def aggregate(self, state: ScaffoldState, parameters: Parameters) -> tuple[ScaffoldState, Parameters]:
        new = state.step(parameters, self.server_learning_rate, 1.0 / state.count)
        state.move_controls()
        state.clear()
        return state, new
