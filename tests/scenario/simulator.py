"""A federation in virtual time around the real Core and the real strategies.

Its participants have disks and durations, its broker redelivers, and its coordinator commits, crashes and comes back.
Everything follows from the seed. The commit protocol is the service's: a crash loses everything that was not committed,
and the broker delivers everything again that was not acked.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmq.coordinator.decisions.commands import (
    Accept,
    Command,
    Discard,
    Evaluate,
    Finish,
    IssueTask,
    NewVersion,
    RepeatReceipts,
    SayHello,
    Withdraw,
)
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import (
    ClosedTask,
    EvaluationArrived,
    Started,
    TaskUndeliverable,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.decisions.records import OPEN_STATES, ParticipantRecord, Snapshot, TaskRecord
from fedmq.coordinator.settings import RunSettings
from fedmq.coordinator.strategies.protocol import ClientUpdate, Strategy, arrivals
from fedmq.schemas.messages import TrainingConfig, Update
from fedmq.schemas.parameters import Parameters
from tests.scenario.simulated_agent import Agent, Plan

RUN_UID = "5eed0001"


def initial_parameters() -> Parameters:
    """Return a weight, a statistic that no optimiser changes, and an integer that nobody averages."""
    tensors = {"w": np.zeros(3, np.float32), "mean": np.ones(1, np.float32), "steps": np.zeros((), np.int64)}
    return Parameters(tensors, {"mean", "steps"})


@dataclass(frozen=True)
class Faults:
    """The faults around the coordinator."""

    crashes_at_s: tuple[float, ...] = ()
    crash_between_commit_and_ack: float = 0.5
    """Share of the crashes that happen after the transaction and before any ack, receipt or publish."""
    downtime_s: float = 3.0
    undeliverable: float = 0.0
    latency_s: tuple[float, float] = (0.0, 0.2)
    commit_delay_s: float = 1.0
    hello_interval_s: float = 15.0


@dataclass
class Ledger:
    """The state that survives a crash."""

    snapshot: Snapshot | None = None
    participants: dict[str, ParticipantRecord] = field(default_factory=dict)
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    accepted: list[tuple[Accept, Parameters]] = field(default_factory=list)
    discarded: list[Discard] = field(default_factory=list)
    versions: list[NewVersion] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    elapsed_s: float = 0.0


class Simulation:
    """The simulated federation. `run` returns when the run has finished and all updates are settled."""

    def __init__(
        self,
        settings: RunSettings,
        strategy: Strategy[Any],
        plans: Sequence[Plan],
        *,
        seed: int = 0,
        faults: Faults = Faults(),
        evaluate: Callable[[Parameters], dict[str, float]] | None = None,
    ) -> None:
        self.settings, self.strategy, self.faults, self.seed = settings, strategy, faults, seed
        self.evaluate = evaluate
        self.rng = np.random.default_rng([seed, 1])
        self.t = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._events = 0
        self.ledger = Ledger()
        self.core: Core | None = None
        self.crashes = 0
        self._epoch = 0
        self._up_since = self._base_elapsed = 0.0
        self._pending: list[tuple[Command, Any]] = []
        self._commit_due = False
        self._woken_at: float | None = None
        self._unacked: dict[int, tuple[Update, Parameters]] = {}
        self._deliveries = 0
        self._queues: dict[str, list[Any]] = defaultdict(list)
        self._control_backlog: list[Any] = []
        self.confirmed: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.most_out = 0
        self.mean_staleness: float | None = None
        self.agents: dict[str, list[Agent]] = {}
        for plan in plans:
            self.agents[plan.participant_id] = [Agent(self, plan, clone) for clone in range(plan.clones)]
            for agent in self.agents[plan.participant_id]:
                self.at(plan.arrives_s, agent.connect)
                self.at(plan.arrives_s + faults.hello_interval_s, agent.keep_saying_hello)
        for at in faults.crashes_at_s:
            self.at(at, self.crash)
        self.start()

    # Time

    def at(self, t: float, do: Callable[[], None]) -> None:
        self._events += 1
        heapq.heappush(self._heap, (max(t, self.t), self._events, do))

    def after(self, wait_s: float, do: Callable[[], None]) -> None:
        self.at(self.t + wait_s, do)

    def latency(self) -> float:
        return float(self.rng.uniform(*self.faults.latency_s))

    def run(self, until_s: float = 1e6) -> Simulation:
        while self._heap and not self.over:
            self.t, _, do = heapq.heappop(self._heap)
            assert self.t <= until_s, (
                f"the run did not finish by {until_s} s: version {self.core and self.core.version}"
            )
            do()
        assert self.over, "nothing is left to happen, and the run has not finished"
        return self

    @property
    def over(self) -> bool:
        return bool(self.ledger.finishes) and not self._unacked and self.core is not None

    # Coordinator

    @property
    def now(self) -> float:
        return self._base_elapsed + self.t - self._up_since

    def start(self) -> None:
        self._up_since, self._base_elapsed = self.t, self.ledger.elapsed_s
        training, evaluates = TrainingConfig(), self.evaluate is not None
        if self.ledger.snapshot is None:
            self.core = Core(self.settings, self.strategy, training, initial_parameters(), RUN_UID, evaluates=evaluates)
        else:
            open_tasks = [t for t in self.ledger.tasks.values() if t.state in OPEN_STATES]
            self.core = Core.restore(
                self.settings, self.strategy, training, self.ledger.snapshot,
                self.ledger.participants.values(), open_tasks, evaluates=evaluates,
            )  # fmt: skip
        self.step(Started())
        backlog, self._control_backlog = self._control_backlog, []
        for event in backlog:
            self.step(event)
        for delivery in list(self._unacked):
            self.after(self.latency(), lambda delivery=delivery: self.deliver(delivery))

    def crash(self) -> None:
        if self.core is None or self.ledger.finishes:
            return
        if self.rng.random() < self.faults.crash_between_commit_and_ack:
            self.commit(durable_only=True)
        self.core = None
        self.crashes += 1
        self._epoch += 1
        self._pending, self._commit_due, self._woken_at = [], False, None
        self.after(self.faults.downtime_s, self.start)

    def step(self, event: Any, payload: Parameters | None = None) -> None:
        assert self.core is not None
        commands = self.core.step(event, self.now)
        for command in commands:
            context: Any = payload
            if isinstance(command, IssueTask):
                assert command.base_version == self.core.version
                context = self.core.parameters
            elif isinstance(command, Evaluate) and self.evaluate is not None:
                result = EvaluationArrived(command.version, self.evaluate(self.core.parameters))
                self.in_this_life(0.1, lambda result=result: self.step(result))
            self._pending.append((command, context))
        verdicts = [c for c in commands if isinstance(c, Accept | Discard)]
        assert len(verdicts) == isinstance(event, UpdateArrived)
        self.most_out = max(self.most_out, self.core.tasks_out)
        if not self._commit_due:
            self._commit_due = True
            self.in_this_life(float(self.rng.uniform(0, self.faults.commit_delay_s)), self.commit)
        self.plan_tick()

    def in_this_life(self, wait_s: float, do: Callable[[], None]) -> None:
        """Call `do` after `wait_s`, unless the coordinator crashes before that."""
        epoch = self._epoch
        self.after(wait_s, lambda: do() if self._epoch == epoch and self.core is not None else None)

    def plan_tick(self) -> None:
        assert self.core is not None
        wakeup = self.core.next_wakeup()
        if wakeup is None or (self._woken_at is not None and self._woken_at <= wakeup):
            return
        self._woken_at = wakeup

        def tick() -> None:
            self._woken_at = None
            self.step(Tick())

        self.in_this_life(max(wakeup - self.now, 0.0) + 1e-6, tick)

    def control(self, event: Any) -> None:
        if self.core is None:
            self._control_backlog.append(event)
        else:
            self.step(event)

    def deliver(self, delivery: int) -> None:
        if self.core is None or delivery not in self._unacked:
            return
        update, payload = self._unacked[delivery]
        closed = None
        row = self.ledger.tasks.get(update.task_id)
        if not self.core.holds(update.task_id) and row is not None and row.state not in OPEN_STATES:
            closed = ClosedTask(row.task_id, row.participant_id, row.state)  # type: ignore[arg-type]
        self.step(UpdateArrived(delivery, update, payload, closed), payload)

    def commit(self, durable_only: bool = False) -> None:
        assert self.core is not None
        self._commit_due = False
        changes, snapshot = self.core.changes(), self.core.snapshot()
        ledger = self.ledger
        for gone in changes.forgotten:
            ledger.participants.pop(gone, None)
        ledger.participants.update(changes.participants)
        ledger.tasks.update(changes.tasks)
        ledger.elapsed_s = self.now
        ledger.snapshot = Snapshot(
            {name: a.copy() for name, a in snapshot.arrays.items()}, json.loads(json.dumps(snapshot.scalars))
        )
        pending, self._pending = self._pending, []
        for command, context in pending:
            if isinstance(command, Accept):
                ledger.accepted.append((command, context))
                self.counted[command.update.update_id] += 1
            elif isinstance(command, Discard):
                ledger.discarded.append(command)
            elif isinstance(command, NewVersion):
                ledger.versions.append(command)
            elif isinstance(command, Finish):
                ledger.finishes.append(command)
        if not durable_only:
            for command, context in pending:
                self.carry_out(command, context)

    def carry_out(self, command: Command, context: Any) -> None:
        """Do what follows a commit: acks, receipts, publishes."""
        if isinstance(command, Accept | Discard):
            self._unacked.pop(command.delivery, None)
            if command.update is not None:
                self.send(command.update.participant_id, ("receipt", command.update.task_id))
        elif isinstance(command, IssueTask):
            if self.rng.random() < self.faults.undeliverable:
                lost = TaskUndeliverable(command.task_id, "no queue")
                self.in_this_life(self.latency(), lambda: self.step(lost))
                if self.rng.random() < 0.5:  # otherwise only the confirm timed out, and the task arrives all the same
                    return
            self.send(command.participant_id, ("task", (command, context)))
        elif isinstance(command, Withdraw):
            self.send(command.participant_id, ("withdrawn", command.task_id))
        elif isinstance(command, RepeatReceipts):
            for task_id in command.task_ids:
                row = self.ledger.tasks.get(task_id)
                counted = row is not None and row.state in ("accepted", "discarded")
                self.send(command.participant_id, ("receipt" if counted else "withdrawn", task_id))
        elif isinstance(command, SayHello):
            for participant_id in command.participant_ids:
                self.send(participant_id, ("say_hello", None))
        elif isinstance(command, Finish):
            for participant_id in self.agents:
                self.send(participant_id, ("run_finished", None))

    # Broker

    def publish_update(self, update: Update, payload: Parameters) -> None:
        self._deliveries += 1
        delivery = self._deliveries
        self.confirmed[update.update_id] += 1
        self._unacked[delivery] = (update, payload)
        self.after(self.latency(), lambda: self.deliver(delivery))

    def send(self, participant_id: str, message: Any) -> None:
        def arrive() -> None:
            self._queues[participant_id].append(message)
            self.drain(participant_id)

        self.after(self.latency(), arrive)

    def drain(self, participant_id: str) -> None:
        """Deliver a queue's messages to any process of the participant that is online."""
        queue = self._queues[participant_id]
        while queue:
            online = [a for a in self.agents[participant_id] if a.online]
            if not online:
                return
            message = queue.pop(0)
            takers = online if message[0] == "run_finished" else [online[int(self.rng.integers(len(online)))]]
            for agent in takers:
                agent.on_message(message)

    # What must hold

    @property
    def grouped(self) -> bool:
        return arrivals(self.strategy) is not None

    def check(self) -> None:
        """Check the promises on everything that was committed."""
        ledger, core = self.ledger, self.core
        assert core is not None
        assert len(ledger.finishes) == 1
        accepted = [a.update.update_id for a, _ in ledger.accepted]
        assert len(accepted) == len(set(accepted)), "an update was counted twice"
        assert [a.order for a, _ in ledger.accepted] == list(range(1, len(accepted) + 1))
        assert [v.version for v in ledger.versions] == list(range(1, core.version + 1))
        in_versions = [u for v in ledger.versions for u in v.update_ids]
        buffered = core.snapshot().scalars["buffer_ids"]
        if self.grouped:
            orders = [order for v in ledger.versions for order in v.orders or ()]
            assert [accepted[order - 1] for order in orders] == in_versions
            assert sorted(in_versions + buffered) == sorted(accepted)
            assert all(list(v.orders or ()) == sorted(v.orders or ()) for v in ledger.versions)
            assert buffered == [u for u in accepted if u in set(buffered)]
        else:
            assert in_versions == accepted[: len(in_versions)]
            assert in_versions + buffered == accepted
        assert core.accepted == len(accepted)
        settled = set(accepted) | {d.update.update_id for d in ledger.discarded if d.update is not None}
        assert settled == set(self.confirmed), "a confirmed update has no verdict"
        if self.strategy.cohort is None:
            assert self.most_out <= self.settings.concurrency
        if self.settings.max_staleness is not None:
            assert all(a.staleness <= self.settings.max_staleness for a, _ in ledger.accepted)
        assert same(self.replay(), core.parameters), "the recorded order gives a different model"

    def replay(self) -> Parameters:
        """Send the committed updates, in order, through the strategy alone and return the model."""
        parameters = initial_parameters()
        state = self.strategy.init(parameters)
        ends = {} if self.grouped else {v.update_ids[-1]: v for v in self.ledger.versions}
        to_come = list(self.ledger.versions) if self.grouped else []
        groups = {accept.update.update_id: accept.group for accept, _ in self.ledger.accepted}

        def make_versions_before(met: float) -> None:
            """Make the versions that came before version `met` was met. Only arrival groups need this: their versions
            come when a group ends, which may be between two updates."""
            nonlocal state, parameters
            while to_come and to_come[0].version <= met:
                made = to_come.pop(0)
                (group,) = {groups[u] for u in made.update_ids} - {None}
                state = self.strategy.close_group(state, group)
                assert self.strategy.weights(state) == made.weights
                state, parameters = self.strategy.aggregate(state, parameters)

        for accept, payload in self.ledger.accepted:
            u = accept.update
            make_versions_before(u.base_version + accept.staleness)
            state = self.strategy.accumulate(
                state,
                ClientUpdate(
                    u.update_id, u.participant_id, u.base_version, payload, u.num_examples, u.num_steps, u.metrics,
                    accept.client_weight, group=accept.group,
                ),
                accept.staleness,
            )  # fmt: skip
            if u.update_id in ends:
                assert self.strategy.weights(state) == ends[u.update_id].weights
                state, parameters = self.strategy.aggregate(state, parameters)
        make_versions_before(math.inf)
        return parameters


def same(a: Parameters, b: Parameters) -> bool:
    """Return True if the parameters are equal, bit for bit."""
    return list(a) == list(b) and all(a[n].tobytes() == b[n].tobytes() and a[n].dtype == b[n].dtype for n in a)
