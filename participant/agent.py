"""What a participant decides: a pure state machine (design.md, section 7). No sockets, clock, threads or disk here.

Rules
1.  A task is acked only once it is on disk. Where the disk refuses it, it is declined and acked, and no other is taken
    for `retry_after_s`: the coordinator has its slot back, and nothing is pretended to be safe that is not. Parameters
    in chunks take their time to come; where they are lost on the way, the task is declined as well.
2.  One task at a time. A different one meanwhile is declined as busy; the same one again is acked and ignored.
3.  A task whose update is in the outbox or on its way, or that is over, is acked and not trained again. One that was
    declined is declined again in the same words.
4.  A task for somebody else is acked and ignored, with a warning.
5.  Losing the broker never stops training.
6.  A finished update is on disk before it is published, and leaves the disk after the broker's confirm; one that went
    in chunks stays until its receipt, and is sent again, all of it, when the coordinator asks for that. The coordinator
    may have died before it asked: `ANNOUNCE_AGAIN_S` after a reconnect, or after it asked for a hello, what has no
    receipt is announced again. Until its receipt an update is remembered, on disk too. While the disk refuses it, the
    write is tried again: the task stays spooled.
7.  A failed publish is tried again with full-jitter backoff, for ever, and at once after a reconnect, or when the
    broker has taken another update: a full queue has drained.
8.  Every hello names all tasks held: spooled, in training, in the outbox, awaiting a receipt. One is sent on
    connecting, every `hello_interval_s`, when asked, when the participant becomes free after having said that it is
    not, and when its conditions fail after having said that it is.
9.  A withdrawn task is dropped wherever it is. Training may not be interruptible: its result is discarded, and until it
    returns no other task is taken.
10. After a restart the spooled task is trained, unless its lease is long over (`LEASE_GRACE`; where the clocks cannot
    tell, it is trained), and the outbox is sent.
11. "run_finished" drops what belongs to that run and ends the agent. One that comes within `BACKLOG_S` of the first
    connection, of a run that this process has made no update for, was waiting in the queue and may be of an earlier
    run: it does not end the agent.
12. What a participant remembers for a method moves on an accepting receipt, and on nothing else. Until the verdict the
    update is unsettled: no task of a method that remembers is taken, and the hello names it, which repeats the receipt.
    A memory that cannot be moved leaves it so. A discarded, withdrawn or dropped update gives its memory back.
13. When leaving, no task is taken: an unacked one goes back to the queue. What is in the outbox has `LEAVE_S` to get
    out while the broker is there; the rest stays on disk.

State         connected  holds
disconnected  no         anything; training goes on
training      yes        a task, until its update is in the outbox
delivering    yes        no task, updates that are not confirmed
idle          yes        neither
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from broker_config.backoff import Backoff
from participant import events as ev
from participant.settings import ParticipantSettings
from schemas.messages import Decline, DeclineReason, Hello, Notice, Receipt, Reply, Task, update_id
from schemas.methods import METHODS

LEASE_GRACE = 2.0
"""A spooled task is dropped at a restart when it is older than this many leases: its slot was given away long ago."""
BACKLOG_S = 2.0
LEAVE_S = 10.0
MAX_OUTBOX = 4
"""Updates that may wait while a further task is taken: the next task can overtake the confirm of the last update."""
MAX_REMEMBERED = 32
"""Of each kind (sent, done, declined): hello.task_ids holds 64."""
ANNOUNCE_AGAIN_S = 30.0
"""Longer than the answer to a hello takes, which repeats the receipts that there are."""
RETRY = Backoff(base_s=1.0, cap_s=60.0)
DETAIL_CHARACTERS = 2000

_Belongs = Callable[[str, str], bool]
"""(task_id, run_id) -> whether it is meant."""


@dataclass(slots=True)
class _Current:
    """The one task in hand."""

    task: Task
    phase: Literal["spooling", "training", "writing", "withdrawn"]
    retry: _Retry
    delivery: ev.DeliveryHandle = 0
    """While spooling: what is to be acked then."""


@dataclass(slots=True)
class _Retry:
    attempts: int = 0
    at: float = 0.0


@dataclass(slots=True)
class _Waiting:
    """An update in the outbox, or a decline, that the broker has not confirmed."""

    task_id: str
    run_id: str
    retry: _Retry
    in_flight: bool = False
    from_start: bool = False
    """An update whose chunks were sent in vain; while it is in flight: those of this very try."""


@dataclass(frozen=True, slots=True)
class _Leaving:
    exit: ev.Exit
    deadline: float


class Agent:
    """See the module docstring. `num_examples` None: the trainer does not say before its first result."""

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
        software: str = "",
    ) -> None:
        self.participant_id = participant_id
        self.session_id = session_id
        self.settings = settings
        self.num_examples = num_examples
        self.replies = replies
        self.software = software
        self._restored = restored if restored is not None else ev.Restored()
        self._rng = rng
        self._connected = False
        self._first_connected_at: float | None = None
        self._unmet: str | None = None
        self._disk_refused_until = float("-inf")
        self._current: _Current | None = None
        self._outbox: dict[str, _Waiting] = {}
        self._sent: dict[str, tuple[str, str]] = dict(self._restored.sent)
        self._unsettled: set[str] = set()
        self._kept: set[str] = set()
        """Of those sent, the ones whose update is still on disk."""
        self._done: dict[str, None] = dict.fromkeys(self._restored.done)
        self._declined: dict[str, Decline] = {}
        self._declines_waiting: dict[str, _Waiting] = {}
        self._told_accepting: bool | None = None
        self._next_hello_at = 0.0
        self._announce_at = float("inf")
        self._leaving: _Leaving | None = None
        self._served: set[str] = set()
        self._handlers = {
            ev.Started: self._on_started, ev.Connected: self._on_connected, ev.Disconnected: self._on_disconnected,
            ev.TaskReceived: self._on_task, ev.TaskSpooled: self._on_spooled, ev.SpoolFailed: self._on_spool_failed,
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
        return "delivering" if self._outbox else "idle"

    def held(self) -> tuple[str, ...]:
        """task_ids of everything that is not over yet."""
        current = [] if self._current is None or self._current.phase == "withdrawn" else [self._current.task.task_id]
        sent = [task_id for task_id, _ in self._sent.values()]
        return tuple(dict.fromkeys([*current, *(w.task_id for w in self._outbox.values()), *sent]))

    def step(self, event: ev.Event, now: float) -> list[ev.Command]:
        """Decide what one event asks for."""
        handler: object = self._handlers[type(event)]
        commands: list[ev.Command] = handler(event, now)  # type: ignore[operator]
        return [*commands, *self._hello_if_due(now), *self._exit_if_due(now)]

    # Start, connection, time

    def _on_started(self, _event: ev.Started, _now: float) -> list[ev.Command]:
        found = self._restored
        for uid, (task_id, run_id) in found.outbox.items():
            if uid in self._sent:
                self._kept.add(uid)
            else:
                self._outbox[uid] = _Waiting(task_id, run_id, _Retry())
        task = found.task
        commands = self._take_unsettled(task)
        if task is None:
            return commands
        if task.task_id in self.held() or self._is_over(task.task_id):
            # The crash came between writing the update and clearing its task.
            return [*commands, ev.ClearTask(task.task_id)]
        if found.task_age_s is not None and found.task_age_s > LEASE_GRACE * task.lease_s:
            detail = f"{found.task_age_s:.0f} s on disk, its lease was {task.lease_s:.0f} s"
            return [*commands, ev.ClearTask(task.task_id), *self._decline(task, "lease_over", detail)]
        self._current = _Current(task, "training", _Retry())
        return [*commands, ev.Note("info", f"event=task_resumed task={task.task_id}"), ev.StartTraining(task)]

    def _take_unsettled(self, task: Task | None) -> list[ev.Command]:
        """Updates of the last process whose verdict decides what is remembered."""
        commands: list[ev.Command] = []
        for uid, (task_id, run_id) in self._restored.unsettled.items():
            known = uid in self._outbox or uid in self._sent
            if not known and task is not None and task.task_id == task_id:
                commands.append(ev.GiveBack(uid))  # the update was not on disk yet: its training begins again
                continue
            self._unsettled.add(uid)
            if not known:  # what was written of it is lost; the coordinator knows its verdict
                self._sent[uid] = (task_id, run_id)
        return commands

    def _on_connected(self, _event: ev.Connected, now: float) -> list[ev.Command]:
        if self._connected:
            return []
        self._connected = True
        if self._first_connected_at is None:
            self._first_connected_at = now
        self._next_hello_at = now
        self._announce_at = now + ANNOUNCE_AGAIN_S
        for waiting in (*self._outbox.values(), *self._declines_waiting.values()):
            waiting.retry = _Retry()
        return self._publish_due(now)

    def _on_disconnected(self, _event: ev.Disconnected, _now: float) -> list[ev.Command]:
        self._connected = False
        return []

    def _on_conditions(self, event: ev.ConditionsChanged, _now: float) -> list[ev.Command]:
        self._unmet = event.unmet
        return []

    def _on_tick(self, _event: ev.Tick, now: float) -> list[ev.Command]:
        commands = [*self._publish_due(now), *self._announce_due(now)]
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
            text = f"task {task.task_id} is for {task.participant_id}, this is {self.participant_id}: ignored"
            return [ev.Note("warning", text), ack]
        if task.task_id in self._declined:
            return [*self._send_decline(task.task_id), ack]
        in_outbox = self._outbox.get(self._update_id(task))
        if in_outbox is not None:
            in_outbox.retry = _Retry()
            return [ack, *self._publish_due(now)]
        spooling = self._taken(task.task_id, "spooling")
        if spooling is not None:  # it came again, after a lost connection say: the newest is acked once it is on disk
            former, spooling.delivery = spooling.delivery, event.delivery
            return [ev.Ack(former)]
        if self._is_over(task.task_id) or task.task_id in self.held():
            return [ev.Note("info", f"event=task_repeated task={task.task_id}"), ack]
        if self._current is not None:
            return [*self._decline(task, "busy", f"training {self._current.task.task_id}"), ack]
        if len(self._outbox) >= MAX_OUTBOX:
            return [*self._decline(task, "busy", f"{len(self._outbox)} updates wait for the broker"), ack]
        if self.num_examples == 0:
            return [*self._decline(task, "no_data", "the trainer has no examples"), ack]
        if self._unsettled and METHODS[task.reply].remembers:
            self._next_hello_at = now
            return [*self._decline(task, "busy", "the verdict on the last update is not here yet"), ack]
        unmet = self._unmet or ("the disk refused the last task" if now < self._disk_refused_until else None)
        if unmet is not None:
            return [*self._decline(task, "not_idle", unmet, self.settings.retry_after_s), ack]
        self._current = _Current(task, "spooling", _Retry(), event.delivery)
        return [ev.SpoolTask(task, event.delivery)]

    def _on_spooled(self, event: ev.TaskSpooled, _now: float) -> list[ev.Command]:
        current = self._taken(event.task_id, "spooling")
        if current is None:
            return []
        current.phase = "training"
        return [ev.Ack(current.delivery), ev.StartTraining(current.task)]

    def _on_spool_failed(self, event: ev.SpoolFailed, now: float) -> list[ev.Command]:
        current = self._taken(event.task_id, "spooling")
        if current is None:
            return []
        self._current = None
        if event.reason != "not_idle":
            declined = self._decline(current.task, event.reason, event.detail)
            return [ev.Note("error", event.detail), *declined, ev.Ack(current.delivery)]
        self._disk_refused_until = now + self.settings.retry_after_s
        declined = self._decline(current.task, "not_idle", event.detail, self.settings.retry_after_s)
        return [ev.Note("error", event.detail), *declined, ev.Ack(current.delivery)]

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
        if self._taken(event.task_id, "withdrawn") is not None:
            self._current = None
            return []
        current = self._taken(event.task_id, "training")
        if current is None or self._leaving is not None:
            # Leaving: the trainer was asked to stop. The task stays in the spool for the next process.
            return []
        self._current = None
        commands = [ev.ClearTask(event.task_id), *self._decline(current.task, event.reason, event.detail)]
        if event.fatal:
            commands += self._leave(ev.Exit("unsupported", event.detail), now)
        return commands

    def _on_outbox_written(self, event: ev.OutboxWritten, now: float) -> list[ev.Command]:
        current = self._taken(event.task_id, "writing")
        if current is None:
            return []
        self._current = None
        task = current.task
        self._served.add(task.run_id)
        if METHODS[task.reply].remembers:
            self._unsettled.add(self._update_id(task))
        self._outbox[self._update_id(task)] = _Waiting(task.task_id, task.run_id, _Retry())
        return [ev.ClearTask(task.task_id), *self._publish_due(now)]

    def _on_outbox_failed(self, event: ev.OutboxFailed, now: float) -> list[ev.Command]:
        current = self._taken(event.task_id, "writing")
        if current is None:
            return []
        self._back_off(current.retry, now)
        return [ev.Note("error", f"{event.detail}; trying again in {current.retry.at - now:.0f} s")]

    # Delivery

    def _on_confirmed(self, event: ev.PublishConfirmed, now: float) -> list[ev.Command]:
        waiting = self._outbox.get(event.update_id)
        if waiting is None:
            return []
        if waiting.from_start:  # the coordinator was faster than the broker's confirm
            waiting.in_flight = False
            return self._publish_due(now)
        del self._outbox[event.update_id]
        self._sent[event.update_id] = (waiting.task_id, waiting.run_id)
        cleared = [] if event.kept else [event.update_id]
        if event.kept:
            self._kept.add(event.update_id)
        settled = [uid for uid in self._sent if uid not in self._unsettled]
        for oldest in settled[: max(len(self._sent) - MAX_REMEMBERED, 0)]:
            self._finish(self._sent.pop(oldest)[0])
            cleared += [oldest] if oldest in self._kept else []
            self._kept.discard(oldest)
        for other in self._outbox.values():
            other.retry = _Retry()
        return [self._remember(), *(ev.ClearOutbox(uid) for uid in cleared), *self._publish_due(now)]

    def _on_publish_failed(self, event: ev.PublishFailed, now: float) -> list[ev.Command]:
        waiting = self._outbox.get(event.update_id)
        if waiting is None:
            return []
        waiting.in_flight = False
        self._back_off(waiting.retry, now)
        again_s = waiting.retry.at - now
        return [
            ev.Note("warning", f"update of task {waiting.task_id} not taken: {event.detail}; again in {again_s:.0f} s")
        ]

    def _on_not_announced(self, event: ev.NotAnnounced, now: float) -> list[ev.Command]:
        sent = self._sent.get(event.update_id)
        return [] if sent is None else self._send_again(sent[0], now)

    def _on_unreadable(self, event: ev.UpdateUnreadable, _now: float) -> list[ev.Command]:
        """Nothing can be sent for its task any more: hellos stop naming it, and the coordinator repeats it. But an
        unsettled one is named on: it may have been sent before, and its verdict decides what is remembered."""
        waiting = self._outbox.pop(event.update_id, None)
        if waiting is not None and event.update_id in self._unsettled:
            self._sent[event.update_id] = (waiting.task_id, waiting.run_id)
        return [ev.Note("error", event.detail)]

    def _on_decline_confirmed(self, event: ev.DeclineConfirmed, _now: float) -> list[ev.Command]:
        self._declines_waiting.pop(event.task_id, None)
        return []

    def _on_decline_failed(self, event: ev.DeclineFailed, now: float) -> list[ev.Command]:
        waiting = self._declines_waiting.get(event.task_id)
        if waiting is not None:
            waiting.in_flight = False
            self._back_off(waiting.retry, now)
        return []

    def _on_receipt(self, event: ev.ReceiptReceived, _now: float) -> list[ev.Command]:
        receipt: Receipt = event.receipt
        if receipt.update_id not in self._sent and receipt.update_id not in self._outbox:
            return []
        if receipt.update_id in self._unsettled and receipt.verdict == "accepted":
            return [ev.MoveMemory(receipt.update_id, receipt.task_id)]
        return [*self._give_back(receipt.update_id), *self._settle(receipt.update_id)]

    def _on_memory_moved(self, event: ev.MemoryMoved, _now: float) -> list[ev.Command]:
        self._unsettled.discard(event.update_id)
        return self._settle(event.update_id)

    def _on_memory_not_moved(self, event: ev.MemoryNotMoved, _now: float) -> list[ev.Command]:
        return [ev.Note("error", f"{event.detail}; the next hello asks for the receipt again")]

    def _settle(self, uid: str) -> list[ev.Command]:
        """The verdict on an update is known, and carried out."""
        sent = self._sent.pop(uid, None)
        if sent is not None:
            self._finish(sent[0])
        waiting = self._outbox.pop(uid, None)
        if waiting is not None:
            self._finish(waiting.task_id)  # our confirm was lost, the update was not
        elif uid not in self._kept:
            return [self._remember()]
        self._kept.discard(uid)
        return [self._remember(), ev.ClearOutbox(uid)]

    def _give_back(self, uid: str) -> list[ev.Command]:
        if uid not in self._unsettled:
            return []
        self._unsettled.discard(uid)
        return [ev.GiveBack(uid)]

    def _on_notice(self, event: ev.NoticeReceived, now: float) -> list[ev.Command]:
        notice: Notice = event.notice
        if notice.event == "say_hello":
            self._next_hello_at = now
            self._announce_at = now + ANNOUNCE_AGAIN_S
            return []
        if notice.event == "send_again":
            return self._send_again(notice.task_id, now)
        if notice.event == "task_withdrawn":
            return self._drop(lambda task_id, _run_id: task_id == notice.task_id)
        commands = [*self._drop(lambda _task_id, run_id: run_id == notice.run_id), ev.ForgetRun(notice.run_id)]
        early = self._first_connected_at is None or now < self._first_connected_at + BACKLOG_S
        if early and notice.run_id not in self._served:
            return [*commands, ev.Note("info", f"run {notice.run_id} finished while this participant was away")]
        return [*commands, *self._leave(ev.Exit("run_finished"), now)]

    def _send_again(self, asked: str | None, now: float) -> list[ev.Command]:
        """What was sent in chunks did not arrive whole."""
        for waiting in self._outbox.values():
            waiting.from_start = waiting.from_start or waiting.task_id == asked
        found = [uid for uid, (task_id, _) in self._sent.items() if task_id == asked and uid in self._kept]
        for uid in found:
            task_id, run_id = self._sent.pop(uid)
            self._kept.discard(uid)
            self._outbox[uid] = _Waiting(task_id, run_id, _Retry(), from_start=True)
        return [self._remember(), *self._publish_due(now)] if found else []

    # What several of them share

    def _drop(self, belongs: _Belongs) -> list[ev.Command]:
        """Forget matching tasks wherever they are."""
        commands: list[ev.Command] = []
        current = self._current
        if current is not None and current.phase != "withdrawn" and belongs(current.task.task_id, current.task.run_id):
            self._finish(current.task.task_id)
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
                if METHODS[current.task.reply].remembers:
                    commands.append(ev.GiveBack(uid))
        for uid in [u for u, w in self._outbox.items() if belongs(w.task_id, w.run_id)]:
            self._finish(self._outbox.pop(uid).task_id)
            commands += [*self._give_back(uid), ev.ClearOutbox(uid)]
        for uid in [u for u, (task_id, run_id) in self._sent.items() if belongs(task_id, run_id)]:
            self._finish(self._sent.pop(uid)[0])
            commands += self._give_back(uid)
            if uid in self._kept:
                self._kept.discard(uid)
                commands.append(ev.ClearOutbox(uid))
        return [self._remember(), *commands]

    def _taken(self, task_id: str, phase: str) -> _Current | None:
        current = self._current
        return current if current is not None and (current.task.task_id, current.phase) == (task_id, phase) else None

    def _is_over(self, task_id: str) -> bool:
        return task_id in self._done

    def _finish(self, task_id: str) -> None:
        self._done[task_id] = None
        while len(self._done) > MAX_REMEMBERED:
            del self._done[next(iter(self._done))]

    def _remember(self) -> ev.Remember:
        return ev.Remember(dict(self._sent), tuple(self._done))

    def _update_id(self, task: Task) -> str:
        return update_id(task.run_id, task.task_id, self.participant_id)

    def _decline(
        self, task: Task, reason: DeclineReason, detail: str, retry_after_s: float | None = None
    ) -> list[ev.Command]:
        decline = Decline(
            task_id=task.task_id,
            run_id=task.run_id,
            participant_id=self.participant_id,
            reason=reason,
            detail=detail[:DETAIL_CHARACTERS],
            retry_after_s=retry_after_s,
        )
        self._declined[task.task_id] = decline
        while len(self._declined) > MAX_REMEMBERED:
            oldest = next(iter(self._declined))
            del self._declined[oldest]
            self._declines_waiting.pop(oldest, None)
        return self._send_decline(task.task_id)

    def _send_decline(self, task_id: str) -> list[ev.Command]:
        decline = self._declined[task_id]
        self._declines_waiting[task_id] = _Waiting(task_id, decline.run_id, _Retry(), in_flight=self._connected)
        return [ev.SendDecline(decline)] if self._connected else []

    def _publish_due(self, now: float) -> list[ev.Command]:
        commands: list[ev.Command] = []
        if not self._connected:
            return commands
        for uid, waiting in self._outbox.items():
            if not waiting.in_flight and now >= waiting.retry.at:
                waiting.in_flight = True
                commands.append(ev.PublishUpdate(uid, waiting.task_id, waiting.from_start))
                waiting.from_start = False
        for task_id, waiting in self._declines_waiting.items():
            if not waiting.in_flight and now >= waiting.retry.at:
                waiting.in_flight = True
                commands.append(ev.SendDecline(self._declined[task_id]))
        return commands

    def _announce_due(self, now: float) -> list[ev.Command]:
        if not self._connected or now < self._announce_at:
            return []
        self._announce_at = float("inf")
        return [ev.AnnounceAgain(uid, task_id) for uid, (task_id, _) in self._sent.items() if uid in self._kept]

    def _back_off(self, retry: _Retry, now: float) -> None:
        retry.at = now + RETRY.delay_s(retry.attempts, self._rng)
        retry.attempts += 1

    def _hello_if_due(self, now: float) -> list[ev.Command]:
        finished = self._leaving is not None and self._leaving.exit.reason == "run_finished"
        if not self._connected or finished:
            return []
        able = (
            self._unmet is None
            and now >= self._disk_refused_until
            and len(self._outbox) < MAX_OUTBOX
            and self._leaving is None
            and self.num_examples != 0
        )
        accepting = able and self._current is None and not self._unsettled
        # Being busy with a task, or waiting for a verdict, is no news: the coordinator gave it, or knows it.
        changed = (accepting and self._told_accepting is False) or (not able and self._told_accepting is True)
        if not changed and now < self._next_hello_at:
            return []
        self._told_accepting = accepting
        self._next_hello_at = now + self.settings.hello_interval_s
        hello = Hello(
            participant_id=self.participant_id,
            session_id=self.session_id,
            num_examples=self.num_examples or 0,
            accepting=accepting,
            replies=self.replies,
            task_ids=self.held(),
            software=self.software,
        )
        return [ev.SendHello(hello)]

    def _leave(self, exit_: ev.Exit, now: float) -> list[ev.Command]:
        self._leaving = _Leaving(exit_, now + LEAVE_S)
        current = self._current
        return [ev.CancelTraining(current.task.task_id)] if current is not None and current.phase == "training" else []

    def _exit_if_due(self, now: float) -> list[ev.Command]:
        if self._leaving is None:
            return []
        undelivered = self._outbox or self._declines_waiting
        if undelivered and self._connected and now < self._leaving.deadline:
            return []
        return [self._leaving.exit]
