"""PyTorch models in a study: the participants' own trainer, for one participant after the other (the plain path).

The trainer is the deployment's (participant.training.torch.trainer). So a task has the same bits here and there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.torch.data import as_data, leaves, number_of, taken
from fedmq.participant.training.torch.trainer import TorchTrainer
from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.deals import Rows
from fedmq.studies.problems.lazy_training import Job, Trained
from fedmq.studies.problems.user_randomness import TRAINING, seeded

MakeTrainer = Callable[..., TorchTrainer]
"""Makes a trainer of data, or of None and `evaluation_data`."""


class Examples:
    """All participants' examples: numbered rows of arrays or of Datasets, which stay as they are given."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Any]] = []
        """First row and data of each part."""
        self._ranges: dict[Any, tuple[int, int]] = {}

    def add(self, given: Any, name: str) -> npt.NDArray[np.int64]:
        """Return the rows of these examples. Equal arrays are kept once. Raises AppError if they are none."""
        data = as_data(given, name)
        if not number_of(data):
            raise AppError(f"{name} has no examples, expected at least 1")
        key = _digest(data) if isinstance(data, tuple) else id(data)  # the part keeps it, and so its id
        if key not in self._ranges:
            start = sum(number_of(part) for _, part in self._parts)
            self._parts.append((start, data))
            self._ranges[key] = start, start + number_of(data)
        return np.arange(*self._ranges[key])

    def taken(self, rows: Rows) -> list[Any]:
        """Return these rows as data for a trainer, one for each part that they lie in."""
        found = []
        for start, data in self._parts:
            own = np.asarray(rows)[(np.asarray(rows) >= start) & (np.asarray(rows) < start + number_of(data))]
            if len(own):
                whole = np.array_equal(own - start, np.arange(number_of(data)))
                found.append(data if whole else taken(data, own - start))
        return found


class TorchFederation:
    """Participants of which number i has `rows[i]` of the examples.

    `test` has the data for the central evaluation, or a list of several; None for no evaluation.
    """

    def __init__(
        self, make_trainer: MakeTrainer, examples: Examples, rows: Sequence[Rows], test: Any, initial: Parameters
    ) -> None:
        self.initial = initial
        self.num_examples = [len(r) for r in rows]
        self.backend = TorchCohort(make_trainer, examples, rows)
        self.evaluates = test is not None
        tests = test if isinstance(test, list) else [test] if self.evaluates else []
        self._tests = [as_data(one, "what load_test_data() gave") for one in tests]
        self._evaluator = make_trainer(evaluation_data=self._tests[0]) if self.evaluates else None

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        """Return the means over all test examples."""
        sums: dict[str, float] = {}
        assert self._evaluator is not None
        for data in self._tests:
            self._evaluator.use_evaluation_data(data)
            for name, value in self._evaluator.evaluate(parameters).items():
                sums[name] = sums.get(name, 0.0) + value * number_of(data)
        return {name: value / sum(map(number_of, self._tests)) for name, value in sums.items()}


class TorchCohort:
    """A backend that trains PyTorch models."""

    name = "PyTorch by the plain path, one participant after the other"

    def __init__(self, make_trainer: MakeTrainer, examples: Examples, rows: Sequence[Rows]) -> None:
        self._trainer = make_trainer(examples.taken(rows[0])[0])
        self._examples, self._rows = examples, rows

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trained:
        found = self._examples.taken(self._rows[job.participant])
        if not found:
            raise TrainerError(f"participant {job.participant} has no examples")
        self._trainer.use_data(found[0])
        correction: Mapping[str, Any] | None = job.correction
        with seeded(job.config.seed, TRAINING, keras=False):
            result = self._trainer.train(job.base, job.config, correction)
        parameters = Parameters(result.parameters, job.base.non_trainable)
        return Trained(parameters, result.num_examples, result.num_steps, result.metrics)


def _digest(data: tuple[Any, Any]) -> str:
    found = hashlib.sha256()
    for what, part in zip("xy", data, strict=True):
        for place, leaf in leaves(part, what):
            array = np.ascontiguousarray(leaf)
            found.update(repr((place, array.shape, str(array.dtype))).encode())
            found.update(array.tobytes())
    return found.hexdigest()
