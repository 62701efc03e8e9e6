"""The frozen part of the model in the messages: to whom it goes, and what comes back all the same.

    hello names the digest           the participant has the part on its disk: tasks carry only what moves
    hello names other ones, or none  the next task carries the part beside what moves
    hello has no such field          an older fedmq: tasks carry the whole model, as one

An update that answers a task shows that the participant had the part. A decline with the reason `frozen_lost` shows
that it has it no more, and the next task carries it again. None of this is kept over a restart: whoever is not known to
have the part gets it once more. One with an older fedmq, which has not said hello since the start, cannot read such a
task, and declines it.

An older fedmq sends whole updates. They are cut to what moves if they leave the frozen part as it is, and refused if
they do not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.evaluation import Evaluator
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.schemas.errors import SpecMismatch, shown
from fedmq.schemas.frozen import Frozen, with_beside
from fedmq.schemas.messages import Hello, Reply, Update
from fedmq.schemas.methods import update_spec
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec, spec_of


class FrozenTasks:
    """The frozen part of one run's model in its messages. Without one, everything passes as it is. The loop's thread
    calls everything."""

    def __init__(self, part: Frozen | None, core: Core) -> None:
        self._part = part
        self._core = core
        self._have: set[str] = set()
        """Participants that have the part on their disk."""
        self._older: set[str] = set()
        """Participants whose fedmq does not know of frozen parts."""

    def most_spec(self, reply: Reply) -> ModelSpec:
        """Return the largest tensors of an update: an older fedmq sends those of the whole model."""
        if self._part is None:
            return self._core.payload_spec
        return update_spec(reply, spec_of(self._part.join(self._core.parameters)))

    def on_hello(self, hello: Hello) -> None:
        """Note what a known participant has on its disk."""
        if self._part is None:
            return
        name = hello.participant_id
        self._have.discard(name)
        self._older.discard(name)
        if not self._core.knows(name):
            return
        if hello.frozen is None:
            self._older.add(name)
        elif self._part.digest in hello.frozen:
            self._have.add(name)

    def on_accepted(self, participant_id: str) -> None:
        """Note that a participant has trained with the part."""
        if self._part is not None and participant_id not in self._older:
            self._have.add(participant_id)

    def on_lost(self, participant_id: str) -> None:
        """Note that a participant has declined a task because it has lost the part."""
        self._have.discard(participant_id)

    def num_bytes(self, participant_id: str, tensors: Parameters) -> int:
        """Return the bytes of a task's tensors for this participant."""
        if self._part is None or participant_id in self._have:
            return tensors.num_bytes
        return tensors.num_bytes + self._part.num_bytes

    def of_task(self, participant_id: str, tensors: Parameters, coded: bool) -> tuple[str | None, Parameters]:
        """Return the digest that a task for this participant names, and its tensors. Nothing is copied.

        `coded`: the model travels in a codec, so the participant knows of frozen parts, whether it has said hello since
        the start or not.
        """
        if self._part is None:
            return None, tensors
        if participant_id in self._older and not coded:
            return None, self._part.join(tensors)
        return self._part.digest, tensors if participant_id in self._have else with_beside(tensors, self._part)

    def cut(self, update: Update, tensors: Parameters) -> Parameters:
        """Return an update's tensors without the frozen ones of an older fedmq, which are not decoded yet.

        Raises SpecMismatch if that would lose something.
        """
        part = self._part
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


class _WholeEvaluator:
    """An evaluator that gets the whole model."""

    def __init__(self, evaluator: Evaluator, part: Frozen) -> None:
        self._evaluator, self._part = evaluator, part

    def submit(self, version: int, parameters: Parameters, on_result: Callable[[EvaluationArrived], None]) -> None:
        self._evaluator.submit(version, self._part.join(parameters), on_result)


def whole_evaluator(evaluator: Evaluator | None, part: Frozen | None) -> Evaluator | None:
    """Return the evaluator of versions without their frozen part."""
    return evaluator if evaluator is None or part is None else _WholeEvaluator(evaluator, part)
