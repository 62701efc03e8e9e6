"""Questions that the service asks of the core between two steps. None of them changes anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.decisions.ending import Ending
from fedmq.coordinator.decisions.participants import identity
from fedmq.coordinator.decisions.set_backs import SetBacks
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.generations import SetBack
from fedmq.coordinator.decisions.updates.verdicts import Verdicts
from fedmq.coordinator.decisions.versions.buffer import Buffer
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import ModelSpec


class Questions:
    """The core's parts, as far as they are asked. The core (core.py) makes them."""

    frozen: FrozenParts | None
    """The model's frozen part, version after version; None if it has none."""
    _model: Model
    _desk: TaskDesk
    _buffer: Buffer
    _verdicts: Verdicts
    _ending: Ending
    _set_backs: SetBacks
    _discarded: Counter[str]

    @property
    def version(self) -> int:
        return self._desk.version

    @property
    def parameters(self) -> Parameters:
        """Parameters of the current version without the frozen part; never changed in place."""
        return self._model.parameters

    @property
    def task_tensors(self) -> Parameters:
        """Tensors that a task of the current version is to train from (Model.task_tensors)."""
        return self._model.task_tensors

    def tensors_of(self, command: IssueTask) -> Parameters:
        """Return the tensors that travel with a task, in the step that issues it."""
        return self._model.tensors_of(command.downlink)

    @property
    def accepted(self) -> int:
        """Number of updates accepted in the run."""
        return self._buffer.accepted

    @property
    def discarded(self) -> dict[str, int]:
        """Number of updates discarded in the run, by reason."""
        return dict(self._discarded)

    @property
    def participants(self) -> int:
        """Number of known participants."""
        return len(self._desk.roster)

    @property
    def here(self) -> int:
        """Number of participants that are here."""
        return self._desk.roster.here

    @property
    def clamped(self) -> dict[str, int]:
        """Number of accepted updates with a clamped claim, by the claim's name (claims.py)."""
        return dict(self._verdicts.claims.clamped)

    @property
    def distilling(self) -> bool:
        """True while a version is being distilled: no UpdateArrived may come until the answer or a Tick ends that."""
        return self._buffer.distilling

    @property
    def tasks_out(self) -> int:
        return self._desk.tasks.out

    @property
    def stopping(self) -> bool:
        """True once a limit or goal is reached, after which no update is accepted."""
        return self._ending.stopping is not None

    @property
    def finished(self) -> str | None:
        """Reason for the end of the run; None until Finish was emitted."""
        return self._ending.finished

    @property
    def mistake(self) -> str | None:
        """Text that says why the run would never end as it should (ending.py); its owner must not go on with it."""
        return self._ending.mistake

    @property
    def set_backs(self) -> tuple[SetBack, ...]:
        """All times at which the ledger turned out to be older than its run (coordinator.decisions.set_backs)."""
        return self._set_backs.all

    def doubtful(self, participant_id: str, task_ids: Iterable[str | None]) -> list[str]:
        """Return those of a participant's ids that show a set-back if the ledger does not have them.

        A coordinator of this run issued them to this participant, and not this one since its start.
        """
        return self._set_backs.doubtful(participant_id, task_ids)

    def holds(self, task_id: str) -> bool:
        """Return True if the core itself knows this task: it is open, or it closed since the last `changes`."""
        return self._desk.tasks.holds(task_id)

    def awaits_from(self, participant_id: str, task_ids: Iterable[str]) -> bool:
        """Return True if one of these tasks is open, and this participant's."""
        open_ones = (self._desk.tasks.get(task_id) for task_id in task_ids)
        return any(task is not None and task.participant_id == participant_id for task in open_ones)

    def awaits(self, update: Update) -> bool:
        """Return True if this update would be accepted now, provided that its payload fits.

        Other updates can be judged without their payload.
        """
        return self._verdicts.awaits(update)

    def spec_of_update(self, base_version: int) -> ModelSpec:
        """Return the names, dtypes and shapes of the tensors that an update of this version carries."""
        return self._verdicts.judge.spec_of(base_version)

    @property
    def payload_spec(self) -> ModelSpec:
        """Names, dtypes and shapes of the tensors that the largest updates carry: those of the run's last versions."""
        return self._verdicts.judge.largest_spec

    @property
    def last_growth(self) -> int:
        """The last version at which frozen tensors begin to move; 0 if there is none."""
        return 0 if self.frozen is None or not self.frozen.schedule else self.frozen.schedule[-1].version

    def knows(self, participant_id: str) -> bool:
        """Return True if the participant has said hello, and was neither turned away nor forgotten since."""
        return self._desk.roster.get(participant_id) is not None

    def reads(self, participant_id: str, form: str) -> bool:
        """Return True if a known participant's last hello names this form of tasks or updates among its codecs."""
        participant = self._desk.roster.get(participant_id)
        return participant is not None and form in participant.codecs

    def proven_of(self, user: str | None) -> int:
        """Return the number of this user's participants with an accepted update."""
        return self._desk.roster.users.proven(user)

    def has_room_for(self, participant_id: str) -> bool:
        """Return False for a known participant that holds none of the strategy's places (places.py)."""
        return self._desk.roster.has_room_for(participant_id)

    def participant_ids(self) -> list[str]:
        """Return the ids of all known participants, in order of first hello."""
        return self._desk.roster.ids()

    def is_revoked(self, participant_id: str) -> bool:
        """Return True for a known participant whose ParticipantRevoked has come."""
        p = self._desk.roster.get(participant_id)
        return p is not None and p.revoked

    def stranger(self, participant_id: str, user: str | None) -> str | None:
        """Return why this user may not speak for this participant; None if it may (decisions.participants.identity)."""
        return identity.refusal(self._desk.roster.get(participant_id), user)

    def is_from_owner(self, task_id: str, user: str | None) -> bool:
        """Return True if this user is shown to be the open task's participant (decisions.participants.identity)."""
        task = self._desk.tasks.get(task_id)
        return task is not None and identity.is_from(self._desk.owner(task), user)
