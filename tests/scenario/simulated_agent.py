"""A participant of the simulator: its behaviour, and its process with a disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.decisions.events import ParticipantSeen, TaskDeclined
from fedmq.schemas.messages import Hello, Update, update_id
from fedmq.schemas.parameters import Parameters

if TYPE_CHECKING:
    from tests.scenario.simulator import Simulation


@dataclass(frozen=True)
class Plan:
    """The behaviour of one participant. Probabilities are per task."""

    participant_id: str
    duration_s: Callable[[np.random.Generator], float] = lambda rng: float(rng.uniform(0.5, 5))
    arrives_s: float = 0.0
    vanishes: float = 0.0
    away_s: tuple[float, float] = (1.0, 100.0)
    forgets: float = 0.0
    """Share of the absences after which it comes back as a new process with an empty disk."""
    restarts: float = 0.0
    """Share of the absences after which it comes back as a new process with its old disk."""
    declines: float = 0.0
    sends_twice: float = 0.0
    clones: int = 1
    """Number of processes under this id."""
    num_examples: int = 10
    user: str | None = ""
    """The broker's user that it has."""
    silent: bool = False
    """True if it takes tasks and says nothing of them."""
    leaves_after_s: float | None = None
    """Time from its arrival to its end, if it does not stay."""


def train(parameters: Parameters, target: float, seed: int, reply: str) -> Parameters:
    """Take one noisy step towards the participant's own optimum, `target`."""
    noise = np.random.default_rng(seed)
    out = {}
    for name in parameters.averaged():
        x = parameters[name]
        step = (np.float32(0.3) * (np.float32(target) - x) + 0.01 * noise.standard_normal(x.shape)).astype(x.dtype)
        out[name] = step if reply == "delta" else x + step
    return Parameters(out)


class Agent:
    """One participant process with its disk."""

    def __init__(self, sim: Simulation, plan: Plan, clone: int) -> None:
        self.sim, self.plan, self.clone = sim, plan, clone
        self.rng = np.random.default_rng([sim.seed, hash_of(plan.participant_id), clone])
        self.session = 0
        self.online = False
        self.training: str | None = None
        self.spool: dict[str, tuple[IssueTask, Parameters]] = {}
        self.outbox: dict[str, tuple[Update, Parameters]] = {}
        self.control_free_s = 0.0
        self.done = False

    @property
    def id(self) -> str:
        return self.plan.participant_id

    def connect(self) -> None:
        if self.done:
            return
        self.online = True
        self.hello()
        if self.plan.leaves_after_s is not None:
            self.sim.after(self.plan.leaves_after_s, self.leave)
        for update, payload in list(self.outbox.values()):
            self.sim.publish_update(update, payload)
        if self.training is None and self.spool:
            self.begin(next(iter(self.spool)))
        self.sim.drain(self.id)

    def hello(self) -> None:
        held = (*self.spool, *self.outbox)
        self.control(
            ParticipantSeen(
                Hello(
                    participant_id=self.id,
                    session_id=f"s{self.clone}-{self.session}",
                    num_examples=self.plan.num_examples,
                    accepting=not self.spool,
                    task_ids=held[:64],
                ),
                self.plan.user,
            )
        )

    def keep_saying_hello(self) -> None:
        if self.online:
            self.hello()
        if not self.done:
            self.sim.after(self.sim.faults.hello_interval_s, self.keep_saying_hello)

    def control(self, event: ParticipantSeen | TaskDeclined) -> None:
        """Send a control message; the messages of one publisher stay in order."""
        if self.online:
            at = max(self.sim.t + self.sim.latency(), self.control_free_s)
            self.control_free_s = at
            self.sim.at(at, lambda: self.sim.control(event))

    def on_message(self, message: Any) -> None:
        kind, body = message
        if kind == "task":
            self.on_task(*body)
        elif kind == "receipt":
            self.outbox.pop(body, None)
        elif kind == "withdrawn":
            self.outbox.pop(body, None)
            if self.spool.pop(body, None):
                self.training = None if self.training == body else self.training
                self.hello()
        elif kind == "say_hello":
            self.hello()
        elif kind == "run_finished":
            self.online, self.done = False, True

    def on_task(self, task: IssueTask, parameters: Parameters) -> None:
        if self.plan.silent:
            return
        if task.task_id in self.spool or task.task_id in self.outbox:
            return
        if self.spool or self.rng.random() < self.plan.declines:
            reason: Any = "busy" if self.spool else str(self.rng.choice(["not_idle", "trainer_error"]))
            self.control(TaskDeclined(self.id, task.task_id, self.sim.settings.run_id, reason, retry_after_s=None))
            return
        self.spool[task.task_id] = (task, parameters)
        self.begin(task.task_id)
        self.hello()

    def begin(self, task_id: str) -> None:
        self.training = task_id
        duration = self.plan.duration_s(self.rng)
        self.sim.after(duration, lambda: self.trained(task_id))
        if self.rng.random() < self.plan.vanishes:
            self.sim.after(float(self.rng.uniform(0, duration * 1.2)), self.vanish)

    def trained(self, task_id: str) -> None:
        if self.training != task_id:
            return
        self.training = None
        task, parameters = self.spool.pop(task_id)
        payload = train(parameters, float(hash_of(self.id) % 7), task.training.seed, self.sim.strategy.reply)
        update = Update(
            update_id=update_id(self.sim.settings.run_id, task_id, self.id),
            task_id=task_id,
            run_id=self.sim.settings.run_id,
            participant_id=self.id,
            base_version=task.base_version,
            payload=self.sim.strategy.reply,
            num_examples=self.plan.num_examples,
            num_steps=1,
            metrics={"loss": float(np.abs(payload["w"]).sum())},
            train_s=1.0,
        )
        self.outbox[task_id] = (update, payload)
        if self.online:
            self.sim.publish_update(update, payload)
            if self.rng.random() < self.plan.sends_twice:
                self.sim.publish_update(update, payload)
            self.hello()

    def leave(self) -> None:
        self.online, self.done = False, True

    def vanish(self) -> None:
        if not self.online:
            return
        self.online = False
        fate = self.rng.random()
        if fate < self.plan.forgets:
            self.session += 1
            self.training = None
            self.spool.clear()
            self.outbox.clear()
        elif fate < self.plan.forgets + self.plan.restarts:
            self.session += 1
            self.training = None
        self.sim.after(float(self.rng.uniform(*self.plan.away_s)), self.connect)


def hash_of(text: str) -> int:
    """Hash a text to the same number in every process, unlike hash()."""
    return int.from_bytes(text.encode()[-6:], "little")
