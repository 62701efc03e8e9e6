"""The real agent and the real core under random faults: a participant's memory always matches its accepted updates.

The method is AREA with its memory on the participants. Each training ends at a random number. So the sum of everything
accepted from a participant must be the number of its last accepted update, and the model must be the mean of these.

Faults: a participant dies between any two of its steps; unacked messages come again; the oldest message of a queue (a
receipt, a notice or a task) is dropped; updates are sent twice or come too late; leases end; the coordinator restarts.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, Discard, IssueTask, RepeatReceipts, SayHello, Withdraw
from fedmq.coordinator.decisions.events import ParticipantSeen, TaskDeclined, UpdateArrived
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import Area
from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.agent import Agent
from fedmq.participant.memory import Memory
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.training.methods import begin, make
from fedmq.schemas.messages import Notice, Receipt, Reply, Task, Update, run_uid, update_id
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench

NAMES = ("a", "b", "c")
RUN: dict[str, Any] = {
    "concurrency": 3, "lease_s": 12.0, "decline_backoff_s": 1.0, "max_staleness": 3,
    "stop": StopSettings(max_updates=10**6),
}  # fmt: skip
SETTINGS = ParticipantSettings(hello_interval_s=3.0)


class Crash(Exception):
    pass


@dataclass
class Disk:
    task: Task | None = None
    tensors: Parameters | None = None
    outbox: dict[str, tuple[Update, Parameters]] = field(default_factory=dict)
    sent: dict[str, tuple[str, str]] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    memory: dict[str, Memory] = field(default_factory=dict)
    unsettled: dict[str, tuple[str, str, Memory]] = field(default_factory=dict)

    def restored(self) -> ev.Restored:
        outbox = {uid: (u.task_id, u.run_id) for uid, (u, _) in self.outbox.items()}
        unsettled = {uid: entry[:2] for uid, entry in self.unsettled.items()}
        return ev.Restored(self.task, 1.0, outbox, dict(self.sent), self.done, unsettled)


class Person:
    """The part of participant.service.service around the agent, over a disk of dictionaries."""

    replies: tuple[Reply, ...] = ("change",)
    codecs: tuple[str, ...] = ()

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.disk = world, name, Disk()
        self.queue: deque[Any] = deque()
        self.unacked: dict[int, Any] = {}
        self.sessions = 0
        self.start()

    def start(self) -> None:
        self.queue.extendleft(reversed(self.unacked.values()))
        self.unacked.clear()
        self.inbox: deque[ev.Event] = deque([ev.Started(), ev.Connected()])
        self.finished: dict[str, tuple[Update, Parameters, Memory]] = {}
        self.received: dict[str, Parameters] = {}
        self.sessions += 1
        self.agent = Agent(
            self.name, f"s{self.sessions}", SETTINGS, num_examples=5, rng=random.Random(0),
            restored=self.disk.restored(), replies=self.replies,
        )  # fmt: skip

    def act(self) -> None:
        """Handle one thing that happened and carry out the commands that follow, or die in the middle of that."""
        try:
            if self.inbox:
                self.feed(self.inbox.popleft())
            elif self.queue:
                self.on_message(self.queue.popleft())
            else:
                self.feed(ev.Tick())
        except Crash:
            self.world.seen["crash"] += 1
            self.start()

    def on_message(self, message: Any) -> None:
        self.world.handle += 1
        handle = self.world.handle
        self.unacked[handle] = message
        if isinstance(message, tuple):
            task, tensors = message
            self.received[task.task_id] = tensors
            self.feed(ev.TaskReceived(task, handle))
            return
        self.feed(ev.ReceiptReceived(message) if isinstance(message, Receipt) else ev.NoticeReceived(message))
        self.point()
        self.unacked.pop(handle, None)

    def point(self) -> None:
        if self.world.rng.random() < self.world.crash_rate:
            raise Crash

    def feed(self, event: ev.Event) -> None:
        events = [event]
        while events:
            for command in self.agent.step(events.pop(0), self.world.now):
                self.point()
                caused = self.do(command)
                if caused is not None:
                    events.append(caused)

    def do(self, command: ev.Command) -> ev.Event | None:
        disk = self.disk
        match command:
            case ev.SpoolTask(task, handle):
                disk.task, disk.tensors = task, self.received[task.task_id]
                return ev.TaskSpooled(task.task_id, handle)
            case ev.Ack(handle):
                self.unacked.pop(handle, None)
            case ev.StartTraining(task):
                self.train(task)
            case ev.WriteOutbox(task_id, uid):
                update, payload, remembered = self.finished[uid]
                disk.unsettled[uid] = (task_id, update.run_id, remembered)
                self.point()
                disk.outbox[uid] = (update, payload)
                return ev.OutboxWritten(task_id)
            case ev.ClearTask():
                disk.task = None
            case ev.PublishUpdate(uid, _):
                copies = 2 if self.world.chance(0.1) else 1
                self.world.updates.extend([disk.outbox[uid]] * copies)
                self.inbox.append(ev.PublishConfirmed(uid))
            case ev.ClearOutbox(uid):
                disk.outbox.pop(uid, None)
            case ev.WriteSent(sent, done):
                disk.sent, disk.done = dict(sent), done
            case ev.MoveMemory(uid, task_id):
                if uid in disk.unsettled:
                    disk.memory[run_uid(task_id)] = disk.unsettled.pop(uid)[2]
                return ev.MemoryMoved(uid)
            case ev.DropNextMemory(uid):
                disk.unsettled.pop(uid, None)
            case ev.ForgetSoftMemory(task_id):
                memory = disk.memory.get(run_uid(task_id))
                if memory is not None and memory.soft:
                    del disk.memory[run_uid(task_id)]
            case ev.SendHello(hello):
                self.world.control.append(hello.model_copy(update={"codecs": self.codecs}))
            case ev.SendDecline(decline):
                self.world.control.append(decline)
                self.inbox.append(ev.DeclineConfirmed(decline.task_id))
        return None

    def train(self, task: Task) -> None:
        tensors = self.disk.tensors
        assert tensors is not None
        memory = self.disk.memory.get(run_uid(task.task_id))
        self.world.trainings += 1
        mark = f"m{self.world.trainings}"
        y = Parameters({"w": np.array([self.world.rng.gauss(0, 1)], np.float32)})
        made = make("change", begin("change", tensors, memory), y, 1, task.training)
        uid = update_id(task.run_id, task.task_id, self.name)
        update = Update(
            update_id=uid, task_id=task.task_id, run_id=task.run_id, participant_id=self.name,
            base_version=task.base_version, payload="change", memory=None if memory is None else memory.mark,
            next_memory=mark, num_examples=5, num_steps=1, train_s=1.0,
        )  # fmt: skip
        assert made.next_memory is not None
        self.finished[uid] = (update, made.tensors, Memory(mark, made.next_memory))
        self.world.made[mark] = float(y["w"][0])
        self.inbox.append(ev.TrainingFinished(task.task_id, 5))


class World:
    person: type[Person] = Person

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.crash_rate = 0.02
        self.now, self.handle, self.trainings = 0.0, 0, 0
        self.made: dict[str, float] = {}
        self.updates: deque[tuple[Update, Parameters]] = deque()
        self.control: deque[Any] = deque()
        self.verdicts: dict[str, Receipt] = {}
        self.total: Counter[str] = Counter()
        self.last: dict[str, float] = {}
        self.seen: Counter[str] = Counter()
        self.bench = self.new_bench()
        self.people = {name: self.person(self, name) for name in NAMES}

    def new_bench(self) -> Bench:
        strategy = Area(num_participants=len(NAMES), memory="participant")
        return Bench(strategy, model=Parameters({"w": np.zeros(1, np.float32)}), **RUN)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def run(self, steps: int) -> None:
        for _ in range(steps):
            choice = self.rng.random()
            if choice < 0.6:
                self.people[self.rng.choice(NAMES)].act()
            elif choice < 0.85:
                self.coordinate()
            elif choice < 0.99:
                self.now += self.rng.expovariate(2.0)
                self.obey(self.bench.tick(self.now))
            else:
                self.trouble()

    def trouble(self) -> None:
        if self.chance(0.3):
            self.seen["restart"] += 1
            self.obey(self.bench.restart())
        else:
            queue = self.people[self.rng.choice(NAMES)].queue
            if queue:
                self.seen[f"lost {type(queue[0]).__name__}"] += 1
                queue.popleft()

    def coordinate(self) -> None:
        if self.control and self.chance(0.5):
            message = self.control.popleft()
            if message.kind == "hello":
                self.obey(self.bench.step(ParticipantSeen(message), self.now))
            else:
                m = message
                declined = TaskDeclined(m.participant_id, m.task_id, m.run_id, m.reason, m.detail, m.retry_after_s)
                self.obey(self.bench.step(declined, self.now))
        elif self.updates:
            update, payload = self.updates.popleft()
            payload = self.decoded(payload)
            self.handle += 1
            arrived = UpdateArrived(self.handle, update, payload, self.bench.closed(update.task_id))
            self.obey(self.bench.step(arrived, self.now), payload)

    def obey(self, commands: list[Any], payload: Parameters | None = None) -> None:
        """Carry out commands as the service does: commit everything, send receipts and notices, and send tasks last."""
        self.bench.commit()
        tasks = []
        for command in commands:
            match command:
                case Accept(_, update):
                    assert payload is not None
                    self.accepted(update, payload)
                    self.tell(update, "accepted")
                case Discard(_, reason, _, update):
                    self.seen[reason] += 1
                    if reason == "duplicate":
                        self.people[update.participant_id].queue.append(self.verdicts[update.task_id])
                    else:
                        self.tell(update, "discarded")
                case RepeatReceipts(who, task_ids):
                    for task_id in task_ids:
                        known = self.verdicts.get(task_id)
                        self.people[who].queue.append(known or self.notice(who, "task_withdrawn", task_id))
                case Withdraw(who, task_id):
                    self.seen["withdrawn"] += 1
                    self.people[who].queue.append(self.notice(who, "task_withdrawn", task_id))
                case SayHello(names):
                    for name in names:
                        self.people[name].queue.append(self.notice(name, "say_hello", None))
                case IssueTask():
                    tasks.append(command)
        for t in tasks:
            self.people[t.participant_id].queue.append((self.task_of(t), self.bench.core.parameters))

    def task_of(self, t: IssueTask, **fields: Any) -> Task:
        known = {
            "task_id": t.task_id, "run_id": "run", "participant_id": t.participant_id, "base_version": t.base_version,
            "reply": "change", "training": t.training, "lease_s": t.lease_s,
        }  # fmt: skip
        return Task(**(known | fields))

    def decoded(self, payload: Parameters) -> Parameters:
        return payload

    def accepted(self, update: Update, payload: Parameters) -> None:
        self.total[update.participant_id] += float(payload["w"].astype(np.float64)[0])
        assert update.next_memory is not None
        self.last[update.participant_id] = self.made[update.next_memory]

    def tell(self, update: Update, verdict: Any) -> None:
        receipt = Receipt(
            update_id=update.update_id, task_id=update.task_id, run_id="run", participant_id=update.participant_id,
            verdict=verdict,
        )  # fmt: skip
        self.verdicts.setdefault(update.task_id, receipt)
        self.people[update.participant_id].queue.append(self.verdicts[update.task_id])

    def notice(self, who: str, event: Any, task_id: str | None) -> Notice:
        return Notice(run_id="run", participant_id=who, event=event, task_id=task_id)


@pytest.mark.parametrize("seed", range(4))
def test_what_participants_remember_is_what_was_accepted_of_them_whatever_happens(seed):
    world = World(seed)
    for _ in range(20):
        before = world.bench.core.accepted
        world.run(400)
        assert world.bench.core.accepted > before, "nobody waits for ever"
        for name, last in world.last.items():
            assert world.total[name] == pytest.approx(last, abs=1e-5)
        mean = sum(world.last.values()) / len(NAMES)
        assert float(world.bench.core.parameters["w"][0]) == pytest.approx(mean, abs=1e-5)
    faults = {"crash", "restart", "duplicate", "withdrawn", "too_stale", "lost Receipt", "lost tuple"}
    assert faults <= world.seen.keys(), world.seen
    assert world.seen["wrong_memory"] < 0.02 * world.bench.core.accepted, world.seen
