"""Server optimisers: they turn the mean update Δ̄ of the trainable floating tensors into the step of the model.

Reddi et al. 2021, "Adaptive Federated Optimization" (FedAdagrad, FedYogi, FedAdam), with their signs: -Δ̄ is the
pseudo-gradient, so x moves along +Δ̄. As in the paper there is no bias correction, v starts at τ² and m at 0, and τ is
added outside the root. `SgdMomentum` is FedAvgM (Hsu et al. 2019): x ← x + η·m with m ← β·m + Δ̄.

The code of the paper's experiments, google-research/federated, uses Keras's optimisers: v starts at 0 there, and Adam
corrects the bias. The difference fades as versions are made.

    m ← β₁·m + (1 - β₁)·Δ̄            x ← x + η·m/(√v + τ)
    Adagrad   v ← v + Δ̄²
    Yogi      v ← v - (1 - β₂)·Δ̄²·sign(v - Δ̄²)
    Adam      v ← β₂·v + (1 - β₂)·Δ̄²

Moments are kept in the accumulator's dtype (float32; float64 for float64 tensors) and changed in place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Array = npt.NDArray[Any]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizer(Protocol):
    """A frozen value. The strategy's state holds its moments, the arrays that `initial()` names."""

    @property
    def name(self) -> str: ...

    def initial(self) -> dict[str, float]:
        """Return moment -> first value, for the moments that it keeps for each tensor."""

    def advance(self, delta: Array, moments: dict[str, Array]) -> None:
        """Turn one flat chunk of Δ̄ into the step to add to x, in place; the moments' chunks change in place too."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SgdMomentum:
    """m ← β·m + Δ̄, x ← x + η·m; plain SGD on the pseudo-gradient if β = 0."""

    learning_rate: Positive = 1.0
    momentum: Decay = 0.9
    name: Literal["sgd"] = "sgd"

    def initial(self) -> dict[str, float]:
        return {"m": 0.0}

    def advance(self, delta: Array, moments: dict[str, Array]) -> None:
        m = moments["m"]
        m *= m.dtype.type(self.momentum)
        m += delta
        np.multiply(m, m.dtype.type(self.learning_rate), out=delta)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Adagrad:
    """v ← v + Δ̄² (FedAdagrad); the paper's experiments use β₁ = 0."""

    learning_rate: Positive = 0.1
    beta_1: Decay = 0.0
    tau: Positive = 1e-3
    name: Literal["adagrad"] = "adagrad"

    def initial(self) -> dict[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def advance(self, delta: Array, moments: dict[str, Array]) -> None:
        v = moments["v"]
        v += np.square(delta)
        _adaptive(delta, moments["m"], v, learning_rate=self.learning_rate, beta_1=self.beta_1, tau=self.tau)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Yogi:
    """v ← v - (1 - β₂)·Δ̄²·sign(v - Δ̄²) (FedYogi)."""

    learning_rate: Positive = 0.01
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Positive = 1e-3
    name: Literal["yogi"] = "yogi"

    def initial(self) -> dict[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def advance(self, delta: Array, moments: dict[str, Array]) -> None:
        v = moments["v"]
        squares = np.square(delta)
        direction = np.sign(v - squares)
        squares *= v.dtype.type(1.0 - self.beta_2)
        squares *= direction
        v -= squares
        _adaptive(delta, moments["m"], v, learning_rate=self.learning_rate, beta_1=self.beta_1, tau=self.tau)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Adam:
    """v ← β₂·v + (1 - β₂)·Δ̄² (FedAdam)."""

    learning_rate: Positive = 0.01
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Positive = 1e-3
    name: Literal["adam"] = "adam"

    def initial(self) -> dict[str, float]:
        return {"m": 0.0, "v": self.tau**2}

    def advance(self, delta: Array, moments: dict[str, Array]) -> None:
        v = moments["v"]
        _mean_of_squares(delta, v, self.beta_2)
        _adaptive(delta, moments["m"], v, learning_rate=self.learning_rate, beta_1=self.beta_1, tau=self.tau)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AmsGrad:
    """v ← β₂·v + (1 - β₂)·Δ̄², v̂ ← max(v̂, v), x ← x + η·m/(√v̂ + ε), all moments from 0.

    Reddi, Kale, Kumar 2018, "On the Convergence of Adam and Beyond", Algorithm 2 (AMSGrad), with ε outside the root and
    without bias correction. The published code of FADAS corrects the bias, as Adam does: its first steps are longer.
    """

    learning_rate: Positive = 0.001
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    epsilon: Positive = 1e-8
    name: Literal["amsgrad"] = "amsgrad"

    def initial(self) -> dict[str, float]:
        return {"m": 0.0, "v": 0.0, "v_max": 0.0}

    def advance(self, delta: Array, moments: dict[str, Array]) -> None:
        v, highest = moments["v"], moments["v_max"]
        _mean_of_squares(delta, v, self.beta_2)
        np.maximum(highest, v, out=highest)
        rate, beta_1 = self.learning_rate, self.beta_1
        _adaptive(delta, moments["m"], highest, learning_rate=rate, beta_1=beta_1, tau=self.epsilon)


AnyServerOptimizer = Annotated[SgdMomentum | Adagrad | Yogi | Adam | AmsGrad, Field(discriminator="name")]


def _mean_of_squares(delta: Array, v: Array, beta_2: float) -> None:
    """Do v ← β₂·v + (1 - β₂)·Δ̄²."""
    squares = np.square(delta)
    squares *= v.dtype.type(1.0 - beta_2)
    v *= v.dtype.type(beta_2)
    v += squares


def _adaptive(delta: Array, m: Array, v: Array, *, learning_rate: float, beta_1: float, tau: float) -> None:
    """Do m ← β₁·m + (1 - β₁)·Δ̄, then delta ← η·m/(√v + τ)."""
    kind = m.dtype.type
    delta *= kind(1.0 - beta_1)
    m *= kind(beta_1)
    m += delta
    root = np.sqrt(v)
    root += kind(tau)
    np.multiply(m, kind(learning_rate), out=delta)
    delta /= root
