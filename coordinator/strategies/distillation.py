"""Federated distillation: participants with unlike models agree on the classes of a public data set.

Li, Wang 2019, "FedMD: Heterogenous Federated Learning via Model Distillation", and Itahara et al. 2020,
"Distillation-Based Semi-Supervised Federated Learning for Communication-Efficient Collaborative Training with Non-IID
Private Data" (DS-FL). Participants send their models' predictions z_i on the public set, and each version is their
consensus c. In both papers m participants are synchronous, and nothing is left of the consensus before:

    FedMD, algorithm 1, "Aggregate"      c = (1/m)·Σ z_i                      of class scores
    DS-FL, entropy reduction (ERA)       c = softmax((1/m)·Σ z_i / T)         of probabilities; T = 0.1 in the paper

Here, with w_i = s(τ_i)·q_i, a version of every K updates:

    μ ← μ + β·Σ w_i·(z_i - μ) / max(K, Σ w)        c = μ, or softmax(μ/T) with a temperature T

With β = 1, fresh updates and equal weights this is the papers' equation, for the K participants of a buffer. What stale
updates lack in weight stays with the mean before, as in FedAsync: with K = 1 it is FedAsync's rule. The coefficients
are never negative and their sum is at most β, so μ is a mean of predictions at any staleness. A mean of differences
from a version (FedBuff's) would not be one. The mean μ is kept beside the version, so no prediction is sharpened twice.

A participant's rows count as distributions, whatever it sends: negative numbers are 0, and each row is divided by its
sum. FedMD's class scores are the logarithms of the probabilities, up to a number for each row that softmax takes out.
So `average = "logits"` is FedMD's mean: the geometric one. A probability below 1e-6 counts as that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from fedmq.coordinator.strategies.math import arithmetic
from fedmq.coordinator.strategies.math.next_version import next_version
from fedmq.coordinator.strategies.math.staleness_weights import AnyStalenessWeight, Polynomial
from fedmq.coordinator.strategies.protocol import Arrays, ClientUpdate
from fedmq.coordinator.strategies.rounds_or_buffer import Buffered, MinUpdates, TimeoutS, check_timeout
from fedmq.coordinator.strategies.states.buffer import BufferState, check_coefficient
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import Reply
from fedmq.schemas.parameters import Array, Parameters

LEAST_PROBABILITY = 1e-6
"""Smallest probability whose logarithm is averaged."""


@plain_dataclass
class ConsensusState(BufferState):
    """Σ w·z of the buffered updates, and the mean μ of the versions before. Both are in the space of the average."""

    mean: dict[str, Array] = field(default_factory=dict)

    def _buffer_arrays(self) -> dict[str, Array]:
        return super()._buffer_arrays() | {f"mean/{n}": a for n, a in self.mean.items()}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Distillation(Buffered):
    """A new consensus of every `buffer_size` updates."""

    buffer_size: Annotated[int, Field(ge=1)] = 10
    """K: updates in a version."""
    mixing: Annotated[float, Field(gt=0, le=1)] = 1.0
    """β: the weight of a fresh buffer's mean against the consensus before."""
    staleness: AnyStalenessWeight = Polynomial(0.5)
    """s(τ)."""
    average: Literal["probabilities", "logits"] = "probabilities"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """T of the entropy reduction: below 1, the consensus is more certain than the mean. None leaves the mean as it is,
    which with `average = "logits"` is T = 1."""
    buffer_timeout_s: TimeoutS | None = field(default=None, kw_only=True)
    min_updates: MinUpdates | None = field(default=None, kw_only=True)
    name: Literal["distillation"] = "distillation"

    @model_validator(mode="after")
    def _timeout_has_its_effect(self) -> Self:
        check_timeout(self)
        return self

    @property
    def reply(self) -> Reply:
        return "parameters"

    @property
    def uplinks(self) -> tuple[str, ...]:
        """Codecs of predictions. int8 is unbiased and moves a probability by 1/127 at most, which a mean of logarithms
        does not forgive. What a codec leaves out is no distribution any more."""
        return ("bf16", "int8") if self.average == "probabilities" else ("bf16",)

    downlinks: ClassVar[tuple[str, ...]] = ()
    """A hidden state's rows are no distributions, and the consensus is small."""

    def init(self, parameters: Parameters) -> ConsensusState:
        """Return an empty buffer. Raises AppError unless the floating tensors are predictions, [examples, classes]."""
        for name in parameters.averaged():
            shape = parameters[name].shape
            # A model of one number is what `fedmq verify` checks the weights with.
            if (len(shape) != 2 or shape[1] < 2) and parameters[name].size != 1:
                raise AppError(
                    f"the strategy distillation averages predictions, [examples, classes], and tensor {name!r} of "
                    f"version 0 has the shape {list(shape)}: give the app build_student and load_public_data, and a "
                    "fedmq.DistillationTrainer, or take another strategy"
                )
        state = ConsensusState.zero(parameters, None)
        state.mean = {n: self._scores(parameters[n]).astype(acc.dtype) for n, acc in state.sums.items()}
        return state

    def restore(self, arrays: Arrays, scalars: Mapping[str, Any], parameters: Parameters) -> ConsensusState:
        return self.init(parameters).load(arrays, scalars)

    def accumulate(self, state: ConsensusState, update: ClientUpdate, staleness: int) -> ConsensusState:
        weight = self.staleness(staleness) * update.client_weight
        state.check(update)
        check_coefficient(update, weight)
        for name, acc in state.sums.items():
            arithmetic.scale_add(acc, weight, self._scores(update.payload[name]).astype(acc.dtype))
        state.coefficients.append(weight)
        return state

    def weights(self, state: ConsensusState) -> tuple[float, ...]:
        """Return β·w/max(K, Σ w), the part of each update in the mean."""
        rate = self._rate(state)
        return tuple(rate * w for w in state.coefficients)

    def aggregate(self, state: ConsensusState, parameters: Parameters) -> tuple[ConsensusState, Parameters]:
        made, new = next_version(parameters)
        rate = self._rate(state)
        kept = max(0.0, 1.0 - rate * state.total())
        for name, mean in state.mean.items():
            np.multiply(mean, mean.dtype.type(kept), out=mean)
            arithmetic.scale_add(mean, rate, state.sums[name])
            np.copyto(new[name], self._consensus(mean), casting="same_kind")
        state.clear()
        return state, made

    def _rate(self, state: ConsensusState) -> float:
        return self.mixing / max(state.count, state.total(), 1)

    def _scores(self, predictions: Array) -> Array:
        """Return rows as what is averaged, in float64: probabilities, or their logarithms."""
        rows = distributions(predictions)
        return rows if self.average == "probabilities" else np.log(np.maximum(rows, LEAST_PROBABILITY))

    def _consensus(self, mean: Array) -> Array:
        if self.average == "probabilities" and self.temperature is None:
            return distributions(mean)
        scores = mean.astype(np.float64) / (self.temperature or 1.0)
        scores -= scores.max(axis=-1, keepdims=True)
        return distributions(np.exp(scores))


def distributions(rows: Array) -> Array:
    """Return [n, classes] in float64 with rows that are not negative and sum to 1; a row without a positive number
    becomes uniform."""
    found = np.maximum(rows.astype(np.float64), 0.0)
    found /= np.maximum(found.max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)  # their sum stays finite
    totals = found.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(totals > 0, found / np.maximum(totals, 1e-300), 1.0 / rows.shape[-1]))
