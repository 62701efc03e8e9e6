"""A model's frozen part, version after version: at the versions of a schedule, tensors of it begin to move.

Rules
1. Which tensors are frozen follows from the version alone: those of the part at the run's creation, without those whose
   version has come. A checkpoint's scalars name that first part and the whole schedule, and only the first part's file
   is ever written.
2. The tensors of a version's schedule are in that version's parameters, with the frozen bytes. Tasks of that version
   and of later ones carry them, and so do their updates.
3. An update of an older version counts as the update that it would have been if these tensors had been in its model
   already and its training had left them alone: a delta of zero, or, in a reply of parameters, the frozen bytes. It
   loses nothing, and keeps its weight.
4. The strategy's state grows as a restart would make it: its own arrays stay, and arrays of new tensors are those of a
   new run's state.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedmq.coordinator.settings import Unfreeze
from fedmq.coordinator.strategies.protocol import State, Strategy
from fedmq.schemas.errors import AppError, ConfigError, in_short, shown
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.messages import Reply
from fedmq.schemas.methods import update_spec
from fedmq.schemas.nearest import near
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, spec_of

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Unfrozen:
    """The tensors that begin to move at a version."""

    version: int
    tensors: tuple[str, ...]


class FrozenParts:
    """A run's frozen part, and the versions at which tensors leave it."""

    def __init__(self, first: Frozen, schedule: Sequence[Unfrozen] = ()) -> None:
        """`schedule` names tensors of `first`, each once, in order of rising versions."""
        self.first = first
        self.schedule = tuple(schedule)
        self._parts: dict[int, Frozen | None] = {0: first}

    @classmethod
    def restored(cls, first: Frozen, scalars: Mapping[str, Any]) -> FrozenParts:
        """Return the parts whose first one and whose `scalars` these are."""
        return cls(first, [Unfrozen(one["version"], tuple(one["tensors"])) for one in scalars.get("unfreeze", ())])

    def scalars(self) -> dict[str, Any]:
        """Return the JSON values that the checkpoint stores."""
        schedule = {"unfreeze": [asdict(one) for one in self.schedule]} if self.schedule else {}
        return {"frozen": self.first.digest} | schedule

    def due(self, version: int) -> Unfrozen | None:
        """Return the tensors that begin to move at this version; None if there are none."""
        return next((one for one in self.schedule if one.version == version), None)

    def era(self, version: int) -> int:
        """Return the number of entries of the schedule whose version has come."""
        return sum(one.version <= version for one in self.schedule)

    def unfrozen_at(self, version: int) -> int | None:
        """Return the last version up to this one at which tensors began to move; None if none did."""
        return max((one.version for one in self.schedule if one.version <= version), default=None)

    def at(self, version: int) -> Frozen | None:
        """Return the part that is frozen at a version; None if nothing is any more. One pass over it, the first
        time."""
        era = self.era(version)
        if era not in self._parts:
            gone = {name for one in self.schedule[:era] for name in one.tensors}
            self._parts[era] = self.first.less(gone)
        return self._parts[era]

    def digests(self) -> list[str | None]:
        """Return the digests of all parts, by their era."""
        versions = [0, *(one.version for one in self.schedule)]
        return [None if part is None else part.digest for part in map(self.at, versions)]

    def whole(self, version: int, moving: Parameters) -> Parameters:
        """Return the whole model of a version. Nothing is copied."""
        part = self.at(version)
        return moving if part is None else part.join(moving)

    def beside(self, moving: Mapping[str, Any]) -> Frozen | None:
        """Return the part that is frozen in a version with these tensors; None if nothing is."""
        begun = [one.version for one in self.schedule if one.tensors[0] in moving]
        return self.at(begun[-1] if begun else 0)

    def moving(self, version: int, whole: Parameters) -> Parameters:
        """Return the tensors of a whole model that move at a version, flagged as they are then. Nothing is copied."""
        part = self.at(version)
        still = frozenset[str]() if part is None else part.by_name.keys()
        trainable = {name for one in self.schedule[: self.era(version)] for name in one.tensors}
        found = {name: array for name, array in whole.items() if name not in still}
        return Parameters(found, (whole.non_trainable & found.keys()) - trainable)

    def grown(self, version: int, parameters: Parameters) -> Parameters:
        """Return the parameters of a version that were made without the tensors that begin to move at it."""
        return self.moving(version, self.whole(version - 1, parameters)).packed()

    def completed(self, update: Parameters, base_version: int, parameters: Parameters, reply: Reply) -> Parameters:
        """Return an update of an older version with what it lacks of `parameters`, the current ones (rule 3)."""
        late = {name for one in self.schedule if one.version > base_version for name in one.tensors}
        names = parameters.averaged()
        if late.isdisjoint(names):
            return update
        frozen = self.first.by_name

        def added(name: str) -> Any:
            return frozen[name] if reply == "parameters" else np.zeros_like(frozen[name])

        tensors = {name: added(name) if name in late else update[name] for name in names}
        return Parameters(tensors, parameters.non_trainable & tensors.keys())


