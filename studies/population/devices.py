"""One participant in the engine: on or off, idle, training or away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.schemas.codecs.names import BUILT_IN, DOWNLINK
from fedmq.schemas.messages import HeldModel, Hello, TrainingConfig
from fedmq.schemas.methods import METHODS
from fedmq.studies.population.population import DRAWS_A_TASK, Member, Population, Presence, effort
from fedmq.studies.population.recorded_runs import RecordedTask
from fedmq.studies.population.seeding import Streams

ALL_REPLIES = tuple(METHODS)
ALL_CODECS = (*BUILT_IN, "zstd", DOWNLINK)
"""Payloads that every participant of a study can send: its backends know every method."""
TASKS_AHEAD = 8
"""Tasks whose draws are made at once. The draws of a single task would cost nearly as much."""


@dataclass(slots=True, eq=False)
class Work:
    """A task in training."""

    number: int
    task: IssueTask
    left_s: float
    """Seconds of work left at `since`. Only time that the participant is on counts."""
    since: float
    drops: Literal["", "declines", "vanishes"]
    away_s: float
    train_s: float
    """Training time (s) by the participant's own clock."""
    duration_s: float
    """Seconds of the whole task, apart from a dropout and times off."""
    recorded: RecordedTask | None = None
    """The run's own task, if this one went out at the run's own moment (recorded order)."""


class Device:
    """A participant that the engine moves. The engine passes the time in, and gets the times of events to come."""

    __slots__ = (
        "_ahead", "_effort", "_population", "_streams", "away", "held", "member", "next_task", "offers", "presence",
        "session", "work",
    )  # fmt: skip

    def __init__(self, member: Member, population: Population, seed: int, streams: Streams, open_loop: bool) -> None:
        self.member = member
        self.presence = Presence(member, population.availability, seed)
        self.work: Work | None = None
        self.session = 0
        self.held: HeldModel | None = None
        """The hidden state of its last task. It stays on its disk, whatever becomes of the task."""
        self.away = False
        self.offers: bool | None = None if not open_loop else False
        """True if it has come for a task and has not got one yet (open loop); None in a closed loop."""
        self.next_task: RecordedTask | None = None
        """Record of the next task that it gets (recorded order)."""
        self._population = population
        self._streams = streams
        partial = population.partial_work
        self._effort = None if partial is None else effort(seed, member.index, partial)
        self._ahead: list[list[float]] = []
        """Draws of tasks to come; those of the next task stand last."""

    @property
    def willing(self) -> bool:
        """True if it would take a task now."""
        return self.work is None and not self.away and self.presence.on and self.offers is not False

    def hello(self, num_examples: int) -> Hello:
        held = () if self.work is None else (self.work.task.task_id,)
        return Hello.trusted(
            {
                "kind": "hello",
                "participant_id": self.member.participant_id,
                "session_id": f"s{self.session}",
                "num_examples": num_examples,
                "accepting": self.willing,
                "replies": ALL_REPLIES,
                "task_ids": held,
                "last_task": None,
                "software": "",
                "leaving": False,
                "codecs": ALL_CODECS,
                "model": self.held,
            }
        )

    def part_of(self, training: TrainingConfig) -> TrainingConfig:
        """Return what the next task does of the training that it is asked for. Called once for each task."""
        return training if self._effort is None else self._effort.of(training)

    def begin(self, number: int, task: IssueTask, now: float, *, passes: int, payload_bytes: tuple[int, int]) -> Work:
        """Begin a task. Every task costs the same number of draws, used or not."""
        if not self._ahead:
            drawn = self._streams.random(self.member.index, TASKS_AHEAD * DRAWS_A_TASK)
            self._ahead = [drawn[i : i + DRAWS_A_TASK] for i in range(0, len(drawn), DRAWS_A_TASK)][::-1]
        u_duration, u_drops, u_when, u_away = self._ahead.pop()
        if task.downlink is not None and task.downlink.codec == "hidden":
            version = task.base_version if task.downlink.version is None else task.downlink.version
            self.held = HeldModel.trusted({"version": version, "digest": task.downlink.digest})
        population = self._population
        drops: Literal["", "declines", "vanishes"] = ""
        if self.next_task is not None:
            train_s, duration_s = self.next_task.train_s, self.next_task.duration_s
        else:
            train_s, duration_s = self.member.times_s(population.compute, u_duration, passes, payload_bytes)
            drops = self.member.drops(population.dropout, u_drops)
        self.work = Work(
            number=number,
            task=task,
            left_s=duration_s * u_when if drops else duration_s,
            since=now,
            drops=drops,
            away_s=population.dropout.away_s.quantile(u_away) if drops else 0.0,
            train_s=train_s,
            duration_s=duration_s,
            recorded=self.next_task if self.next_task is not None and self.next_task.issued_s == now else None,
        )
        self.next_task = None
        if self.offers:
            self.offers = False
        return self.work

    def ends_at(self) -> float | None:
        """Return the time (s) at which the present work ends; None if it does not end in this turn of being on."""
        if self.work is None or not self.presence.on:
            return None
        if self.work.recorded is not None:
            return self.work.recorded.arrived_s  # since + left_s might be another number by its last bit
        at = self.work.since + self.work.left_s
        return at if at <= self.presence.until else None

    def turn(self) -> None:
        """Go on to the next turn: work pauses, or goes on."""
        at = self.presence.until
        if self.work is not None:
            if self.presence.on:
                self.work.left_s = max(self.work.left_s - (at - self.work.since), 0.0)
            self.work.since = at
        self.presence.turn()
        while self.presence.until <= at and math.isfinite(at):  # turns without a length
            self.presence.turn()
