"""Small federations for tests of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.strategies.math.staleness_weights import Constant as NoStaleness
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.laws import Constant
from fedmq.studies.population.population import Compute, Population
from fedmq.studies.problems.quadratics import QuadraticFederation, Quadratics
from fedmq.studies.problems.softmax import SoftmaxFederation
from fedmq.studies.simulate import simulate

STEP = TrainingConfig(learning_rate=0.1)


@dataclass
class Given:
    """A problem that was dealt out before: the same federation for every seed."""

    federation: Any

    def deal(self, members, seed):
        return self.federation


@dataclass
class Watched:
    """A backend that notes the size of each cohort and cuts it into pieces of `chunk`."""

    inner: Any
    chunk: int = 10**9
    cohorts: list[int] = field(default_factory=list)
    participants: list[int] = field(default_factory=list)

    @property
    def name(self):
        return self.inner.name

    def train(self, jobs):
        self.cohorts.append(len(jobs))
        self.participants += [job.participant for job in jobs]
        pieces = [jobs[i : i + self.chunk] for i in range(0, len(jobs), self.chunk)]
        return [result for piece in pieces for result in self.inner.train(piece)]


def fedbuff(buffer_size: int, **fields) -> FedBuff:
    return FedBuff(buffer_size=buffer_size, staleness=NoStaleness(), **fields)


SECOND = Constant(value=1)


def population(participants: int, task_s=SECOND, **fields) -> Population:
    return Population(participants=participants, compute=Compute(task_s=task_s), **fields)


def until(updates: int | None = None, *, evaluate_interval_s: float = 1e12, **fields) -> StudyRun:
    stop = {name: fields.pop(name) for name in ("max_versions", "max_time_s") if name in fields}
    return StudyRun(stop=StopSettings(max_updates=updates, **stop), evaluate_interval_s=evaluate_interval_s, **fields)


def quadratics(participants: int) -> QuadraticFederation:
    rng = np.random.default_rng(5)
    return QuadraticFederation(rng.uniform(0.5, 1.5, participants), rng.standard_normal((participants, 3)))


def softmax(participants: int) -> SoftmaxFederation:
    """Softmax regression with five features and three classes. Each participant has one to nine examples."""
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((200, 5)).astype(np.float32), rng.integers(0, 3, 200)
    rows = [rng.integers(0, 200, int(n)) for n in rng.integers(1, 10, participants)]
    return SoftmaxFederation(x, y, rows, 3, test=(x, y))


__all__ = [
    "STEP", "Given", "Quadratics", "TrainingConfig", "Watched", "fedbuff", "population", "quadratics", "simulate",
    "softmax", "until",
]  # fmt: skip
