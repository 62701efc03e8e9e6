"""Laws of positive quantities (durations, speeds, sizes, bandwidths), as small frozen values.

A study's file has a law as a table, such as {name = "half_normal", mean = 10}. Each law is its quantile function:
`quantile(u)` for a uniform u in [0, 1). So a draw costs one uniform number whatever the law is, two laws give draws of
the same rank for the same u, and correlation is a matter of the u alone (studies.population.population). A draw by the
quantile function at a uniform u has the law (Devroye 1986, "Non-Uniform Random Variate Generation", II.2).

`below(x)` is the distribution function, P(X ≤ x), for x ≥ 0. Quantiles of mixtures are found by it.

`left(u, v)`, for two uniform numbers, is the rest of a duration that is met at a random moment of its course. Its
density is P(X > x)/mean (Cox 1962, "Renewal Theory", 5.3). A long duration is met more often, in proportion to its
length, and a uniform part of it is left.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from fedmq.schemas.errors import InputError
from fedmq.studies.population.measured import LARGEST, read_values
from fedmq.studies.population.steps import Steps, smallest, step_of
from fedmq.studies.value import Value

Positive = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

_NORMAL = NormalDist()
SUM_TOLERANCE = 1e-6
"""Difference from 1 that the sum of shares may have: thirds are written with a few digits."""
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

    def below(self, x: float) -> float:
        return float(self.value <= x)

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

    def below(self, x: float) -> float:
        if x < self.low or x >= self.high:
            return float(x >= self.high)
        return (x - self.low) / (self.high - self.low)

    def left(self, u: float, v: float) -> float:
        part = self.low / self.high  # the squares of low and high themselves may overflow
        return v * self.high * math.sqrt(part**2 + u * (1 - part**2))


class Exponential(Value):
    """The memoryless law with this mean."""

    name: Literal["exponential"] = "exponential"
    mean: Positive

    def quantile(self, u: float) -> float:
        return -self.mean * math.log1p(-u)

    def below(self, x: float) -> float:
        return -math.expm1(-x / self.mean)

    def left(self, u: float, v: float) -> float:  # noqa: ARG002
        return self.quantile(u)  # it has no memory


class HalfNormal(Value):
    """|N(0, σ²)| with σ = mean·√(π/2): FedBuff's law of training durations (Nguyen et al. 2022, section 5)."""

    name: Literal["half_normal"] = "half_normal"
    mean: Positive

    def quantile(self, u: float) -> float:
        return self.mean * math.sqrt(math.pi / 2) * max(normal_quantile((1.0 + u) / 2), 0.0)

    def below(self, x: float) -> float:
        return math.erf(x / (self.mean * math.sqrt(math.pi)))

    def left(self, u: float, v: float) -> float:
        return v * self.mean * math.sqrt(-math.pi * math.log1p(-u))  # a duration that is met has Rayleigh's law


class LogNormal(Value):
    """exp(N(ln median, sigma²)): device speeds as measured in production have sigma of about 0.5 to 1."""

    name: Literal["lognormal"] = "lognormal"
    median: Positive
    sigma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def quantile(self, u: float) -> float:
        return self.median * math.exp(self.sigma * normal_quantile(u))

    def below(self, x: float) -> float:
        if x <= 0 or not self.sigma:
            return float(x >= self.median)
        return 0.5 * math.erfc(-math.log(x / self.median) / (self.sigma * math.sqrt(2)))

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

    def below(self, x: float) -> float:
        return float(1.0 - (self.minimum / x) ** self.shape) if x > self.minimum else 0.0

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

    def below(self, x: float) -> float:
        # unit·k ≤ x, in floats as `quantile` makes them: x/unit may be a bit below k.
        count = min(int(min(x / self.unit, self.largest)) + 1, self.largest)
        count -= self.unit * count > x
        return self._cumulative[count - 1] / self._cumulative[-1] if count else 0.0

    def left(self, u: float, v: float) -> float:
        at = bisect_right(self._by_length, u * self._by_length[-1])
        return v * self.unit * (min(at, self.largest - 1) + 1)


class Choice(Value):
    """One of these `values`, each with its share. Without `shares` all have the same."""

    name: Literal["choice"] = "choice"
    values: Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=100_000)]
    shares: tuple[Share, ...] | None = None
    """Probabilities of the values, in their order. They add up to 1."""
    _steps: Steps = PrivateAttr()

    @model_validator(mode="after")
    def _complete(self) -> Choice:
        if self.shares is not None:
            if len(self.shares) != len(self.values):
                raise ValueError(
                    f"got {len(self.values)} values and {len(self.shares)} shares: give a share for each value"
                )
            _check_sum(self.shares)
        shares = self.shares or (1.0,) * len(self.values)
        self._steps = Steps.of(self.values, shares)
        return self

    @property
    def mean(self) -> float:
        return self._steps.mean

    def quantile(self, u: float) -> float:
        return self._steps.quantile(u)

    def below(self, x: float) -> float:
        return self._steps.below(x)

    def left(self, u: float, v: float) -> float:
        return self._steps.left(u, v)


