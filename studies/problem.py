"""What participants train on: a model, everybody's data, and a way to train cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from schemas.parameters import Parameters
from studies.population import Member
from studies.training import Backend


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
    an optional attribute."""

    def deal(self, members: Sequence[Member], seed: int) -> Federation: ...
