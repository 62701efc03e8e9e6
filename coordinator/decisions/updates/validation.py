"""Validation of updates: the checks in their order, each with the reason under which the ledger counts a discard."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmq.coordinator.decisions.events import ClosedTask, DiscardReason, UpdateArrived
from fedmq.coordinator.decisions.failures import Condemned
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.schemas.errors import SpecMismatch
from fedmq.schemas.messages import Reply, Update, update_id
from fedmq.schemas.methods import MemoryKind
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES, ModelSpec, check_spec, layout_of_spec


@dataclass(frozen=True, slots=True)
class Rejection:
    """Reason for discarding an update."""

    reason: DiscardReason
    detail: str
    staleness: int | None = None
    fault: bool = True
    """True if the participant is asked again only after a while."""


class _Shapes:
    """The tensors that updates carry, ready to be compared."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._tensors = [(s.name, DTYPES[s.dtype], s.shape) for s in spec]
        self._in_block = layout_of_spec(spec)

    def fit(self, payload: Parameters) -> bool:
        """Return True if the payload has these tensors; this is cheap if it has."""
        if payload.layout is not None and payload.layout is self._in_block:
            return True
        return [(name, a.dtype, a.shape) for name, a in payload.items()] == self._tensors


@dataclass(frozen=True, slots=True)
class Judge:
    """The checks of one run, with everything that updates are compared with."""

    run_id: str
    reply: Reply
    spec: ModelSpec
    """Names, dtypes and shapes of the tensors that an update carries (`schemas.methods.update_spec`), if it is of a
    version before the `later` ones."""
    max_staleness: int | None
    memory: MemoryKind = "none"
    """Kind of the memory that participants keep (`schemas.methods.memory_kind`)."""
    condemned: dict[str, Condemned] = field(default_factory=dict)
    """update_id -> the verdict on updates that made the strategy fail before (failures.py)."""
    later: tuple[tuple[int, ModelSpec], ...] = ()
    """The spec of updates of each version at which frozen tensors begin to move, and of those after it; in order."""
    _shapes: tuple[tuple[int, _Shapes], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        specs = reversed([(0, self.spec), *self.later])
        object.__setattr__(self, "_shapes", tuple((first, _Shapes(spec)) for first, spec in specs))

    def spec_of(self, base_version: int) -> ModelSpec:
        """Return the tensors that an update of this version carries."""
        return self._shapes_of(base_version).spec

    @property
    def largest_spec(self) -> ModelSpec:
        """The tensors that an update of the run's last versions carries."""
        return self._shapes[0][1].spec

    def _shapes_of(self, base_version: int) -> _Shapes:
        return next((shapes for first, shapes in self._shapes if base_version >= first), self._shapes[-1][1])

    def reject(
        self,
        event: UpdateArrived,
        participant: Participant | None,
        task: HeldTask | None,
        closed: HeldTask | ClosedTask | None,
        *,
        version: int,
        stopping: str | None,
        payload_to_come: bool = False,
    ) -> Rejection | None:
        """Return why the update must be discarded; None if it is to be accepted.

        `participant` is the update's, if it has said hello. `task` is the open task that the update names, `closed` the
        one that ended. `payload_to_come` leaves the tensors unchecked.
        """
        update = event.update
        if update.run_id != self.run_id:
            return Rejection("wrong_run", f"the update is for run {update.run_id!r}, this is {self.run_id!r}")
        owner = task or closed
        if participant is None:
            return Rejection("unknown_participant", f"{update.participant_id!r} has not said hello to this run")
        if owner is not None and owner.participant_id != update.participant_id:
            return Rejection(
                "unknown_participant",
                f"task {update.task_id} was issued to {owner.participant_id!r}, not to {update.participant_id!r}",
            )
        if closed is not None and closed.state in ("accepted", "discarded"):
            return Rejection("duplicate", f"the update of task {update.task_id} was {closed.state} before")
        if participant.revoked:
            return Rejection("revoked", f"participant {update.participant_id!r} was revoked")
        if stopping is not None:
            return Rejection("run_finished", f"the run is over: {stopping}")
        if closed is not None:
            return self._late(event, closed, version)
        if task is None:
            return Rejection("unknown_task", f"task {update.task_id!r} was never issued in this run")
        rejection = self._unfit(event, task, version, participant.memory)
        return rejection if rejection is not None or payload_to_come else self._misshapen(event)

    def _late(self, event: UpdateArrived, closed: HeldTask | ClosedTask, version: int) -> Rejection:
        staleness = version - event.update.base_version
        if self.max_staleness is not None and staleness > self.max_staleness:
            return self._too_stale(staleness)
        return Rejection("task_closed", f"task {event.update.task_id} was {closed.state} before its update came")

    def _unfit(self, event: UpdateArrived, task: HeldTask, version: int, memory: str | None) -> Rejection | None:
        update = event.update
        expected_id = update_id(update.run_id, update.task_id, update.participant_id)
        if update.update_id != expected_id:  # it is the ledger's key: another update's key must not be used up
            return Rejection("malformed", f"got update_id {update.update_id}, this task's is {expected_id}")
        if update.base_version != task.base_version:
            return Rejection(
                "wrong_base_version", f"got base_version {update.base_version}, the task has {task.base_version}"
            )
        if update.payload != self.reply:
            return Rejection("wrong_payload", f"got payload {update.payload!r}, the task asked for {self.reply!r}")
        if self.memory != "none" and update.memory is not None and update.next_memory in (None, update.memory):
            return Rejection(
                "wrong_memory",
                f"the update was made from the memory {update.memory} and leaves {update.next_memory or 'none'}, "
                "expected a new mark: else another update from this memory would be taken as well",
            )
        if self._has_wrong_memory(update, memory):
            return Rejection(
                "wrong_memory",
                f"the update was made from the memory {update.memory or 'none'}, the last accepted one left "
                f"{memory or 'none'}: either two were sent at once, or the memory was lost"
                + (" (go on under another id)" if self.memory == "hard" else ", and is begun anew"),
                fault=self.memory == "hard",
            )
        staleness = version - task.base_version
        if self.max_staleness is not None and staleness > self.max_staleness:
            return self._too_stale(staleness)
        verdict = self.condemned.get(update.update_id)
        return None if verdict is None else Rejection(verdict.reason, verdict.detail, staleness, verdict.fault)

    def _has_wrong_memory(self, update: Update, memory: str | None) -> bool:
        """`memory` is the mark that the participant's last accepted update left; None if there is none, or after a
        set-back."""
        if self.memory == "hard":
            return update.memory != memory or update.next_memory is None
        # A soft memory may be lost, or be newer than this ledger: what was not sent yet is counted once all the same.
        return self.memory == "soft" and None not in (update.memory, memory) and update.memory != memory

    def _misshapen(self, event: UpdateArrived) -> Rejection | None:
        shapes = self._shapes_of(event.update.base_version)
        if not shapes.fit(event.payload):
            try:
                check_spec(event.payload, shapes.spec)
            except SpecMismatch as e:
                return Rejection("wrong_shape", str(e))
        return None

    def _too_stale(self, staleness: int) -> Rejection:
        detail = f"staleness {staleness} is above max_staleness {self.max_staleness}"
        return Rejection("too_stale", detail, staleness, fault=False)
