"""A study's problem: a model, everybody's data, and a way to train cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.population import Member
from fedmq.studies.problems.lazy_training import Backend


class Federation(Protocol):
    """A problem that was dealt out to one population, for one seed.

    An optional method `check_training(training)` is called before a run. It raises ConfigError if it cannot be trained
    like this. Optional `frozen` and `whole(parameters)` are those of studies.problems.frozen. An optional
    `distil(ensemble, start, seed)` is for strategies that distil their versions (studies.engine.distilling).
    """

    @property
    def initial(self) -> Parameters:
        """Version 0 of the model."""

    @property
    def num_examples(self) -> Sequence[int]:
        """Training examples of each participant."""

    @property
    def backend(self) -> Backend: ...

    @property
    def evaluates(self) -> bool:
        """True if there is a central evaluation."""

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        """Return the metrics of a central evaluation. Called only if `evaluates`."""


class Problem(Protocol):
    """A frozen value that deals itself out.

    Its contents decide a cell's key, and so do the contents of the paths in `files`, an optional attribute. Another
    optional attribute, `metrics`, names what will be measured, so that a study's file can be checked.
    """

    def deal(self, members: Sequence[Member], seed: int) -> Federation: ...


@runtime_checkable
class ForTuning(Protocol):
    """A problem that can keep its test examples out of the tuning.

    Values that were chosen by the test examples do too well on them.
    """

    def for_tuning(self, part: float) -> tuple[Problem, str]:
        """Return the same problem, judged on this part of the training examples in place of the test set, and the name
        of these examples in words.

        A problem whose test set follows from the seed may return itself.
        """
