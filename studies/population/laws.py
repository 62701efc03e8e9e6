"""Laws of positive quantities (durations, speeds, sizes, bandwidths), as small frozen values.

A study's file has a law as a table, such as {name = "half_normal", mean = 10}. Each law is its quantile function:
`quantile(u)` for a uniform u in [0, 1). So a draw costs one uniform number whatever the law is, two laws give draws of
the same rank for the same u, and correlation is a matter of the u alone (studies.population.population).

`left(u, v)`, for two uniform numbers, is the rest of a duration that is met at a random moment of its course. Its
density is P(X > x)/mean. A long duration is met more often, in proportion to its length, and a uniform part of it is
left.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from fedmq.studies.value import Value

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_NORMAL = NormalDist()
_LARGEST_BELOW_1 = math.nextafter(1.0, 0.0)


def normal_quantile(u: float) -> float:
    """Return Φ⁻¹(u). u is kept away from 0 and 1, for which it is infinite."""
    return _NORMAL.inv_cdf(min(max(u, 1e-300), _LARGEST_BELOW_1))


class Constant(Value):
    """The same `value` every time."""

    name: Literal["constant"] = "constant"
    value: NonNegative

    @property
    def mean(self) -> float:
        return self.value

    def quantile(self, u: float) -> float:  # noqa: ARG002
        return self.value

    def left(self, u: float, v: float) -> float:  # noqa: ARG002
        return self.value * v


class Uniform(Value):
    """Uniform between `low` and `high`."""

    name: Literal["uniform"] = "uniform"
    low: NonNegative
    high: Positive

    @model_validator(mode="after")
    def _in_order(self) -> Uniform:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}: exchange them")
        return self

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def quantile(self, u: float) -> float:
        return self.low + u * (self.high - self.low)

    def left(self, u: float, v: float) -> float:
        part = self.low / self.high  # the squares of low and high themselves may overflow
        return v * self.high * math.sqrt(part**2 + u * (1 - part**2))


class Exponential(Value):
    """The memoryless law with this mean."""

    name: Literal["exponential"] = "exponential"
    mean: Positive

    def quantile(self, u: float) -> float:
        return -self.mean * math.log1p(-u)

    def left(self, u: float, v: float) -> float:  # noqa: ARG002
        return self.quantile(u)  # it has no memory


class HalfNormal(Value):
    """|N(0, σ²)| with σ = mean·√(π/2): FedBuff's law of training durations (Nguyen et al. 2022, section 5)."""

    name: Literal["half_normal"] = "half_normal"
    mean: Positive

    def quantile(self, u: float) -> float:
        return self.mean * math.sqrt(math.pi / 2) * max(normal_quantile((1.0 + u) / 2), 0.0)

    def left(self, u: float, v: float) -> float:
        return v * self.mean * math.sqrt(-math.pi * math.log1p(-u))  # a duration that is met has Rayleigh's law


class LogNormal(Value):
    """exp(N(ln median, sigma²)): device speeds as measured in production have sigma of about 0.5 to 1."""

    name: Literal["lognormal"] = "lognormal"
    median: Positive
    sigma: NonNegative

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def quantile(self, u: float) -> float:
        return self.median * math.exp(self.sigma * normal_quantile(u))

    def left(self, u: float, v: float) -> float:
        return v * math.exp(self.sigma**2) * self.quantile(u)


class Pareto(Value):
    """P(X > x) = (minimum/x)^shape for x ≥ minimum. There is a mean because the shape is above 1."""

    name: Literal["pareto"] = "pareto"
    minimum: Positive
    shape: Annotated[float, Field(gt=1, allow_inf_nan=False)]

    @property
    def mean(self) -> float:
        return self.minimum * self.shape / (self.shape - 1)

    def quantile(self, u: float) -> float:
        return float(self.minimum * (1.0 - u) ** (-1.0 / self.shape))

    def left(self, u: float, v: float) -> float:
        try:
            return float(v * self.minimum * (1.0 - u) ** (-1.0 / (self.shape - 1)))
        except OverflowError:  # the shape is near 1: the duration hardly ever ends
            return math.inf


class Zipf(Value):
    """unit·k for k = 1 ... largest with P(k) in proportion to k^-exponent."""

    name: Literal["zipf"] = "zipf"
    exponent: Positive
    largest: Annotated[int, Field(ge=1, le=1_000_000)]
    unit: Positive = 1.0
    _cumulative: tuple[float, ...] = PrivateAttr(())
    _by_length: tuple[float, ...] = PrivateAttr(())

    def model_post_init(self, _: object) -> None:
        self._cumulative = tuple(accumulate(k**-self.exponent for k in range(1, self.largest + 1)))
        self._by_length = tuple(accumulate(k ** (1 - self.exponent) for k in range(1, self.largest + 1)))

    @property
    def mean(self) -> float:
        weights = math.fsum(k ** (1 - self.exponent) for k in range(1, self.largest + 1))
        return self.unit * weights / self._cumulative[-1]

    def quantile(self, u: float) -> float:
        at = bisect_right(self._cumulative, u * self._cumulative[-1])
        return self.unit * (min(at, self.largest - 1) + 1)

    def left(self, u: float, v: float) -> float:
        at = bisect_right(self._by_length, u * self._by_length[-1])
        return v * self.unit * (min(at, self.largest - 1) + 1)


AnyLaw = Annotated[
    Constant | Uniform | Exponential | HalfNormal | LogNormal | Pareto | Zipf, Field(discriminator="name")
]
