"""Quadratics with a known optimum, f_i(x) = h_i/2·‖x - c_i‖²: a problem on which theory can be checked exactly.

An epoch is one gradient step, so a task of Q epochs with learning rate η gives y = c_i + (1 - ηh_i)^Q·(x - c_i). All
numbers are float64. Q is the task's number of epochs, or the participant's own number of steps if that is smaller.
Strategies converge to one of these optima:

    unbiased       Σ h_i c_i / Σ h_i            (one step a task; the minimum of Σ f_i)
    speed-biased   Σ λ_i a_i c_i / Σ λ_i a_i     a_i = 1 - (1 - ηh_i)^Q_i, λ_i = 1/E[T_i] updates a second
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedmq.schemas.errors import ConfigError, InputError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.laws import AnyLaw, Constant, NonNegative, Positive, normal_quantile
from fedmq.studies.population.population import Member
from fedmq.studies.problems.lazy_training import Job, Trained, stacked_corrections
from fedmq.studies.value import Value

Vector = npt.NDArray[np.float64]
T = TypeVar("T")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Quadratics(Value):
    """Quadratics with curvatures from a law, and optima that are normal around 0; or with those that are given.

    The first coordinate of an optimum that is drawn follows from the participant's label position. Of lists that are
    given, participant i has entry i, modulo their length. The number of participants is a multiple of it.
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
    optima: Annotated[tuple[Finite | tuple[Finite, ...], ...], Field(min_length=1)] | None = None
    """Optima of the participants, in place of `spread`: a number each, or a list of `dimension` numbers each."""
    curvatures: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Curvatures of the participants, in place of `curvature`."""
    local_steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    """Most gradient steps in a task of each participant. A task asks for `training.epochs` steps, which must be the
    largest of these or more."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "distance")
    """Metrics of an evaluation."""

    @model_validator(mode="after")
    def _said_once(self) -> Quadratics:
        for given, law in (("optima", "spread"), ("curvatures", "curvature")):
            if getattr(self, given) is not None and law in self.model_fields_set:
                raise ValueError(f"{given} and {law} both say the same: leave one out")
        for i, optimum in enumerate(self.optima or (), 1):
            count = len(optimum) if isinstance(optimum, tuple) else 1
            if count != self.dimension:
                raise ValueError(
                    f"optimum {i} has {count} coordinates, and dimension is {self.dimension}: expected both equal"
                )
        return self

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
        count = len(members)
        if self.optima is not None:
            optima = [np.atleast_1d(np.array(one, float)) for one in _each("optima", self.optima, count)]
        if self.curvatures is not None:
            curvatures = list(_each("curvatures", self.curvatures, count))
        steps = None if self.local_steps is None else list(_each("local_steps", self.local_steps, count))
        examples = [m.examples for m in members]
        return QuadraticFederation(
            np.array(curvatures), np.array(optima), examples, noise=self.noise, start=self.start, local_steps=steps
        )


def _each(name: str, given: Sequence[T], participants: int) -> list[T]:
    """Return the value of each participant. Raises ConfigError if they are not a multiple of the values."""
    if participants % len(given):
        raise ConfigError(
            f"problem.{name} has {len(given)} values, and there are {participants} participants: "
            "give one for each participant, or for each of a group that repeats"
        )
    return [given[i % len(given)] for i in range(participants)]


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
        local_steps: Sequence[int] | None = None,
    ) -> None:
        self.curvatures, self.optima, self._local_steps = curvatures, optima, local_steps
        self.num_examples = [1] * len(curvatures) if num_examples is None else list(num_examples)
        self.initial = Parameters({"x": np.full(optima.shape[1], start)})
        steps = None if local_steps is None else np.array(local_steps)
        self.backend = QuadraticCohort(curvatures, optima, self.num_examples, noise, local_steps=steps)

    def check_training(self, training: TrainingConfig) -> None:
        """Raise ConfigError if tasks ask for fewer steps than a participant was given."""
        most = max(self._local_steps or (1,))
        if training.epochs < most:
            raise ConfigError(
                f"training.epochs is {training.epochs}, and problem.local_steps has {most}: an epoch is one step here, "
                f"so set epochs = {most}"
            )

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

    def speed_biased(self, updates_per_s: Vector, learning_rate: float, steps: int | Sequence[int]) -> Vector:
        """Return the point where asynchronous aggregation without correction settles (see the module docstring)."""
        pull = 1.0 - (1.0 - learning_rate * self.curvatures) ** np.array(steps)
        return weighted_mean(updates_per_s * pull, self.optima)


@dataclass(frozen=True, slots=True)
class QuadraticCohort:
    """Gradient descent for a whole cohort, with one array operation for each step."""

    curvatures: Vector
    optima: Vector
    num_examples: Sequence[int]
    noise: float
    name: str = "numpy, quadratics"
    local_steps: npt.NDArray[np.int64] | None = None
    """Most steps of each participant; None for no bound."""

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        config = jobs[0].config
        if config.learning_rate is None:
            raise InputError("training.learning_rate is not set: quadratics have no default, give one")
        who = np.array([job.participant for job in jobs])
        h, c = self.curvatures[who][:, None], self.optima[who]
        x = np.stack([job.base["x"] for job in jobs])
        base = x.copy()
        steps = np.array([min(j.config.epochs, j.config.max_steps or j.config.epochs) for j in jobs])
        if self.local_steps is not None:
            steps = np.minimum(steps, self.local_steps[who])
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
