"""A problem whose model has a frozen part (schemas.frozen): its core sees only what moves, as a coordinator's does.

A participant gets the frozen part with its first task. Trainers and evaluation get the whole model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fedmq.schemas.errors import TrainerError, shown
from fedmq.schemas.frozen import Frozen, split_off
from fedmq.schemas.parameters import Parameters
from fedmq.studies.problems.lazy_training import Backend, Job, Trained, check_trained
from fedmq.studies.problems.problem import Federation


def without_frozen(federation: Federation, names: Collection[str]) -> Federation:
    """Return the federation, with these tensors of its model as the frozen part. Raises AppError as `split_off`."""
    moving, part = split_off(federation.initial, names)
    return federation if part is None else FrozenFederation(federation, moving.packed(), part)


class FrozenFederation:
    """A federation around one that knows only whole models."""

    def __init__(self, inner: Federation, moving: Parameters, part: Frozen) -> None:
        self._inner = inner
        self.frozen = part
        """The part that a participant gets with its first task."""
        self.initial = moving
        self.num_examples = inner.num_examples
        self.backend: Backend = _WholeModels(inner.backend, part)
        self.evaluates = inner.evaluates

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        return self._inner.evaluate(self.frozen.join(parameters))

    def whole(self, parameters: Parameters) -> Parameters:
        """Return the whole model with these tensors."""
        return self.frozen.join(parameters)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class _WholeModels:
    """A backend that trains whole models, and returns what moves. It has none of the optional functions."""

    def __init__(self, inner: Backend, part: Frozen) -> None:
        self._inner, self._part = inner, part
        at_once = getattr(inner, "at_once", None)
        if at_once is not None:
            self.at_once = at_once

    @property
    def name(self) -> str:
        return self._inner.name

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        bases = {id(job.base): job.base for job in jobs}
        joined = {key: self._part.join(base) for key, base in bases.items()}
        whole = [job._replace(base=joined[id(job.base)]) for job in jobs]
        results = self._inner.train(whole)
        check_trained(results, whole)
        return [self._cut(result) for result in results]

    def _cut(self, result: Trained) -> Trained:
        changed = self._part.changed_in(result.parameters)
        if changed is not None:
            raise TrainerError(
                f"the training changed the tensor {shown(changed)}, which is frozen: leave it as it is, or out of "
                "what the app's `frozen` returns"
            )
        return result._replace(parameters=self._part.cut(result.parameters))