def update_specs(
    reply: Reply, parameters: Parameters, version: int, frozen: FrozenParts | None
) -> tuple[ModelSpec, tuple[tuple[int, ModelSpec], ...]]:
    """Return the tensors of an update of version 0, and those of the versions at which that changes, in order.

    `parameters` are those of `version`.
    """
    if frozen is None or not frozen.schedule:
        return update_spec(reply, spec_of(parameters)), ()
    whole = frozen.whole(version, parameters)
    first, *later = (
        (one, update_spec(reply, spec_of(frozen.moving(one, whole))))
        for one in (0, *(entry.version for entry in frozen.schedule))
    )
    return first[1], tuple(later)


def grown_state(strategy: Strategy[Any], state: State, parameters: Parameters) -> State:
    """Return a state that counts no update yet to come for parameters with more tensors (rule 4)."""
    fresh = strategy.init(parameters).arrays()
    return strategy.restore({**fresh, **state.arrays()}, state.scalars(), parameters)  # type: ignore[no-any-return]


def check_growth(strategy: Strategy[Any], parameters: Parameters, frozen: FrozenParts) -> Parameters:
    """Let a new state grow by all tensors of the schedule, and return the parameters with them.

    Raises ConfigError if the strategy cannot do it: at the start, and not at a version of the night.
    """
    last = frozen.schedule[-1].version
    grown = frozen.moving(last, frozen.whole(0, parameters))
    try:
        grown_state(strategy, strategy.init(parameters), grown)
    except (MemoryError, AppError):
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"training.unfreeze: the state of {type(strategy).__name__} does not grow by new tensors: restore() raised "
            f"{in_short(error)}. Leave unfreeze out, or let restore() take the arrays of a larger model"
        ) from error
    return grown


def scheduled(part: Frozen | None, trainable: Mapping[str, bool], table: Sequence[Unfreeze]) -> FrozenParts | None:
    """Return a new run's frozen part with the schedule of [training] unfreeze.

    `trainable` says of each frozen tensor whether an optimizer would step it. Others, such as the statistics of a
    BatchNormalization, stay frozen: nothing would move them. Raises ConfigError for a pattern that matches nothing that
    can begin to move.
    """
    if part is None:
        if table:
            raise ConfigError("training.unfreeze: the model has no frozen tensors: leave it out, or freeze a layer")
        return None
    left = {name: None for name in part.by_name if trainable[name]}
    schedule = []
    for i, one in enumerate(table):
        chosen: dict[str, None] = {}
        for pattern in one.tensors:
            matching = [name for name in left if fnmatch.fnmatchcase(name, pattern)]
            if not matching:
                raise ConfigError(_matches_nothing(f"training.unfreeze.{i}.tensors", pattern, trainable, left))
            chosen |= dict.fromkeys(matching)
        tensors = tuple(name for name in left if name in chosen)
        schedule.append(Unfrozen(one.version, tensors))
        left = {name: None for name in left if name not in chosen}
    return FrozenParts(part, schedule)


def _matches_nothing(place: str, pattern: str, trainable: Mapping[str, bool], left: Mapping[str, None]) -> str:
    others = [name for name in trainable if name not in left and fnmatch.fnmatchcase(name, pattern)]
    if others:
        why = "an earlier entry unfreezes" if trainable[others[0]] else "no optimizer steps"
        return f"{place}: {shown(pattern)} matches only tensors that {why}, {shown(others[0])} the first: take it out"
    names = list(left)
    suggestion = near(pattern.strip("*?"), names) or f": {', '.join(map(shown, names[:_MOST_NAMED]))}"
    return (
        f"{place}: {shown(pattern)} matches none of the {len(names)} frozen tensors that can be trained{suggestion}. "
        'A pattern may have * for any letters, as in "*/kernel"'
    )
