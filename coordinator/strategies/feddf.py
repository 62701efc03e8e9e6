"""FedDF on a buffer: each version is distilled from the ensemble of the models that its updates bring.

Lin, Kong, Stich and Jaggi 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning" (NeurIPS),
algorithm 1. In a synchronous round with the participants S the server starts from the weighted mean of their models
x_k and makes N steps on batches d of unlabelled data:

    x ← x - η·∂/∂x KL( softmax( (1/|S|)·Σ f(x_k, d) ), softmax( f(x, d) ) )        f: logits

Here the start is FedBuff's version of K updates, and the ensemble has a model y_i for each of them:

    y_i = x_base(i) + Δ_i        weight w_i = s(τ_i)·q_i, divided by the sum of those in the ensemble
    x ← x + η_g·(1/K)·Σ w_i·Δ_i, then distilled

With fresh updates and equal client weights, the ensemble's mean is the paper's. The strategy makes the start and the
ensemble; the coordinator's child distils (decisions.versions.distilling). If it cannot, the version is the start: it
has then FedBuff's bits.

The state keeps the `former_versions` versions before the current one, because an update's base is one of them. An
update from an older one counts in the start, and is not in the ensemble. So the state has at most
K + former_versions + 1 models beside the version's own parameters, and each checkpoint has them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import next_version
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight, Polynomial
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate, Ensemble
from fedmq.coordinator.strategies.states.buffer import BufferState
from fedmq.coordinator.strategies.weighted_mean import WeightedMean
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.parameters import Array, Parameters

_MODEL, _FORMER = "model/", "former/"


@plain_dataclass
class EnsembleState(BufferState):
    """FedBuff's sums, the models of the buffer, and the versions that they may have started from."""

    current: Parameters = field(default_factory=lambda: Parameters({}))
    """Parameters of the newest version; not among the state's own arrays."""
    former: list[Parameters] = field(default_factory=list)
    """Parameters of the versions before, the newest first."""
    models: dict[int, Parameters] = field(default_factory=dict)
    """Place in the buffer, from 0 -> the model of this update. Never changed in place."""

    def base(self, staleness: int) -> Parameters | None:
        """Return the version that an update of this staleness started from; None if it is not kept."""
        if staleness == 0:
            return self.current
        return self.former[staleness - 1] if staleness <= len(self.former) else None

    def advance(self, made: Parameters, most: int) -> None:
        """Note the next version, and keep `most` of those before it."""
        self.former = [self.current, *self.former][:most]
        self.current = made

    def clear(self) -> None:
        super().clear()
        self.models.clear()

    def arrays(self) -> dict[str, Array]:
        """Return the buffer's arrays, model/{place}/{tensor} and former/{age}/{tensor}, ages from 0."""
        kept = [(f"{_MODEL}{place}/", model) for place, model in self.models.items()]
        kept += [(f"{_FORMER}{age}/", version) for age, version in enumerate(self.former)]
        return self._buffer_arrays() | {f"{p}{n}": tensors[n] for p, tensors in kept for n in self.sums}

    def scalars(self) -> dict[str, Any]:
        """Return the checkpoint's scalars."""
        return {**super().scalars(), "former": len(self.former), "models": list(self.models)}

    def load(self, arrays: Arrays, scalars: Mapping[str, Any]) -> Self:
        """Read what `arrays()` and `scalars()` gave. Raises CheckpointError if it belongs to another model."""
        rest = dict(arrays)
        self.former = [self._taken(rest, f"{_FORMER}{age}/") for age in range(int(scalars["former"]))]
        self.models = {int(place): self._taken(rest, f"{_MODEL}{int(place)}/") for place in scalars["models"]}
        return super().load(rest, scalars)

    def _taken(self, arrays: dict[str, Array], prefix: str) -> Parameters:
        """Take the tensors of one model out of `arrays`."""
        made, new = next_version(self.current)
        for name, mine in new.items():
            theirs = arrays.pop(prefix + name, None)
            if theirs is None or (theirs.shape, theirs.dtype) != (mine.shape, mine.dtype):
                got = "nothing" if theirs is None else f"{theirs.dtype}{list(theirs.shape)}"
                raise CheckpointError(
                    f"array {prefix + name!r} of the checkpoint's strategy state is {got}, expected "
                    f"{mine.dtype}{list(mine.shape)}; resume with the strategy and model that wrote it"
                )
            np.copyto(mine, theirs)
        return made


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FedDf(WeightedMean):
    """A new version of every `buffer_size` updates, distilled from the ensemble of their models."""

    takes_new_tensors: ClassVar[bool] = False
    staleness: AnyStalenessWeight = Polynomial(0.5)
    """s(τ)."""
    former_versions: Annotated[int, Field(ge=0)] = 4
    """Versions before the current one that are kept. An update that started from an older one is in no ensemble."""
    distil_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Run time (seconds) that a distillation may take. Then its version is the plain mean."""
    name: Literal["feddf"] = "feddf"

    downlinks: ClassVar[tuple[str, ...]] = ("bf16",)
    """A hidden state is what tasks of a version start from, and is not the version: bases would be others."""

    def weight(self, update: ClientUpdate, staleness: int) -> float:
        """Return s(τ)·q."""
        return self.staleness(staleness) * update.client_weight

    def init(self, parameters: Parameters) -> EnsembleState:
        state = EnsembleState.zero(parameters, None)
        state.current = parameters
        return state

    def accumulate(self, state: EnsembleState, update: ClientUpdate, staleness: int) -> EnsembleState:
        place, base = state.count, state.base(staleness)
        super().accumulate(state, update, staleness)
        if base is not None:
            state.models[place] = moved(base, update.payload)
        return state

    def aggregate(self, state: EnsembleState, parameters: Parameters) -> tuple[EnsembleState, Parameters]:
        state, made = super().aggregate(state, parameters)
        state.advance(made, self.former_versions)
        return state, made

    def ensemble(self, state: EnsembleState, parameters: Parameters) -> Ensemble:
        """Return what the next version is distilled from. Models without weight are not in it."""
        start = state.step(parameters, self._rate, self._per_divisor(state))
        weights = {place: w for place in state.models if (w := state.coefficients[place]) > 0}
        total = math.fsum(weights.values())
        return Ensemble(
            start, tuple(state.models[place] for place in weights), tuple(w / total for w in weights.values())
        )

    def adopt(
        self,
        state: EnsembleState,
        parameters: Parameters,  # noqa: ARG002 - the protocol's
        distilled: Parameters,
    ) -> tuple[EnsembleState, Parameters]:
        """Return the state after a version that was distilled, and the version."""
        state.clear()
        state.advance(distilled, self.former_versions)
        return state, distilled


def moved(base: Parameters, delta: Parameters) -> Parameters:
    """Return base + delta in new arrays; tensors that are not floating are the base's."""
    made, new = next_version(base)
    for name, out in new.items():
        arithmetic.step(base[name], 1.0, delta[name], out)
    return made
