"""Quadratics with a known optimum, f_i(x) = h_i/2·‖x - c_i‖²: a problem on which theory can be checked exactly.

An epoch is one gradient step, so a task of Q epochs with learning rate η gives y = c_i + (1 - ηh_i)^Q·(x - c_i). All
numbers are float64. Strategies converge to one of these optima:

    unbiased       Σ h_i c_i / Σ h_i            (one step a task; the minimum of Σ f_i)
    speed-biased   Σ λ_i a_i c_i / Σ λ_i a_i     a_i = 1 - (1 - ηh_i)^Q, λ_i = 1/E[T_i] updates a second
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedmq.schemas.errors import InputError
from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.laws import AnyLaw, Constant, NonNegative, normal_quantile
from fedmq.studies.population.population import Member
from fedmq.studies.problems.lazy_training import Job, Trained, stacked_corrections
from fedmq.studies.value import Value

Vector = npt.NDArray[np.float64]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Quadratics(Value):
    """Quadratics with curvatures from a law, and optima that are normal around 0.

    The first coordinate of an optimum follows from the participant's label position.
    """

    name: Literal["quadratics"] = "quadratics"
    dimension: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    curvature: AnyLaw = Constant(value=1)
    spread: NonNegative = 1.0
    """Standard deviation of the optima."""
    noise: NonNegative = 0.0
    """Standard deviation of the normal noise on each coordinate of a gradient."""
    start: Finite = 0.0
    """Value of each coordinate of the model at the start. 0 is the mean of the optima: a model that hardly moves is
    close to the best one, so step sizes that are tuned for too short a run come out too small."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "distance")
    """Metrics of an evaluation."""

    def for_tuning(self, part: float) -> tuple[Quadratics, str]:  # noqa: ARG002
        """Return the problem of the trials (studies.problems.problem.ForTuning)."""
        return self, "participants and examples of the tuning's own seeds"

    def deal(self, members: Sequence[Member], seed: int) -> QuadraticFederation:
        curvatures, optima = [], []
        for m in members:
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(m.index, 1000)))
            curvatures.append(self.curvature.quantile(rng.random()))
            optimum = self.spread * rng.standard_normal(self.dimension)
            optimum[0] = self.spread * normal_quantile(m.label_position)
            optima.append(optimum)
        return QuadraticFederation(
            np.array(curvatures), np.array(optima), [m.examples for m in members], noise=self.noise, start=self.start
        )


class QuadraticFederation:
    """Quadratics with curvatures [participants] and optima [participants, dimension]. The one tensor is called "x"."""

    evaluates = True

    def __init__(
        self,
        curvatures: Vector,
        optima: Vector,
        num_examples: Sequence[int] | None = None,
        *,
        noise: float = 0.0,
        start: float = 0.0,
    ) -> None:
        self.curvatures, self.optima = curvatures, optima
        self.num_examples = [1] * len(curvatures) if num_examples is None else list(num_examples)
        self.initial = Parameters({"x": np.full(optima.shape[1], start)})
        self.backend = QuadraticCohort(curvatures, optima, self.num_examples, noise)

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        """Return the mean of all f_i (loss), and the distance to its minimum."""
        x = parameters["x"]
        squares = np.square(x - self.optima).sum(axis=1)
        return {
            "loss": float(0.5 * np.mean(self.curvatures * squares)),
            "distance": float(np.linalg.norm(x - self.optimum())),
        }

    def optimum(self) -> Vector:
        """Return the minimum of the mean of all f_i."""
        return weighted_mean(self.curvatures, self.optima)

    def speed_biased(self, updates_per_s: Vector, learning_rate: float, steps: int) -> Vector:
        """Return the point where asynchronous aggregation without correction settles (see the module docstring)."""
        pull = 1.0 - (1.0 - learning_rate * self.curvatures) ** steps
        return weighted_mean(updates_per_s * pull, self.optima)


@dataclass(frozen=True, slots=True)
class QuadraticCohort:
    """Gradient descent for a whole cohort, with one array operation for each step."""

    curvatures: Vector
    optima: Vector
    num_examples: Sequence[int]
    noise: float
    name: str = "numpy, quadratics"

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        config = jobs[0].config
        if config.learning_rate is None:
            raise InputError("training.learning_rate is not set: quadratics have no default, give one")
        who = np.array([job.participant for job in jobs])
        h, c = self.curvatures[who][:, None], self.optima[who]
        x = np.stack([job.base["x"] for job in jobs])
        base = x.copy()
        steps = np.array([min(j.config.epochs, j.config.max_steps or j.config.epochs) for j in jobs])
        corrections = stacked_corrections(jobs, "x")
        noises: list[Any] = [np.random.default_rng(j.config.seed) for j in jobs] if self.noise else []
        for step in range(int(steps.max())):
            gradient = h * (x - c)
            if corrections is not None:
                gradient += corrections
            if config.proximal_mu:
                gradient += config.proximal_mu * (x - base)
            if noises:
                gradient += self.noise * np.stack([rng.standard_normal(x.shape[1]) for rng in noises])
            x = np.where((step < steps)[:, None], x - config.learning_rate * gradient, x)
        losses = 0.5 * h[:, 0] * np.square(x - c).sum(axis=1)
        return [
            Trained(Parameters({"x": x[i]}), self.num_examples[w], int(steps[i]), {"loss": float(losses[i])})
            for i, w in enumerate(who)
        ]


def weighted_mean(weights: Vector, points: Vector) -> Vector:
    """Return Σ w_i p_i / Σ w_i over the rows of `points`."""
    return np.asarray(weights @ points / weights.sum())