class Empirical(Value):
    """The values of a file, each as likely as the others: the law of a measurement (Efron 1979, the bootstrap).

    A quantile is a value of the file, x_(⌊nu⌋+1) in rising order: definition 1 of Hyndman and Fan 1996, "Sample
    Quantiles in Statistical Packages".
    """

    name: Literal["empirical"] = "empirical"
    file: str
    """CSV or text file with a value in each row (studies.population.measured)."""
    column: str | None = None
    """Name of the column, as in the file's first row. A file of one column needs none."""
    _values: array[float] = PrivateAttr()
    _by_length: array[float] = PrivateAttr()

    @model_validator(mode="after")
    def _read(self) -> Empirical:
        try:
            values = read_values(Path(self.file), self.column)
        except InputError as e:
            raise ValueError(str(e)) from None
        self._values, self._by_length = values, array("d", accumulate(values))
        return self

    @property
    def mean(self) -> float:
        return math.fsum(self._values) / len(self._values)

    def quantile(self, u: float) -> float:
        return self._values[int(u * len(self._values))]

    def below(self, x: float) -> float:
        return bisect_right(self._values, x) / len(self._values)

    def left(self, u: float, v: float) -> float:
        return v * self._values[step_of(self._by_length, u)]


class Shifted(Value):
    """`by` more than another law gives: for example a start-up time that each task has."""

    name: Literal["shifted"] = "shifted"
    by: NonNegative
    law: AnyLaw

    @property
    def mean(self) -> float:
        return self.by + self.law.mean

    def quantile(self, u: float) -> float:
        return self.by + self.law.quantile(u)

    def below(self, x: float) -> float:
        return self.law.below(x - self.by) if x >= self.by else 0.0

    def left(self, u: float, v: float) -> float:
        """Return a part of the shift with probability by/mean; else all of it, and what is left of the other law."""
        part = self.by / self.mean if self.by else 0.0
        if u < part:
            return self.by * v
        return self.by + self.law.left(min((u - part) / (1 - part), _LARGEST_BELOW_1), v)


class Part(Value):
    """A part of a mixture."""

    share: Share
    """Probability that a draw is of this part."""
    law: AnyLaw


class Mixture(Value):
    """Draws of one law or another: for example fast devices and slow ones.

    F(x) = Σ share_i·F_i(x). The mean is Σ share_i·mean_i (McLachlan and Peel 2000, "Finite Mixture Models"). F has no
    inverse in a closed form: a quantile is found by bisection, to the last bit. That takes about 0.1 ms.
    """

    name: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=100)]
    """Laws with their shares, which add up to 1."""

    @model_validator(mode="after")
    def _adds_up(self) -> Mixture:
        _check_sum([part.share for part in self.parts])
        return self

    @property
    def mean(self) -> float:
        return math.fsum(part.share * part.law.mean for part in self.parts if part.share)

    def quantile(self, u: float) -> float:
        """Return the smallest x with F(x) ≥ u. It lies between the parts' own quantiles."""
        own = [part.law.quantile(u) for part in self.parts if part.share]
        return smallest(min(own), max(own), lambda x: self.below(x) >= u)

    def below(self, x: float) -> float:
        return math.fsum(part.share * part.law.below(x) for part in self.parts)

    def left(self, u: float, v: float) -> float:
        """Return what is left of one part, which is met in proportion to share_i·mean_i."""
        steps = list(accumulate(part.share * part.law.mean for part in self.parts))
        at = step_of(steps, u)
        before = steps[at - 1] if at else 0.0
        length = steps[at] - before
        rest = (u * steps[-1] - before) / length if length else 0.0
        return self.parts[at].law.left(min(max(rest, 0.0), _LARGEST_BELOW_1), v)


AnyLaw = Annotated[
    Constant | Uniform | Exponential | HalfNormal | LogNormal | Pareto | Zipf | Choice | Empirical | Shifted | Mixture,
    Field(discriminator="name"),
]
for _law in (Shifted, Part, Mixture):
    _law.model_rebuild()


def _check_sum(shares: Sequence[float]) -> None:
    total = math.fsum(shares)
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"the shares add up to {total:.6g}, expected 1")


def law_files(value: object) -> Iterator[str]:
    """Yield the files of all empirical laws in a value of the study, at any depth."""
    if isinstance(value, Empirical):
        yield value.file
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from law_files(getattr(value, name))
    elif isinstance(value, tuple):
        for one in value:
            yield from law_files(one)
