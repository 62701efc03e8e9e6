"""A device that asks for the model over and over, by declines or by new sessions, gets it at a bounded rate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Command, IssueTask
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import Event, ParticipantSeen, TaskDeclined, Tick
from fedmq.coordinator.decisions.participants.back_offs import FREE_DECLINES
from fedmq.coordinator.decisions.task_desk import FREE_REPEATS
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.messages import Hello, TrainingConfig
from fedmq.schemas.parameters import Parameters

STEPS, STEP_S = 1000, 0.01


def core_of_one() -> Core:
    return Core(
        RunSettings(run_id="r", stop=StopSettings(max_versions=1)), FedBuff(buffer_size=1), TrainingConfig(),
        Parameters({"w": np.zeros(3, np.float32)}), "u",
    )  # fmt: skip


def hello(session: int = 0) -> ParticipantSeen:
    return ParticipantSeen(Hello(participant_id="m", session_id=f"s{session}", num_examples=1, accepting=True), "m")


def declines_at_once(step: int, open_task: str | None) -> list[Event]:
    return [Tick()] if open_task is None else [TaskDeclined("m", open_task, "r", "busy", "", 0.0)]


def declines_and_accepts(step: int, open_task: str | None) -> list[Event]:
    return [*declines_at_once(step, open_task), hello()]


def begins_sessions(step: int, open_task: str | None) -> list[Event]:
    return [hello(step)]


@pytest.mark.parametrize(
    ("act", "most"),
    [
        (declines_at_once, 1 + FREE_DECLINES + 11),
        (declines_and_accepts, 1 + FREE_DECLINES + 11),
        (begins_sessions, 1 + FREE_REPEATS + 5),
    ],
)
def test_ten_seconds_of_asking_bring_few_tasks(act: Callable[[int, str | None], list[Event]], most: int) -> None:
    core = core_of_one()
    commands: list[Command] = core.step(hello(), 0.0)
    issued = 0
    for step in range(1, STEPS):
        tasks = [command.task_id for command in commands if isinstance(command, IssueTask)]
        issued += len(tasks)
        commands = []
        for event in act(step, tasks[0] if tasks else None):
            commands += core.step(event, step * STEP_S)
    assert most - 3 <= issued <= most


@pytest.mark.parametrize("reason", ["busy", "frozen_lost", "model_differs", "payload_lost"])
def test_who_goes_on_declining_waits_up_to_a_minute_for_the_next_model(reason: str) -> None:
    """Twenty for nothing, then twenty a second apart, twenty two seconds apart, and so on."""
    core = core_of_one()
    now, commands, issued_at = 0.0, core.step(hello(), 0.0), []
    while now < 3600.0:
        tasks = [command.task_id for command in commands if isinstance(command, IssueTask)]
        issued_at += [now] * len(tasks)
        if not tasks:
            now += 0.5
        commands = core.step(TaskDeclined("m", tasks[0], "r", reason, "", 0.0) if tasks else hello(), now)
    gaps = np.diff(issued_at)
    assert [gaps[20 * index + 5] for index in range(8)] == [0, 1, 2, 4, 8, 16, 32, 60]
    assert np.count_nonzero(gaps < 60) < 145
    assert gaps[145:].tolist() == [60.0] * len(gaps[145:])


def test_a_participant_that_lost_its_task_once_more_gets_it_at_a_later_hello() -> None:
    """Both processes were started again and again within a moment, as a crash loop does it."""
    core = core_of_one()
    core.step(hello(), 0.0)
    for session in range(1, FREE_REPEATS + 1):
        assert tasks_in(core.step(hello(session), session * STEP_S)) == 1
    assert tasks_in(core.step(hello(FREE_REPEATS + 1), 0.5)) == 0
    assert tasks_in(core.step(hello(FREE_REPEATS + 1), 10.0)) == 1


def tasks_in(commands: list[Command]) -> int:
    return sum(isinstance(command, IssueTask) for command in commands)
