"""Verdicts: each update that arrives is accepted into the buffer or discarded with a reason (core.py, rule 3)."""

from __future__ import annotations

from collections import Counter

from fedmq.coordinator.decisions.commands import Accept, Discard
from fedmq.coordinator.decisions.ending import Ending
from fedmq.coordinator.decisions.events import ClosedTask, PoisonArrived, UpdateArrived
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.set_backs import SetBacks
from fedmq.coordinator.decisions.task_desk import TaskDesk
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.coordinator.decisions.updates.claims import Claims
from fedmq.coordinator.decisions.updates.validation import Judge, Rejection
from fedmq.coordinator.decisions.versions.buffer import Buffer
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters


class Verdicts:
    """The verdicts of a run. Only the core uses it; it shares the task desk's time, version and commands."""

    def __init__(
        self,
        judge: Judge,
        desk: TaskDesk,
        buffer: Buffer,
        ending: Ending,
        set_backs: SetBacks,
        *,
        discarded: Counter[str],
    ) -> None:
        """`discarded` counts the run's discards by reason."""
        self.judge = judge
        self.claims = Claims(desk)
        self._desk = desk
        self._buffer = buffer
        self._ending = ending
        self._set_backs = set_backs
        self._discarded = discarded

    def awaits(self, update: Update) -> bool:
        """Return True if this update would be accepted now, provided that its payload fits."""
        p, task = self._desk.roster.get(update.participant_id), self._desk.tasks.get(update.task_id)
        return self._rejection(UpdateArrived(0, update, Parameters({})), p, task, payload_to_come=True) is None

    def on_update(self, event: UpdateArrived) -> None:
        update = event.update
        p, task = self._desk.roster.get(update.participant_id), self._desk.tasks.get(update.task_id)
        rejection = self._rejection(event, p, task)
        if rejection is not None and rejection.reason in ("unknown_task", "unknown_participant"):
            rejection = self._lost_task(event, task) or rejection
        if rejection is None:
            assert p is not None
            assert task is not None
            self._accept(event, p, task)
        else:
            self._reject(event, rejection, p, task)

    def on_poison(self, event: PoisonArrived) -> None:
        """Discard an update that could not be read, and close its task if it is shown which one that is."""
        self._discarded[event.reason] += 1
        self._desk.commands.append(Discard(event.delivery, event.reason, event.detail, None))
        task = None if event.task_id is None else self._desk.tasks.get(event.task_id)
        if task is not None:
            self._desk.owner(task).discarded += 1
            self._desk.discard_task(task, event.reason, fault=True)

    def _rejection(
        self, event: UpdateArrived, p: Participant | None, task: HeldTask | None, *, payload_to_come: bool = False
    ) -> Rejection | None:
        return self.judge.reject(
            event,
            p,
            task,
            self._closed(event),
            version=self._desk.version,
            stopping=self._ending.stopping,
            payload_to_come=payload_to_come,
        )

    def _closed(self, event: UpdateArrived) -> HeldTask | ClosedTask | None:
        """Return the task if it ended: held here since the last `changes`, and by the ledger before that."""
        return self._desk.tasks.just_closed(event.update.task_id) or event.closed_task

    def _lost_task(self, event: UpdateArrived, task: HeldTask | None) -> Rejection | None:
        """Return the verdict on an update whose task is proved to be the run's, and is not in the ledger."""
        task_id = event.update.task_id
        if task is not None or self._closed(event) is not None:
            return None
        if not self._set_backs.look_at_unknown_task(task_id, event.update.participant_id):
            return None
        detail = f"task {task_id} is in a newer ledger than this one, which was restored, or in another copy"
        return Rejection("set_back", detail, fault=False)

    def _reject(self, event: UpdateArrived, rejection: Rejection, p: Participant | None, task: HeldTask | None) -> None:
        self._discarded[rejection.reason] += 1
        self._desk.commands.append(
            Discard(event.delivery, rejection.reason, rejection.detail, event.update, rejection.staleness)
        )
        if p is None or rejection.reason == "wrong_run":
            return
        if rejection.reason == "set_back" and p.out is None:
            p.accepting = True  # it was busy with a task that this ledger does not have
        p.last_seen_s = self._desk.now
        p.discarded += rejection.reason != "duplicate"
        if rejection.reason == "task_closed" and p.out is None:
            p.accepting = True  # it was busy with this task until now
        if task is not None and self._desk.owner(task) is p:
            self._desk.discard_task(task, rejection.reason, fault=rejection.fault)
        self._desk.settle(p)

    def _accept(self, event: UpdateArrived, p: Participant, task: HeldTask) -> None:
        desk, buffer = self._desk, self._buffer
        update, clamped = self.claims.within_bounds(p, task, event.update)
        p.last_seen_s = desk.now
        staleness = desk.version - task.base_version
        desk.observe(p, update.num_examples, update.metrics.get("loss"))
        group = None
        if buffer.groups is None:
            if event.update.num_steps:  # one step is the least that counts, but not for its speed
                p.measure(update.train_s, update.num_steps)
        else:
            group = buffer.groups.arrive(p, task, update.update_id, buffer.accepted + 1, desk.now)
        weight = desk.client_weights.weight(p.participant_id, update.num_examples, {})
        tensors = event.payload.move() if event.owned else event.payload
        buffer.add(update, tensors, staleness, weight, first=p.memory is None, group=group)
        del tensors  # making a version needs as much RAM again
        if desk.memory == "hard" or (desk.memory == "soft" and update.next_memory is not None):
            p.memory = update.next_memory
        desk.commands.append(
            Accept(event.delivery, update, staleness, weight, buffer.accepted, group, clamped, event.carried)
        )
        desk.close(task, "accepted", "")
        p.accepted += 1
        p.failures, p.pardoned_s = 0, None
        if p.out is None:
            p.accepting, p.asked_again_at_s = True, None
        if buffer.rounds is not None:
            buffer.rounds.on_accepted(p)
        desk.settle(p)
        buffer.make_version_if_due()
