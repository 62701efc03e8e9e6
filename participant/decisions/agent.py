"""The participant's decisions, as a pure state machine: no socket, clock, thread or disk is used here.

The agent itself holds the task in hand. It asks `participant.decisions.outbox` about updates, and lets
`participant.decisions.declines` and `participant.decisions.hellos` make the messages that they are named after.

Rules
1.  A task is acked only once it is on disk. If the disk refuses a task, the task is declined and acked, and no other is
    taken for `retry_after_s`: the coordinator has its slot back, and nothing that is not safe is called safe.
    Parameters in chunks take time to arrive; if they are lost on the way, the task is declined as well.
2.  There is one task at a time. A different task meanwhile is declined as busy. The same task is acked and ignored.
3.  A task that is over, or whose update is in the outbox or on its way, is acked and not trained again. If it is over,
    a hello says so: the coordinator's folder may have been restored from a backup. A task that was declined is declined
    again in the same words.
4.  A task for another participant is acked and ignored, with a warning. A message that cannot be read is acked. If it
    names a task that is neither in hand nor over, the task is declined as unreadable. The same goes for a task without
    the coordinator's signature, if the device's bundle demands one; it is declined as bad_signature.
5.  Losing the broker never stops training.
6.  A finished update is on disk before it is published, and leaves the disk after the broker's confirm. An update that
    went in chunks stays on disk until its receipt, and all of it is sent again when the coordinator asks for that. The
    coordinator may have died before it asked. So `ANNOUNCE_AGAIN_S` after a reconnect, or after it asked for a hello,
    every such update without a receipt is announced again. Until its receipt an update is listed, on disk too. While
    the disk refuses it, the write is tried again, and the task stays spooled.
7.  A failed publish is tried again with full-jitter backoff, for ever. It is tried at once after a reconnect, and when
    the broker has taken another update, because a full queue has drained then.
8.  Every hello names all tasks held: spooled, in training, in the outbox, awaiting a receipt. It also names the task
    that was over last. A hello is sent on connecting, every `hello_interval_s`, and when the coordinator asks for one.
    It is also sent when the participant becomes free after it said that it is not, when its conditions fail after it
    said that it is free, and when there is no place on the broker for an update.
9.  A withdrawn task is dropped wherever it is. Training may not be interruptible: its result is discarded, and no other
    task is taken until it returns.
10. After a restart the spooled task is trained, unless its lease is long over (`LEASE_GRACE`); it is also trained if
    the clocks cannot tell. The outbox is sent.
11. "run_finished" drops everything of that run and ends the agent. There is one exception. A notice that comes within
    `BACKLOG_S` of the first connection was waiting in the queue. If this process has made no update for its run, it may
    be about an earlier run, and it does not end the agent.
12. The method's memory moves on an accepting receipt, and on nothing else. Until the verdict the update is unsettled:
    no task of a method with a memory is taken, and the hello names the update, which has the receipt repeated. If the
    memory cannot be moved, the update stays unsettled. The next memory of an update that was discarded, withdrawn or
    dropped is deleted.
13. A leaving participant takes no task: an unacked task goes back to its queue. Updates in the outbox have `LEAVE_S` to
    get out while the broker is there. The others stay on disk.
14. If tasks travel as steps of a hidden state, the newest one is on disk before its task counts as spooled, and hellos
    name it. If the state of a task cannot be made here, the task is declined as model_differs, to be asked again at
    once: hellos name none then, and the next task is whole.

State         connected  holds
disconnected  no         anything; training goes on
training      yes        a task, until its update is in the outbox
delivering    yes        no task, and updates that are not confirmed
idle          yes        neither
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.declines import Declines
from fedmq.participant.decisions.hellos import Hellos
from fedmq.participant.decisions.outbox import Belongs, Outbox
from fedmq.participant.decisions.retries import Retry
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.messages import DeclineReason, Notice, Reply, Task, update_id
from fedmq.schemas.methods import has_memory

LEASE_GRACE = 2.0
"""Age in leases at which a restart drops a spooled task, because its slot was given away long ago."""
BACKLOG_S = 2.0
LEAVE_S = 10.0
MAX_OUTBOX = 4
"""Unconfirmed updates with which a further task is still taken: it can overtake the confirm of the last update."""


@dataclass(slots=True)
class _Current:
    """The task in hand."""

    task: Task
    phase: Literal["spooling", "training", "writing", "withdrawn"]
    retry: Retry = field(default_factory=Retry)
    delivery: ev.DeliveryHandle = 0
    """Delivery to ack once the task is on disk."""


@dataclass(frozen=True, slots=True)
class _Leaving:
    exit: ev.Exit
    deadline: float


class Agent:
    """The machine of the module docstring. `num_examples` is None if the trainer does not say before its first
    result."""

    def __init__(
        self,
        participant_id: str,
        session_id: str,
        settings: ParticipantSettings,
        *,
        num_examples: int | None,
        rng: random.Random,
        restored: ev.Restored | None = None,
        replies: tuple[Reply, ...] = ("delta", "parameters"),
        codecs: tuple[str, ...] = (),
        software: str = "",
    ) -> None:
        self.participant_id = participant_id
        self.session_id = session_id
        self.settings = settings
        self.num_examples = num_examples
        self._restored = restored if restored is not None else ev.Restored()
        self._rng = rng
        self._connected = False
        self._first_connected_at: float | None = None
        self._unmet: str | None = None
        self._disk_refused_until = float("-inf")
        self._current: _Current | None = None
        self._outbox = Outbox(self._restored, rng)
        self._declines = Declines(participant_id, rng)
        self._hellos = Hellos(participant_id, session_id, settings.hello_interval_s, replies, software, codecs=codecs)
        self._hellos.model = self._restored.model
        self._leaving: _Leaving | None = None
        self._served: set[str] = set()
        self._handlers = {
            ev.Started: self._on_started, ev.Connected: self._on_connected, ev.Disconnected: self._on_disconnected,
            ev.TaskReceived: self._on_task, ev.TaskUnreadable: self._on_task_unreadable,
            ev.TaskSpooled: self._on_spooled, ev.SpoolFailed: self._on_spool_failed,
            ev.TrainingFinished: self._on_trained, ev.TrainingFailed: self._on_training_failed,
            ev.OutboxWritten: self._on_outbox_written, ev.OutboxFailed: self._on_outbox_failed,
            ev.PublishConfirmed: self._on_confirmed, ev.PublishFailed: self._on_publish_failed,
            ev.DeclineConfirmed: self._on_decline_confirmed, ev.DeclineFailed: self._on_decline_failed,
            ev.NotAnnounced: self._on_not_announced, ev.UpdateUnreadable: self._on_unreadable,
            ev.ReceiptReceived: self._on_receipt,
            ev.MemoryMoved: self._on_memory_moved, ev.MemoryNotMoved: self._on_memory_not_moved,
            ev.NoticeReceived: self._on_notice,
            ev.ConditionsChanged: self._on_conditions, ev.Tick: self._on_tick, ev.StopRequested: self._on_stop,
        }  # fmt: skip

    @property
    def state(self) -> Literal["disconnected", "training", "delivering", "idle"]:
        if not self._connected:
            return "disconnected"
        if self._current is not None:
            return "training"
        return "delivering" if self._outbox.num_unconfirmed else "idle"

    @property
    def leaving(self) -> bool:
        """True if no task is taken any more (rule 13)."""
        return self._leaving is not None

    def held(self) -> tuple[str, ...]:
        """Return the task_ids of everything that is not over yet."""
        current = [] if self._current is None or self._current.phase == "withdrawn" else [self._current.task.task_id]
        return tuple(dict.fromkeys([*current, *self._outbox.held()]))

    def step(self, event: ev.Event, now: float) -> list[ev.Command]:
        """Return the commands that one event leads to."""
        handler: object = self._handlers[type(event)]
        commands: list[ev.Command] = handler(event, now)  # type: ignore[operator]
        return [*commands, *self._hello_if_due(now), *self._exit_if_due(now)]

    # Start, connection, time

    def _on_started(self, _event: ev.Started, _now: float) -> list[ev.Command]:
        found = self._restored
        task = found.task
        commands = self._outbox.restore()
        if task is None:
            return commands
        if task.task_id in self.held() or self._outbox.is_over(task.task_id):
            # The crash came between writing the update and clearing its task.
            return [*commands, ev.ClearTask(task.task_id)]
        if found.task_age_s is not None and found.task_age_s > LEASE_GRACE * task.lease_s:
            detail = f"{found.task_age_s:.0f} s on disk, its lease was {task.lease_s:.0f} s"
            return [*commands, ev.ClearTask(task.task_id), *self._decline(task, "lease_over", detail)]
        self._current = _Current(task, "training")
        return [*commands, ev.Note("info", "task_resumed", {"task": task.task_id}), ev.StartTraining(task)]

    def _on_connected(self, _event: ev.Connected, now: float) -> list[ev.Command]:
        if self._connected:
            return []
        self._connected = True
        if self._first_connected_at is None:
            self._first_connected_at = now
        self._hellos.say_at(now)
        self._outbox.announce_later(now)
        self._outbox.try_at_once()
        self._declines.try_at_once()
        return self._publish_due(now)

    def _on_disconnected(self, _event: ev.Disconnected, _now: float) -> list[ev.Command]:
        self._connected = False
        return []

    def _on_conditions(self, event: ev.ConditionsChanged, _now: float) -> list[ev.Command]:
        self._unmet = event.unmet
        return []

    def _on_tick(self, _event: ev.Tick, now: float) -> list[ev.Command]:
        commands = self._publish_due(now)
        if self._connected:
            commands += self._outbox.announcements_due(now)
        current = self._current
        if current is not None and current.phase == "writing" and current.retry.attempts and now >= current.retry.at:
            commands.append(ev.WriteOutbox(current.task.task_id, self._update_id(current.task)))
        return commands

    def _on_stop(self, _event: ev.StopRequested, now: float) -> list[ev.Command]:
        if self._leaving is not None:
            return []
        return self._leave(ev.Exit("stopped"), now)

    # Tasks

    def _on_task(self, event: ev.TaskReceived, now: float) -> list[ev.Command]:
        task, ack = event.task, ev.Ack(event.delivery)
        if self._leaving is not None:
            return []
        if task.participant_id != self.participant_id:
            fields = {"task": task.task_id, "addressed_to": task.participant_id}
            return [ev.Note("warning", "task_of_another_ignored", fields), ack]
        if task.task_id in self._declines:
            return [*self._declines.send(task.task_id, connected=self._connected), ack]
        if self._outbox.is_unconfirmed(self._update_id(task)):
            self._outbox.try_at_once(self._update_id(task))
            return [ack, *self._publish_due(now)]
        spooling = self._current_in(task.task_id, "spooling")
        if spooling is not None:  # redelivered, after a lost connection for example: ack the newest delivery later
            former, spooling.delivery = spooling.delivery, event.delivery
            return [ev.Ack(former)]
        if self._outbox.is_over(task.task_id):
            self._hellos.say_at(now)  # the coordinator may have been set back, and waits for this task
        if self._outbox.is_over(task.task_id) or task.task_id in self.held():
            return [ev.Note("info", "task_repeated", {"task": task.task_id}), ack]
        if self._current is not None:
            return [*self._decline(task, "busy", f"training {self._current.task.task_id}"), ack]
        if self._outbox.num_unconfirmed >= MAX_OUTBOX:
            return [*self._decline(task, "busy", f"{self._outbox.num_unconfirmed} updates wait for the broker"), ack]
        if self.num_examples == 0:
            return [*self._decline(task, "no_data", "the trainer has no examples"), ack]
        if self._outbox.num_unsettled and has_memory(task):
            self._hellos.say_at(now)
            return [*self._decline(task, "busy", "the verdict on the last update is not here yet"), ack]
        unmet = self._unmet or ("the disk refused the last task" if now < self._disk_refused_until else None)
        if unmet is not None:
            return [*self._decline(task, "not_idle", unmet, self.settings.retry_after_s), ack]
        self._current = _Current(task, "spooling", delivery=event.delivery)
        return [ev.SpoolTask(task, event.delivery)]

    def _on_task_unreadable(self, event: ev.TaskUnreadable, _now: float) -> list[ev.Command]:
        task_id = event.task_id
        if task_id in self._declines:
            return self._declines.send(task_id, connected=self._connected)
        if task_id in self.held() or self._outbox.is_over(task_id):
            return []
        return self._declines.decline_unreadable(event, connected=self._connected)

    def _on_spooled(self, event: ev.TaskSpooled, _now: float) -> list[ev.Command]:
        current = self._current_in(event.task_id, "spooling")
        if current is None:
            return []
        current.phase = "training"
        self._hellos.model = event.model or self._hellos.model
        return [ev.Ack(current.delivery), ev.StartTraining(current.task)]

    def _on_spool_failed(self, event: ev.SpoolFailed, now: float) -> list[ev.Command]:
        current = self._current_in(event.task_id, "spooling")
        if current is None:
            return []
        self._current = None
        note = ev.Note("error", "task_not_spooled", {"task": event.task_id, "detail": event.detail})
        if event.reason != "not_idle":
            declined = self._declined(current.task, event.reason, event.detail)
            return [note, *declined, ev.Ack(current.delivery)]
        self._disk_refused_until = now + self.settings.retry_after_s
        declined = self._decline(current.task, "not_idle", event.detail, self.settings.retry_after_s)
        return [note, *declined, ev.Ack(current.delivery)]

    def _on_trained(self, event: ev.TrainingFinished, _now: float) -> list[ev.Command]:
        self.num_examples = event.num_examples
        current = self._current
        if current is None or current.task.task_id != event.task_id:
            return []
        if current.phase == "withdrawn":
            self._current = None
            return [ev.ClearOutbox(self._update_id(current.task))]
        current.phase = "writing"
        return [ev.WriteOutbox(event.task_id, self._update_id(current.task))]

    def _on_training_failed(self, event: ev.TrainingFailed, now: float) -> list[ev.Command]:
        if self._current_in(event.task_id, "withdrawn") is not None:
            self._current = None
            return []
        current = self._current_in(event.task_id, "training")
        if current is None or self._leaving is not None:
            # A leaving agent asked the trainer to stop. The task stays in the spool for the next process.
            return []
        self._current = None
        commands = [ev.ClearTask(event.task_id), *self._declined(current.task, event.reason, event.detail)]
        if event.fatal:
            commands += self._leave(ev.Exit("unsupported", event.detail), now)
        return commands

    def _on_outbox_written(self, event: ev.OutboxWritten, now: float) -> list[ev.Command]:
        current = self._current_in(event.task_id, "writing")
        if current is None:
            return []
        self._current = None
        task = current.task
        self._served.add(task.run_id)
        self._outbox.add(self._update_id(task), task)
        return [ev.ClearTask(task.task_id), *self._publish_due(now)]

    def _on_outbox_failed(self, event: ev.OutboxFailed, now: float) -> list[ev.Command]:
        current = self._current_in(event.task_id, "writing")
        if current is None:
            return []
        current.retry.back_off(now, self._rng)
        retry_s = f"{current.retry.at - now:.0f}"
        fields = {"task": event.task_id, "detail": event.detail, "retry_s": retry_s}
        return [ev.Note("error", "update_not_written", fields)]

    # Delivery

    def _on_confirmed(self, event: ev.PublishConfirmed, now: float) -> list[ev.Command]:
        if not self._outbox.is_unconfirmed(event.update_id):
            return []
        return [*self._outbox.confirmed(event.update_id, event.kept), *self._publish_due(now)]

    def _on_publish_failed(self, event: ev.PublishFailed, now: float) -> list[ev.Command]:
        if event.nowhere:  # the coordinator makes the place for what a hello names
            self._hellos.say_at(now)
        return self._outbox.failed(event.update_id, event.detail, now)

    def _on_not_announced(self, event: ev.NotAnnounced, now: float) -> list[ev.Command]:
        commands = self._outbox.not_announced(event.update_id)
        return [*commands, *self._publish_due(now)] if commands else []

    def _on_unreadable(self, event: ev.UpdateUnreadable, _now: float) -> list[ev.Command]:
        self._outbox.unreadable(event.update_id)
        return [ev.Note("error", "update_unreadable", {"update": event.update_id, "detail": event.detail})]

    def _on_decline_confirmed(self, event: ev.DeclineConfirmed, _now: float) -> list[ev.Command]:
        self._declines.confirmed(event.task_id)
        return []

    def _on_decline_failed(self, event: ev.DeclineFailed, now: float) -> list[ev.Command]:
        self._declines.failed(event.task_id, now)
        return []

    def _on_receipt(self, event: ev.ReceiptReceived, _now: float) -> list[ev.Command]:
        return self._outbox.received(event.receipt)

    def _on_memory_moved(self, event: ev.MemoryMoved, _now: float) -> list[ev.Command]:
        return self._outbox.memory_moved(event.update_id)

    def _on_memory_not_moved(self, event: ev.MemoryNotMoved, _now: float) -> list[ev.Command]:
        fields = {"update": event.update_id, "detail": event.detail, "next": "the next hello asks for the receipt"}
        return [ev.Note("error", "memory_not_moved", fields)]

    def _on_notice(self, event: ev.NoticeReceived, now: float) -> list[ev.Command]:
        notice: Notice = event.notice
        if notice.event == "say_hello":
            self._hellos.say_at(now)
            self._outbox.announce_later(now)
            return []
        if notice.event == "send_again":
            commands = self._outbox.send_again(notice.task_id)
            return [*commands, *self._publish_due(now)] if commands else []
        if notice.event == "task_withdrawn":
            return self._drop(lambda task_id, _run_id: task_id == notice.task_id)
        commands = [*self._drop(lambda _task_id, run_id: run_id == notice.run_id), ev.ClearMemory(notice.run_id)]
        early = self._first_connected_at is None or now < self._first_connected_at + BACKLOG_S
        if early and notice.run_id not in self._served:
            return [*commands, ev.Note("info", "run_finished_while_away", {"run": notice.run_id})]
        return [*commands, *self._leave(ev.Exit("run_finished"), now)]

    # Shared by several handlers

    def _drop(self, belongs: Belongs) -> list[ev.Command]:
        """Drop matching tasks wherever they are."""
        commands: list[ev.Command] = []
        current = self._current
        if current is not None and current.phase != "withdrawn" and belongs(current.task.task_id, current.task.run_id):
            self._outbox.finish(current.task.task_id)
            commands.append(ev.ClearTask(current.task.task_id))
            if current.phase == "training":
                current.phase = "withdrawn"
                commands.append(ev.CancelTraining(current.task.task_id))
            elif current.phase == "spooling":
                self._current = None
                commands += [ev.CancelSpooling(current.task.task_id), ev.Ack(current.delivery)]
            else:
                self._current = None
                uid = self._update_id(current.task)
                commands.append(ev.ClearOutbox(uid))
                if has_memory(current.task):
                    commands.append(ev.DropNextMemory(uid))
        commands += self._outbox.drop(belongs)
        return [self._outbox.write_sent(), *commands]

    def _current_in(self, task_id: str, phase: str) -> _Current | None:
        current = self._current
        return current if current is not None and (current.task.task_id, current.phase) == (task_id, phase) else None

    def _update_id(self, task: Task) -> str:
        return update_id(task.run_id, task.task_id, self.participant_id)

    def _declined(self, task: Task, reason: DeclineReason, detail: str) -> list[ev.Command]:
        """Decline a task that was taken. If its model could not be made here, hellos name none any more (rule 14)."""
        if reason == "model_differs":
            self._hellos.model = None
        shared = reason == "payload_lost" and task.reference is not None
        soon = 0.0 if shared or reason in ("frozen_lost", "model_differs") else None  # the next task brings it
        return self._decline(task, reason, detail, soon)

    def _decline(
        self, task: Task, reason: DeclineReason, detail: str, retry_after_s: float | None = None
    ) -> list[ev.Command]:
        return self._declines.decline(task, reason, detail, retry_after_s, connected=self._connected)

    def _publish_due(self, now: float) -> list[ev.Command]:
        return [*self._outbox.due(now), *self._declines.due(now)] if self._connected else []

    def _hello_if_due(self, now: float) -> list[ev.Command]:
        finished = self._leaving is not None and self._leaving.exit.reason == "run_finished"
        if not self._connected or finished:
            return []
        able = (
            self._unmet is None
            and now >= self._disk_refused_until
            and self._outbox.num_unconfirmed < MAX_OUTBOX
            and self._leaving is None
            and self.num_examples != 0
        )
        busy = self._current is not None or self._outbox.num_unsettled > 0
        num_examples = self.num_examples or 0
        return self._hellos.due(
            now,
            able=able,
            busy=busy,
            num_examples=num_examples,
            task_ids=self.held(),
            last_task=self._outbox.last_over,
            leaving=self._leaving is not None,
        )

    def _leave(self, exit_: ev.Exit, now: float) -> list[ev.Command]:
        self._leaving = _Leaving(exit_, now + LEAVE_S)
        current = self._current
        return [ev.CancelTraining(current.task.task_id)] if current is not None and current.phase == "training" else []

    def _exit_if_due(self, now: float) -> list[ev.Command]:
        if self._leaving is None:
            return []
        undelivered = self._outbox.num_unconfirmed or self._declines.num_unconfirmed
        if undelivered and self._connected and now < self._leaving.deadline:
            return []
        return [self._leaving.exit]
