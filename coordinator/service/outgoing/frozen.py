"""The frozen part of the model in the messages: to whom it goes, and what comes back all the same.

    hello names the digest           the participant has the part on its disk: tasks carry only what moves
    hello names other ones, or none  the next task carries the part beside what moves
    hello has no such field          an older fedmq: tasks carry the whole model, as one

At a version of [training] unfreeze the part loses tensors. Whoever has an earlier one cuts the new one from it.

An update that answers a task shows that the participant had the part. A decline with the reason `frozen_lost` shows
that it has it no more, and the next task carries it again. None of this is kept over a restart: whoever is not known to
have the part gets it once more. One with an older fedmq, which has not said hello since the start, cannot read such a
task, and declines it.

An older fedmq sends whole updates. They are cut to what moves if they leave the frozen part as it is, and refused if
they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.evaluation import Evaluator
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts
from fedmq.schemas.errors import SpecMismatch, shown
from fedmq.schemas.frozen import Frozen, with_beside
from fedmq.schemas.messages import Hello, Reply, Update
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, spec_of

FrozenForm = Literal["away", "beside", "within"]
"""Place of the frozen part in a task: not in it, beside what moves under names of its own, or among it as one model."""


class FrozenTasks:
    """The frozen part of one run's model in its messages. Without one, everything passes as it is. The loop's thread
    calls everything."""

    def __init__(self, core: Core) -> None:
        self._parts = core.frozen
        self._core = core
        self._digests = [] if core.frozen is None else core.frozen.digests()
        self._have: dict[str, int] = {}
        """Participants that have the part on their disk, with its era (FrozenParts.era). A part has all the tensors of
        later ones, so they can cut these from it."""
        self._older: set[str] = set()
        """Participants whose fedmq does not know of frozen parts."""

    def most_spec(self, reply: Reply) -> ModelSpec:
        """Return the largest tensors of an update: an older fedmq sends those of the whole model."""
        if self._parts is None:
            return self._core.payload_spec
        return update_spec(reply, spec_of(self._parts.whole(self._core.version, self._core.parameters)))

    def on_hello(self, hello: Hello) -> None:
        """Note what a known participant has on its disk."""
        if self._parts is None:
            return
        name = hello.participant_id
        self._have.pop(name, None)
        self._older.discard(name)
        if not self._core.knows(name):
            return
        if hello.frozen is None:
            self._older.add(name)
            return
        here = [era for era, digest in enumerate(self._digests) if digest in hello.frozen]
        if here:
            self._have[name] = here[0]

    def on_accepted(self, participant_id: str, base_version: int) -> None:
        """Note that a participant has trained with the part of this version."""
        if self._parts is not None and participant_id not in self._older:
            era = self._parts.era(base_version)
            self._have[participant_id] = min(era, self._have.get(participant_id, era))

    def on_lost(self, participant_id: str) -> None:
        """Note that a participant has declined a task because it has lost the part."""
        self._have.pop(participant_id, None)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole model, the same in every version."""
        return self._core.task_tensors.num_bytes + self._frozen_bytes(self._core.version)

    def form(self, participant_id: str, base_version: int, coded: bool) -> FrozenForm:
        """Return where the part of this version is in a task for this participant: two tasks of a version carry the
        same tensors only if this is the same. `coded` is as in `of_task`."""
        if self._parts is None or self._parts.at(base_version) is None:
            return "away"
        if participant_id in self._older and not coded:
            return "within"
        return "away" if self._part_for(participant_id, base_version) is None else "beside"

    def num_bytes(self, participant_id: str, base_version: int, tensors: Parameters) -> int:
        """Return the bytes of a task's tensors for this participant."""
        part = self._part_for(participant_id, base_version)
        return tensors.num_bytes + (0 if part is None else part.num_bytes)

    def of_task(
        self, participant_id: str, base_version: int, tensors: Parameters, coded: bool
    ) -> tuple[str | None, Parameters]:
        """Return the digest that a task for this participant names, and its tensors. Nothing is copied.

        `coded`: the model travels in a codec, so the participant knows of frozen parts, whether it has said hello since
        the start or not.
        """
        part = None if self._parts is None else self._parts.at(base_version)
        if part is None:
            return None, tensors
        form = self.form(participant_id, base_version, coded)
        if form == "within":
            return None, part.join(tensors)
        return part.digest, tensors if form == "away" else with_beside(tensors, part)

    def model_bytes(self, base_version: int) -> int:
        """Return the bytes of the tensors that a task of this version is to train from, if it carries no groups."""
        now = self._core.task_tensors.num_bytes
        return now + self._frozen_bytes(self._core.version) - self._frozen_bytes(base_version)

    def cut(self, update: Update, tensors: Parameters) -> Parameters:
        """Return an update's tensors without the frozen ones of an older fedmq, which are not decoded yet.

        Raises SpecMismatch if that would lose something.
        """
        part = None if self._parts is None else self._parts.at(update.base_version)
        if part is None or part.by_name.keys().isdisjoint(tensors):
            return tensors
        for name, array in part.by_name.items():
            sent = tensors.get(name)
            if sent is None:
                continue
            expected = array if update.payload == "parameters" else np.zeros((), array.dtype)
            fits = sent.shape == array.shape and sent.dtype == array.dtype and bool(np.all(sent == expected))
            if not fits or update.payload == "change":
                raise SpecMismatch(
                    f"the update carries the frozen tensor {shown(name)}, and cannot be cut to what moves: update the "
                    "participant's fedmq, which sends no frozen tensors"
                )
        return part.cut(tensors)

    def _part_for(self, participant_id: str, base_version: int) -> Frozen | None:
        """Return the frozen part of a version; None if there is none, or if the participant has it."""
        if self._parts is None or self._have.get(participant_id, math.inf) <= self._parts.era(base_version):
            return None
        return self._parts.at(base_version)

    def _frozen_bytes(self, version: int) -> int:
        part = None if self._parts is None else self._parts.at(version)
        return 0 if part is None else part.num_bytes


class _WholeEvaluator:
    """An evaluator that gets the whole model."""

    def __init__(self, evaluator: Evaluator, parts: FrozenParts) -> None:
        self._evaluator, self._parts = evaluator, parts

    def submit(self, version: int, parameters: Parameters, on_result: Callable[[EvaluationArrived], None]) -> None:
        self._evaluator.submit(version, self._parts.whole(version, parameters), on_result)


def whole_evaluator(evaluator: Evaluator | None, parts: FrozenParts | None) -> Evaluator | None:
    """Return the evaluator of versions without their frozen part."""
    return evaluator if evaluator is None or parts is None else _WholeEvaluator(evaluator, parts)
