"""The part of a model that no update moves: it travels once, by its digest, and never comes back.

A frozen tensor `w` that is the model's tensor number 3, counted from 0, travels as `frozen:3:w`, after the tensors that
move and the method's groups. So the place of each tensor in the whole model is in its name, and the digest covers it.
The digest is the SHA-256 that signatures are made of (schemas.signing.tensors_digest).

The coordinator's core, strategies, checkpoints and archive know only the tensors that move. Evaluation, the exported
model and the trainers get the whole model.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedmq.schemas.errors import AppError, SpecMismatch, shown
from fedmq.schemas.parameters import Array, Parameters, is_floating
from fedmq.schemas.signing import tensors_digest

GROUP = "frozen"
_PREFIX = f"{GROUP}:"
_NAME = re.compile(r"frozen:(0|[1-9][0-9]{0,8}):(.+)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Frozen:
    """Frozen tensors. Create it with `frozen_part`, or with `split_off`."""

    tensors: Parameters
    """The tensors by the names under which they travel."""
    digest: str
    """SHA-256 of the tensors, 64 hexadecimal digits."""

    @cached_property
    def _placed(self) -> tuple[tuple[int, str, Array], ...]:
        found = []
        for travelling, array in self.tensors.items():
            place, name = _parsed(travelling)
            found.append((place, name, array))
        return tuple(found)

    @cached_property
    def by_name(self) -> Mapping[str, Array]:
        """The tensors by their names in the model."""
        return {name: array for _, name, array in self._placed}

    @property
    def num_bytes(self) -> int:
        return self.tensors.num_bytes

    def join(self, moving: Parameters) -> Parameters:
        """Return the whole model, in its order, with the groups that follow the moving tensors. Nothing is copied.

        Raises SpecMismatch if the tensors do not go together.
        """
        rest = iter(moving.items())
        whole: dict[str, Array] = {}
        for place, name, array in self._placed:
            while len(whole) < place:
                following = next(rest, None)
                if following is None:
                    raise SpecMismatch(
                        f"the frozen tensor {shown(name)} is number {place} of its model, and there are only "
                        f"{len(moving)} tensors beside the frozen ones: they are of two models"
                    )
                whole[following[0]] = following[1]
            whole[name] = array
        whole.update(rest)
        if len(whole) != len(moving) + len(self._placed):
            raise SpecMismatch("a frozen tensor has the name of one that moves: they are of two models")
        return Parameters(whole, moving.non_trainable | self.by_name.keys())

    def changed_in(self, whole: Mapping[str, Array]) -> str | None:
        """Return the name of the first frozen tensor with other bits than here; None if they are all the same."""
        return next((name for name, array in self.by_name.items() if not _same(array, whole[name])), None)

    def less(self, names: Collection[str]) -> Frozen | None:
        """Return the part without the tensors of these names in the model; None if it would be empty. One pass."""
        left = [travelling for travelling in self.tensors if _parsed(travelling)[1] not in names]
        return frozen_part(self.tensors.select(left)) if left else None

    def cut(self, tensors: Parameters) -> Parameters:
        """Return the tensors without those that have the name of a frozen one."""
        return tensors.select(name for name in tensors if name not in self.by_name)


def frozen_part(tensors: Parameters) -> Frozen:
    """Return tensors that came under the names of frozen ones, with their digest: one pass. Raises SpecMismatch."""
    part = Frozen(tensors, tensors_digest(tensors).hex())
    places = [place for place, *_ in part._placed]
    if any(one >= other for one, other in itertools.pairwise(places)):
        raise SpecMismatch("the frozen tensors are not in the order of their model")
    return part


def split_off(parameters: Parameters, names: Collection[str]) -> tuple[Parameters, Frozen | None]:
    """Return the tensors that move, and the frozen ones, whose names in the model these are; None if there are none.

    Raises AppError for a name that the model does not have, and if nothing would be left to train.
    """
    frozen = frozenset(names)
    if not frozen:
        return parameters, None
    unknown = sorted(frozen - parameters.keys())
    if unknown:
        raise AppError(f"the model has no tensor {shown(unknown[0])}, which is said to be frozen")
    for name in parameters:
        if name.startswith(_PREFIX):
            raise AppError(f"the model's tensor {shown(name)} begins as a frozen one travels: give it another name")
    moving = parameters.select(name for name in parameters if name not in frozen)
    if not any(is_floating(array.dtype) for array in moving.values()):
        raise AppError(
            "all tensors of the model are frozen: leave a layer with trainable=True, or there is no training"
        )
    tensors = {f"{_PREFIX}{i}:{name}": array for i, (name, array) in enumerate(parameters.items()) if name in frozen}
    return moving, frozen_part(Parameters(tensors, set(tensors)))


def beside(tensors: Parameters) -> tuple[Parameters, Parameters]:
    """Return a task's own tensors, and the frozen ones beside them."""
    own = [name for name in tensors if not name.startswith(_PREFIX)]
    if len(own) == len(tensors):
        return tensors, Parameters({})
    return tensors.select(own), tensors.select(name for name in tensors if name.startswith(_PREFIX))


def with_beside(tensors: Parameters, part: Frozen) -> Parameters:
    """Return a task's tensors with the frozen ones beside them."""
    return Parameters({**tensors, **part.tensors}, tensors.non_trainable | part.tensors.non_trainable)


def _parsed(travelling: str) -> tuple[int, str]:
    found = _NAME.fullmatch(travelling)
    if found is None:
        raise SpecMismatch(f"the tensor {shown(travelling)} is no frozen one: expected frozen:<place>:<name>")
    return int(found[1]), found[2]


def _same(one: Array, other: Array) -> bool:
    if one is other:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    first, second = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (one, other))
    return bool(np.array_equal(first, second))
