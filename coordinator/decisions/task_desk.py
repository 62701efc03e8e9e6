"""The task desk: the half of the core that deals with participants and tasks. Its rules are numbered in core.py.

It issues, repeats, lapses, withdraws and closes tasks, and handles hellos, declines and undeliverable tasks. The core
keeps its time and its version up to date. It writes its commands into the core's list.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.commands import CloseTask, Command, IssueTask, RepeatReceipts, Withdraw
from fedmq.coordinator.decisions.events import TaskDeclined, TaskUndeliverable
from fedmq.coordinator.decisions.participants.arrival_groups import ArrivalGroups
from fedmq.coordinator.decisions.participants.back_offs import BackOffs
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.participants.roster import Roster
from fedmq.coordinator.decisions.records import ClosedState, ParticipantRecord, TaskRecord
from fedmq.coordinator.decisions.task_models import TaskModel
from fedmq.coordinator.decisions.tasks.book import HeldTask, TaskBook
from fedmq.coordinator.decisions.tasks.names import TaskNames, parsed
from fedmq.coordinator.settings import RunSettings
from fedmq.coordinator.strategies.math.client_weights import ClientWeights
from fedmq.coordinator.strategies.protocol import Arrivals
from fedmq.schemas.codecs.names import BUILT_IN, DOWNLINK, REFERENCE
from fedmq.schemas.messages import UNFROZEN, Hello, Reply, TrainingConfig, Uplink
from fedmq.schemas.methods import memory_kind

_LARGEST = sys.float_info.max
LEFT = "its participant has left"
"""Detail of a task whose participant said that it leaves."""
MIN_GRACE_S = 2.0
GRACE_OF_LEASE = 0.1
"""Part of the lease, at least MIN_GRACE_S, in which a hello of the same session may cross a task on a slow link."""
MAX_LAPSED = 4
"""Most lapsed tasks of one participant whose updates are still welcome."""
MAX_REPEATED = 8
"""Most receipts that one hello asks for. Each is looked up in the ledger, and a participant's queue holds 16 messages.
The next hello asks for the next ones."""
FREE_REPEATS = 3
"""Times that a task is repeated at once to new sessions. Later ones wait MIN_GRACE_S: each carries the whole model."""


class TaskDesk:
    """Participants, tasks and the commands about them, for the core."""

    def __init__(
        self,
        settings: RunSettings,
        reply: Reply,
        training: TrainingConfig,
        names: TaskNames,
        rng: np.random.Generator,
        *,
        max_participants: int | None = None,
        arrivals: Arrivals | None = None,
        uplink: Uplink | None = None,
        sent: TaskModel | None = None,
    ) -> None:
        """`sent` is the model that tasks carry; None if they carry the parameters as they are."""
        self.settings = settings
        self.roster = Roster(settings, reply, rng, max_participants)
        self.back_offs = BackOffs(settings, self.roster)
        self.groups = None if arrivals is None else ArrivalGroups(arrivals, self.roster.get)
        self.tasks = TaskBook(settings.max_staleness)
        self.client_weights = ClientWeights(settings.client_weights, settings.max_client_weight)
        self.now = 0.0
        self.version = 0
        self.last_task_seq = 0
        self.first_task_seq = 0
        """Number of the last task from before this core's start."""
        self.names = names
        self.commands: list[Command] = []
        self.unfrozen_at: Callable[[int], int | None] = lambda _: None
        """Returns the last version up to this one at which frozen tensors began to move; None if none did."""
        self.own_limit: Callable[[str], int | None] = lambda _: None
        """Returns the most examples of a participant, by its id; None if only the run's limit is known."""
        self._doubted: set[str] = set()
        self.training = training
        self.memory = memory_kind(reply, uplink)
        """Kind of the memory that participants keep of their accepted updates."""
        self._reply = reply
        self._uplink = uplink
        own = () if uplink is None else (uplink.codec,)
        self._codecs = tuple(dict.fromkeys((*BUILT_IN, "zstd", DOWNLINK, REFERENCE, *own)))
        """Capabilities that count. No other name is kept: a hello may have 64 of them, for each participant."""
        self.sent = sent
        self.former: tuple[str, ...] = ()
        """Ids of the run before its set-backs, newest first."""
        self._training_values = {name: getattr(training, name) for name in TrainingConfig.model_fields}

    # Time

    def pass_time(self) -> None:
        """Apply the leases, absences and back-offs that are over by now."""
        for task in self.tasks.leases_over(self.now):
            self.lapse(task, "lease over", silent=True)
        self.roster.pass_time(self.now, self.version)

    def next_due(self) -> float | None:
        """Return the run time at which `pass_time` may next have something to do; None if there is none."""
        lease_end, other = self.tasks.next_lease_end(), self.roster.next_due()
        if lease_end is None or other is None:
            return other if lease_end is None else lease_end
        return min(lease_end, other)

    def doubt_all(self) -> None:
        """Doubt every task that is out, after a restart: it may have been committed and never sent.

        The participant's next hello decides, without a grace. The same goes for tasks that were to be sent again.
        """
        self._doubted = {task.task_id for task in self.tasks.open() if task.state == "out"}

    # What participants say

    def on_hello(self, hello: Hello, user: str | None = "") -> None:
        leaving = self.roster.make_room(hello.participant_id, user)
        if leaving is None:
            return
        for gone in leaving:
            self.forget(gone, "forgotten: it was away, and another participant came")
        p = self.roster.get(hello.participant_id)
        new_session = p is None or hello.session_id != p.session_id
        if p is None:
            p = self.roster.add(hello, self.now, user)
        else:
            p.session_id, p.replies, p.reachable = hello.session_id, hello.replies, True
            p.last_seen_s, p.left = self.now, hello.leaving
            self.roster.set_user(p, user)
        p.codecs = tuple(name for name in self._codecs if name in hello.codecs)
        p.num_examples = min(hello.num_examples, self.most_examples(p))
        p.holds = None if self.sent is None else self.sent.version_of(hello.model)
        if p.out is not None:
            doubted = p.out.task_id in self._doubted
            self._doubted.discard(p.out.task_id)
            if p.out.task_id not in hello.task_ids:
                if self.is_done_with(p.out, hello):
                    self.lapse(p.out, "its participant is done with it, and the ledger has no verdict")
                else:
                    self._on_lost(p, p.out, new_session, doubted, hello.accepting)
            elif hello.leaving:
                self.lapse(p.out, LEFT)
                self.back_offs.on_silence(p, self.now, forgiven=1)  # who comes and goes gets no endless supply of tasks
        self.back_offs.on_hello(p, self.now, new_session=new_session, accepting=hello.accepting)
        p.accepting = hello.accepting and p.out is None and not (new_session and self._may_wait_in_its_queue(p, hello))
        if self.memory != "none":
            self._settle_overdue(p, hello)
        self.settle(p)
        over = tuple(task_id for task_id in hello.task_ids if self._is_over(task_id, p))
        if over:
            self.commands.append(RepeatReceipts(p.participant_id, over[:MAX_REPEATED]))

    def _may_wait_in_its_queue(self, p: Participant, hello: Hello) -> bool:
        """Return True if the broker may still have a task that this participant left with: it had not acked it yet.

        It would train that task first, and have the model sent twice. Its next hello says if there was none.
        """
        return any(
            task.detail == LEFT and task.task_id not in hello.task_ids and self.now < task.lease_until_s
            for task in p.lapsed
        )

    def _settle_overdue(self, p: Participant, hello: Hello) -> None:
        """Withdraw tasks whose verdict is overdue, if participants keep the method's memory.

        Such a participant takes no other task until it has the verdict, so it must get one in the end.
        """
        for task in list(p.lapsed):
            if task.task_id in hello.task_ids and self.now >= task.lease_until_s + self.settings.lease_s:
                self.withdraw(task, "lapsed for a second lease, and its participant waits for a verdict")

    def is_done_with(self, task: HeldTask, hello: Hello) -> bool:
        """Return True if the hello shows that its participant would not train this task again.

        The task was issued before this start, and the participant finished it last, or a later one. Of a task that was
        issued since then it is not believed: an endless supply of tasks would cost it one short message each.
        """
        if hello.last_task is None or task.seq > self.first_task_seq:
            return False
        last, own = parsed(hello.last_task), parsed(task.task_id)
        return hello.last_task == task.task_id or (
            last is not None and own is not None and last.uid == own.uid and last.seq > own.seq
        )

    def _on_lost(self, p: Participant, task: HeldTask, new_session: bool, doubted: bool, accepting: bool) -> None:
        if not (new_session or doubted) and (task.repeats or self.now - task.sent_s < self._grace_s()):
            return
        if task.repeats >= FREE_REPEATS and self.now - task.sent_s < MIN_GRACE_S:
            self._doubted.add(task.task_id)  # it may be lost all the same: the next hello decides
            return
        if not accepting or task.base_version != self.version or self._reply not in p.replies:
            self.lapse(task, "lost by its participant", silent=not doubted)
            return
        task.repeats += 1
        task.sent_s = self.now
        self.tasks.touch(task)
        self.commands.append(self._order(task, task.lease_until_s - self.now, again=True))

    def _is_over(self, task_id: str, p: Participant) -> bool:
        """Return True if the task is not open, and the ledger already has its verdict if there is one."""
        task = self.tasks.get(task_id) or self.tasks.just_closed(task_id)
        return task is None or task.participant_id != p.participant_id

    def on_decline(self, event: TaskDeclined) -> None:
        p = self.roster.get(event.participant_id)
        if p is None or event.run_id != self.settings.run_id:
            return
        p.last_seen_s = self.now
        task = self.tasks.get(event.task_id)
        if task is not None and task.participant_id == p.participant_id:
            p.declined += 1
            if event.reason == "model_differs":
                p.holds = None  # the next task is whole
            detail = f"{event.reason}: {event.detail}" if event.detail else event.reason
            if not task.repeats:
                self.close(task, "declined", detail)
                self.commands.append(CloseTask(task.task_id, "declined", detail))
            elif task.state == "out":
                self.lapse(task, detail)
            if p.out is None:
                p.accepting = True
                self.back_offs.on_decline(p, self.now, event.reason, event.retry_after_s)
        self.settle(p)

    def on_undeliverable(self, event: TaskUndeliverable) -> None:
        task = self.tasks.get(event.task_id)
        if task is not None:
            p = self.owner(task)
            p.reachable = False
            if task.state == "out":
                self.lapse(task, f"undeliverable: {event.detail}")
                self.back_offs.on_silence(p, self.now, forgiven=1)
            self.settle(p)

    def most_examples(self, p: Participant) -> int:
        """Return the largest number of examples that this participant may claim."""
        own = self.own_limit(p.participant_id)
        return self.settings.max_examples if own is None else own

    def revoke(self, participant_id: str) -> None:
        """Withdraw all tasks of a participant, and give it none any more."""
        p = self.roster.get(participant_id)
        if p is None or p.revoked:
            return
        p.revoked = True
        for task in [*p.lapsed, *([p.out] if p.out is not None else [])]:
            self.withdraw(task, "its participant was revoked")
        self.settle(p)

    def observe(self, p: Participant, num_examples: int, loss: float | None) -> None:
        """Note what an accepted update says about its participant; `loss` is None if it says nothing about that."""
        p.num_examples = p.counted_examples = num_examples
        metrics = {}
        if loss is not None:
            metrics["loss"] = p.client_loss = _bounded(loss)
        self.client_weights.observe(p.participant_id, num_examples, metrics)

    def _grace_s(self) -> float:
        return max(MIN_GRACE_S, GRACE_OF_LEASE * self.settings.lease_s)

    # Tasks

    def issue_to(self, p: Participant) -> None:
        self.last_task_seq += 1
        lease_s = self.settings.lease_s
        task = HeldTask(
            task_id=self.names.name(self.last_task_seq, self.version, p.participant_id),
            seq=self.last_task_seq,
            participant_id=p.participant_id,
            base_version=self.version,
            issued_s=self.now,
            lease_until_s=self.now + lease_s,
            sent_s=self.now,
        )
        self.tasks.add(task)
        if self.groups is not None:
            self.groups.assign(p, task.task_id, self.now)
        p.out = task
        p.accepting = False  # until it says otherwise
        p.tasks_issued += 1
        self.settle(p)
        self.commands.append(self._order(task, lease_s, again=False))

    def _order(self, task: HeldTask, lease_s: float, again: bool) -> IssueTask:
        seed = task_seed(self.settings.seed, task.seq)
        values = {**self._training_values, "seed": seed, "max_steps": self.max_steps(task)}
        if self.groups is not None:
            values["epochs"] = values["max_steps"]  # an epoch has a step at least
        unfrozen = self.unfrozen_at(task.base_version)
        if unfrozen is not None:
            values["extra"] = {**self.training.extra, UNFROZEN: unfrozen}
        training = TrainingConfig.trusted(values)
        p = self.owner(task)
        coded = self._uplink is not None and self._uplink.lacking(p.codecs) is None
        downlink = None if self.sent is None else self.sent.order(p.codecs, p.holds)
        named = (task.task_id, task.seq, task.participant_id, task.base_version)
        former = self.former if coded and self.memory == "soft" else ()
        return IssueTask(*named, training, lease_s, again, coded, downlink, former)

    def max_steps(self, task: HeldTask) -> int | None:
        """Return the task's step limit, by its participant's speed if the run sets steps that way.

        It is never above the training's own limit. None means no limit.
        """
        if self.groups is not None:
            return self.groups.steps(task.task_id)
        limit = self.training.max_steps
        if self.settings.steps is None:
            return limit
        steps = self.settings.steps.steps(self.owner(task).step_s)
        return steps if limit is None else min(steps, limit)

    def lapse(self, task: HeldTask, detail: str, silent: bool = False) -> None:
        """Free the task's slot; its update stays welcome. `silent`: its participant has not kept to its lease."""
        p = self.owner(task)
        p.out = None
        self._doubted.discard(task.task_id)
        p.lapsed.append(task)
        self.tasks.lapse(task, detail)
        if self.groups is not None:
            self.groups.leave(task.task_id, open_still=True)
        if len(p.lapsed) > MAX_LAPSED:
            self.withdraw(p.lapsed[0], f"more than {MAX_LAPSED} lapsed tasks")
        if silent:
            self.back_offs.on_silence(p, self.now)
        self.settle(p)

    def withdraw(self, task: HeldTask, detail: str) -> None:
        self.settle(self.close(task, "withdrawn", detail))
        self.commands.append(CloseTask(task.task_id, "withdrawn", detail))
        self.commands.append(Withdraw(task.participant_id, task.task_id, detail))

    def withdraw_too_stale(self) -> None:
        """Withdraw the lapsed tasks whose update would be too stale for the version that was just made."""
        for task in self.tasks.too_stale(self.version):
            self.withdraw(task, f"lapsed, and too stale at version {self.version}")

    def close(self, task: HeldTask, state: ClosedState, detail: str) -> Participant:
        """Remove the task from the book and from its participant; the caller changes that further and settles it."""
        p = self.owner(task)
        if p.out is task:
            p.out = None
            self._doubted.discard(task.task_id)
        else:
            p.lapsed.remove(task)
        if self.sent is not None and state in ("accepted", "discarded"):  # it was trained, so it was kept
            p.holds = max(task.base_version, -1 if p.holds is None else p.holds)
        self.tasks.close(task, state, detail)
        if self.groups is not None:
            self.groups.leave(task.task_id, open_still=False)
        return p

    def discard_task(self, task: HeldTask, reason: str, fault: bool) -> None:
        """Close a task that came back with an unusable update; `fault` makes it count as a failure."""
        p = self.close(task, "discarded", reason)
        self.commands.append(CloseTask(task.task_id, "discarded", reason))
        if p.out is None:
            p.accepting = True
            if fault:
                self.back_offs.on_failure(p, self.now)
        self.settle(p)

    # Who is known, and who has a place

    def forget(self, p: Participant, detail: str) -> None:
        """Forget a participant that has no task out; its lapsed tasks are withdrawn."""
        for task in list(p.lapsed):
            self.withdraw(task, detail)
        self.client_weights.forget(p.participant_id)
        self.roster.forget(p)

    def tidy(self) -> None:
        """Forget those that left nothing behind, and hand out the strategy's places. It is the end of each step."""
        for p in self.roster.take_leaving():
            self.forget(p, "forgotten: it was away")
        places = self.roster.places
        while places is not None and (move := places.next_move()) is not None:
            places.move(move)
            if move.loser is not None:
                for task in list(move.loser.lapsed):
                    self.withdraw(task, "its participant lost its place to another one")
                self.settle(move.loser)
            self.settle(move.winner)

    def forget_memories(self) -> None:
        """Forget what participants remember of the method, and their failures: they begin anew as well."""
        for participant_id in self.roster.ids():
            p = self.roster.get(participant_id)
            assert p is not None
            p.memory = None
            p.failures, p.asked_again_at_s = 0, None
            self.settle(p)

    def owner(self, task: HeldTask) -> Participant:
        p = self.roster.get(task.participant_id)
        assert p is not None, "a task's participant is known"
        return p

    def settle(self, p: Participant) -> None:
        self.roster.settle(p, self.now, self.version)

    # Checkpoints

    def scalars(self) -> dict[str, Any]:
        """Return the values that the checkpoint stores. Participants and tasks have tables of their own."""
        return {
            "task_names": self.names.scalars(),
            "client_weights": self.client_weights.scalars(),
            "now": self.now,
            "version": self.version,
            "last_task_seq": self.last_task_seq,
            "participants": len(self.roster),
            "next_seq": self.roster.next_seq,
            "arrival_groups": None if self.groups is None else self.groups.scalars(),
        }

    def load(
        self, scalars: Mapping[str, Any], participants: Iterable[ParticipantRecord], open_tasks: Iterable[TaskRecord]
    ) -> None:
        """Restore the desk from the snapshot's scalars and the rows of the ledger's tables."""
        self.now, self.version = scalars["now"], scalars["version"]
        self.first_task_seq = self.last_task_seq = scalars["last_task_seq"]
        rows = sorted(participants, key=lambda r: r.seq)
        if len(rows) != scalars.get("participants", len(rows)):
            raise ValueError(
                f"the ledger has {len(rows)} participants, the last one with seq {rows[-1].seq if rows else None}; "
                f"the checkpoint counts {scalars['participants']}: the two do not belong together"
            )
        for row in rows:
            self.roster.load(row)
        self.roster.next_seq = scalars.get("next_seq", self.roster.next_seq)
        for record in sorted(open_tasks, key=lambda r: r.seq):
            task = self.tasks.load(record)
            p = self.owner(task)
            if task.state == "out":
                p.out = task
            else:
                p.lapsed.append(task)
        if self.groups is not None:
            self.groups.load(scalars["arrival_groups"])
        self.roster.rebuild(self.now, self.version)
        self.client_weights = ClientWeights.restore(
            self.settings.client_weights,
            scalars["client_weights"],
            ((r.participant_id, r.weighed_examples, r.client_loss) for r in rows),
            self.settings.max_client_weight,
        )


def task_seed(run_seed: int, task_seq: int) -> int:
    """Return a task's training seed, in [0, 2^63). It is the same each time the task is sent."""
    digest = hashlib.blake2b(f"{run_seed}-{task_seq}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _bounded(loss: float) -> float:
    """Return a loss that JSON and SQL can hold and that gives the same client weight. NaN becomes a very large one."""
    return loss if -_LARGEST <= loss <= _LARGEST else math.copysign(_LARGEST, loss) if math.isinf(loss) else _LARGEST
