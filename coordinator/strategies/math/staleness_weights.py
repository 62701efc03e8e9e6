"""Staleness weights s(τ): how much an update counts if it was trained from a model τ versions old.

They are the weighting functions s(t - τ) in the experiments of Xie, Koyejo, Gupta 2019, "Asynchronous Federated
Optimization" (FedAsync), and the delay-adaptive steps of asynchronous SGD. Each has s(0) = 1 and never rises with τ.
They are frozen values: they print, compare, and come from a table such as {name = "polynomial", a = 0.5}.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Constant:
    """s(τ) = 1."""

    name: Literal["constant"] = "constant"

    def __call__(self, staleness: int) -> float:
        _check(staleness)
        return 1.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Polynomial:
    """s(τ) = (1 + τ)^-a; a = 1/2 gives the 1/√(1 + τ) of FedBuff's experiments (Nguyen et al. 2022)."""

    a: Positive = 0.5
    name: Literal["polynomial"] = "polynomial"

    def __call__(self, staleness: int) -> float:
        _check(staleness)
        return float((1.0 + staleness) ** -self.a)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Hinge:
    """s(τ) = 1 if τ ≤ b, else 1/(a·(τ - b) + 1): continuous at b, because of the "+ 1"."""

    a: Positive
    b: NonNegative
    name: Literal["hinge"] = "hinge"

    def __call__(self, staleness: int) -> float:
        _check(staleness)
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DelayAdaptive:
    """s(τ) = M/max(M, τ): full steps up to a delay of M, then steps that shrink as 1/τ.

    Mishchenko, Bach, Even, Woodworth 2022, "Asynchronous SGD Beats Minibatch SGD Under Arbitrary Delays", as in their
    code (github.com/konstmish/asynchronous_sgd): the step size times M/max(M, τ). M is the number of workers, so it is
    `concurrency` here. They make a version of each update, as do FedAsync and FedBuff with a buffer of 1. The mean
    delay with a buffer of K is (M - 1)/K versions, so the steps should begin to shrink at M/K.
    """

    concurrency: Positive
    name: Literal["delay_adaptive"] = "delay_adaptive"

    def __call__(self, staleness: int) -> float:
        _check(staleness)
        return self.concurrency / max(self.concurrency, staleness)


AnyStalenessWeight = Annotated[Constant | Polynomial | Hinge | DelayAdaptive, Field(discriminator="name")]


def _check(staleness: int) -> None:
    if staleness < 0:
        raise ValueError(f"got a staleness of {staleness}, expected 0 or more: current version minus base version")
