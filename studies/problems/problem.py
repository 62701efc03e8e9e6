"""What participants train on: a model, everybody's data, and a way to train cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.population import Member
from fedmq.studies.problems.lazy_training import Backend


class Federation(Protocol):
    """A problem dealt out to one population, for one seed."""

    @property
    def initial(self) -> Parameters:
        """Version 0."""

    @property
    def num_examples(self) -> Sequence[int]:
        """Of each participant."""

    @property
    def backend(self) -> Backend: ...

    @property
    def evaluates(self) -> bool:
        """Whether there is a central evaluation."""

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        """Its metrics; asked for only where there is one."""


class Problem(Protocol):
    """A frozen value that deals itself out. Its contents decide a cell's key, and so do those of the paths in `files`,
    an optional attribute. `metrics`, where it has one, is what will be measured, for a study's file to be checked."""

    def deal(self, members: Sequence[Member], seed: int) -> Federation: ...


@runtime_checkable
class ForTuning(Protocol):
    """What a problem has in addition that can keep its test examples out of the tuning: what is chosen by them does too
    well on them."""

    def for_tuning(self, part: float) -> tuple[Problem, str]:
        """The same problem, judged on this part of the training examples in place of the test set (which may be of
        the seed anyway); and in words, on what."""
