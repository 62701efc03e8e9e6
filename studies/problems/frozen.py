"""A problem whose model has a frozen part (schemas.frozen): its core sees only what moves, as a coordinator's does.

A participant gets the frozen part with its first task. Trainers and evaluation get the whole model. Tensors of the part
begin to move at the versions of [training] unfreeze.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts, check_growth, scheduled
from fedmq.coordinator.settings import Unfreeze
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.schemas.errors import TrainerError, shown
from fedmq.schemas.frozen import Frozen, split_off
from fedmq.schemas.parameters import Parameters
from fedmq.studies.problems.lazy_training import Backend, Job, Trained, check_trained
from fedmq.studies.problems.problem import Federation


def without_frozen(federation: Federation, names: Mapping[str, bool]) -> Federation:
    """Return the federation, with these tensors of its model as the frozen part. They are named as `scheduled` takes
    them. Raises AppError as `split_off`."""
    moving, part = split_off(federation.initial, names)
    return federation if part is None else FrozenFederation(federation, moving.packed(), part, names)


def with_schedule(federation: Federation, schedule: Sequence[Unfreeze], strategy: Strategy[Any]) -> Federation:
    """Return the federation with tensors that begin to move at some versions. Raises ConfigError as `scheduled`, and if
    the strategy's state cannot grow."""
    if not schedule:
        return federation
    if not isinstance(federation, FrozenFederation):
        scheduled(None, {}, schedule)
        return federation
    return federation.with_schedule(schedule, strategy)


class FrozenFederation:
    """A federation around one that knows only whole models."""

    def __init__(
        self,
        inner: Federation,
        moving: Parameters,
        part: Frozen,
        names: Mapping[str, bool],
        schedule: Sequence[Unfreeze] = (),
    ) -> None:
        self._inner, self._names = inner, names
        parts = scheduled(part, names, schedule)
        assert parts is not None
        self.frozen: FrozenParts = parts
        """The part that a participant gets with its first task."""
        self.initial = moving
        self.num_examples = inner.num_examples
        self.backend: Backend = _WholeModels(inner.backend, parts)
        self.evaluates = inner.evaluates

    def with_schedule(self, schedule: Sequence[Unfreeze], strategy: Strategy[Any]) -> FrozenFederation:
        """Return the same federation with a schedule. See the function of this name."""
        made = FrozenFederation(self._inner, self.initial, self.frozen.first, self._names, schedule)
        check_growth(strategy, self.initial, made.frozen)
        return made

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        return self._inner.evaluate(self.whole(parameters))

    def whole(self, parameters: Parameters) -> Parameters:
        """Return the whole model with these tensors, which are those that move at some version."""
        part = self.frozen.beside(parameters)
        return parameters if part is None else part.join(parameters)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class _WholeModels:
    """A backend that trains whole models, and returns what moves. It has none of the optional functions."""

    def __init__(self, inner: Backend, parts: FrozenParts) -> None:
        self._inner, self._parts = inner, parts
        at_once = getattr(inner, "at_once", None)
        if at_once is not None:
            self.at_once = at_once

    @property
    def name(self) -> str:
        return self._inner.name

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        frozen = {id(job.base): self._parts.beside(job.base) for job in jobs}
        joined = {id(job.base): _joined(frozen[id(job.base)], job.base) for job in jobs}
        whole = [job._replace(base=joined[id(job.base)]) for job in jobs]
        results = self._inner.train(whole)
        check_trained(results, whole)
        return [_cut(frozen[id(job.base)], result) for job, result in zip(jobs, results, strict=True)]


def _joined(part: Frozen | None, moving: Parameters) -> Parameters:
    return moving if part is None else part.join(moving)


def _cut(part: Frozen | None, result: Trained) -> Trained:
    if part is None:
        return result
    changed = part.changed_in(result.parameters)
    if changed is not None:
        raise TrainerError(
            f"the training changed the tensor {shown(changed)}, which is frozen: leave it as it is, or out of "
            "what the app's `frozen` returns"
        )
    return result._replace(parameters=part.cut(result.parameters))
