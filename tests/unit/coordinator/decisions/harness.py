"""A core with a ledger of dictionaries beside it, for tests that send events and look at commands."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from fedmq.coordinator.decisions.commands import Command, IssueTask
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ClosedTask, ParticipantSeen, Started, TaskDeclined, Tick, UpdateArrived
from fedmq.coordinator.decisions.records import OPEN_STATES, ParticipantRecord, Snapshot, TaskRecord
from fedmq.coordinator.decisions.tasks.names import TaskNames
from fedmq.coordinator.decisions.versions.unfreezing import FrozenParts
from fedmq.coordinator.settings import DownlinkSettings, RunSettings, StopSettings
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.schemas.messages import Hello, TrainingConfig, Update, Uplink, update_id
from fedmq.schemas.parameters import Parameters

C = TypeVar("C")


def parameters(*values: float) -> Parameters:
    return Parameters({"w": np.array(values, np.float32)})


class Bench:
    """The core under test. `t` is the run time; every method returns the commands of its step."""

    def __init__(
        self,
        strategy: Any = None,
        *,
        evaluates: bool = False,
        model: Parameters | None = None,
        training: TrainingConfig | None = None,
        naming: TaskNames | None = None,
        uplink: Uplink | None = None,
        downlink: DownlinkSettings | None = None,
        frozen: FrozenParts | None = None,
        **run,
    ) -> None:
        values = {"run_id": "run", "concurrency": 2, "lease_s": 100.0, "stop": StopSettings(max_updates=1000)}
        self.settings = RunSettings(**(values | run))
        self.strategy = strategy or FedBuff(buffer_size=2)
        self.evaluates = evaluates
        self.model = model or parameters(0.0, 0.0)
        self.training = training or TrainingConfig()
        self.naming = naming
        self.uplink = uplink
        self.downlink = downlink
        self.frozen = frozen
        self.core = Core(
            self.settings,
            self.strategy,
            self.training,
            self.model,
            "abcdef01",
            evaluates=evaluates,
            naming=naming,
            uplink=uplink,
            downlink=downlink,
            frozen=frozen,
        )
        self.t = 0.0
        self.participants: dict[str, Any] = {}
        self.tasks: dict[str, Any] = {}
        self.memories: dict[str, Any] = {}
        self.deliveries = 0

    def step(self, event: Any, t: float | None = None) -> list[Command]:
        self.t = self.t if t is None else t
        return self.core.step(event, self.t)

    def tick(self, t: float) -> list[Command]:
        return self.step(Tick(), t)

    def hello(
        self, *names: str, t: float | None = None, session: str = "s0", holds=(), user: str | None = "", **fields
    ) -> list[Command]:
        commands = []
        for name in names:
            values = {"participant_id": name, "session_id": session, "num_examples": 10, "task_ids": tuple(holds)}
            said = Hello(**(values | fields))
            doubtful = self.core.doubtful(name, (said.last_task, *said.task_ids))
            unissued = tuple(task_id for task_id in doubtful if task_id not in self.tasks)
            commands += self.step(ParticipantSeen(said, user, unissued), t)
        return commands

    def update(self, task: IssueTask, t: float | None = None, tensors: Parameters | None = None, **fields):
        """Send the update of the task's participant; `fields` makes it lie."""
        values: dict[str, Any] = {
            "task_id": task.task_id,
            "run_id": "run",
            "participant_id": task.participant_id,
            "base_version": task.base_version,
            "payload": self.strategy.reply,
            "num_examples": 10,
            "num_steps": 1,
            "train_s": 1.0,
        } | fields
        own_id = update_id(values["run_id"], values["task_id"], values["participant_id"])
        values = {"update_id": own_id} | values
        self.deliveries += 1
        tensors = parameters(1.0, 1.0) if tensors is None else tensors
        event = UpdateArrived(self.deliveries, Update(**values), tensors, self.closed(values["task_id"]))
        return self.step(event, t)

    def closed(self, task_id: str) -> ClosedTask | None:
        row = self.tasks.get(task_id)
        if self.core.holds(task_id) or row is None or row.state in OPEN_STATES:
            return None
        return ClosedTask(row.task_id, row.participant_id, row.state)

    def decline(self, task: IssueTask, reason: Any = "busy", t: float | None = None, **fields) -> list[Command]:
        return self.step(TaskDeclined(task.participant_id, task.task_id, "run", reason, **fields), t)

    def commit(self) -> Any:
        changes = self.core.changes()
        for gone in changes.forgotten:
            self.participants.pop(gone, None)
        self.participants.update(changes.participants)
        self.tasks.update(changes.tasks)
        self.memories.update(changes.memories)
        as_bytes = {p: {n: a.tobytes() for n, a in arrays.items()} for p, arrays in changes.memories.items()}
        return replace(changes, memories=as_bytes)  # bytes can be compared

    def save(self) -> Saved:
        """Commit, and return what a crash would leave."""
        self.commit()
        snapshot = self.core.snapshot()
        scalars = json.loads(json.dumps(snapshot.scalars))
        arrays = {name: a.copy() for name, a in snapshot.arrays.items()}
        for participant_id, memory in self.memories.items():
            arrays |= {f"strategy/memory/{participant_id}/{name}": a.copy() for name, a in memory.items()}
        return Saved(Snapshot(arrays, scalars), dict(self.participants), dict(self.tasks))

    def restore(self, saved: Saved) -> Bench:
        """Go on with a core that knows nothing but what was saved."""
        self.participants, self.tasks = dict(saved.participants), dict(saved.tasks)
        for name, array in saved.snapshot.arrays.items():
            if name.startswith("strategy/memory/"):
                participant_id, tensor = name.removeprefix("strategy/memory/").split("/", 1)
                self.memories.setdefault(participant_id, {})[tensor] = array
        open_tasks = [row for row in saved.tasks.values() if row.state in OPEN_STATES]
        frozen = None if self.frozen is None else FrozenParts.restored(self.frozen.first, saved.snapshot.scalars)
        self.core = Core.restore(
            self.settings, self.strategy, self.training, saved.snapshot, saved.participants.values(), open_tasks,
            evaluates=self.evaluates, naming=self.naming, uplink=self.uplink, downlink=self.downlink,
            frozen=frozen,
        )  # fmt: skip
        return self

    def restart(self) -> list[Command]:
        """Commit, stop and start again; return the first step's commands."""
        self.restore(self.save())
        return self.step(Started())


@dataclass(frozen=True)
class Saved:
    snapshot: Snapshot
    participants: dict[str, ParticipantRecord]
    tasks: dict[str, TaskRecord]


def of(kind: type[C], commands: list[Command]) -> list[C]:
    return [c for c in commands if isinstance(c, kind)]


def only(kind: type[C], commands: list[Command]) -> C:
    (found,) = of(kind, commands)
    return found
