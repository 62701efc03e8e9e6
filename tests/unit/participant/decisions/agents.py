"""Agents in the state in which a test begins, and views of their commands."""

import random
from typing import Any

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.agent import Agent
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.messages import Notice, Receipt, Task, TrainingConfig, update_id

ME = "sensor-1"
SETTINGS = ParticipantSettings(hello_interval_s=15.0, retry_after_s=60.0)
LATE = 100.0
"""Time long after the first connection: nothing is backlog any more, and no periodic hello is due at this moment."""


def make_task(number: int = 1, run: str = "run-1", **changes: Any) -> Task:
    values: dict[str, Any] = {
        "task_id": f"{run}-{number}", "run_id": run, "participant_id": ME, "base_version": 3, "reply": "delta",
        "training": TrainingConfig(), "lease_s": 100.0,
    }  # fmt: skip
    return Task(**values | changes)


def uid(task: Task) -> str:
    return update_id(task.run_id, task.task_id, ME)


def make_agent(num_examples: int | None = 7, restored: ev.Restored | None = None) -> Agent:
    return Agent(ME, "session-1", SETTINGS, num_examples=num_examples, rng=random.Random(0), restored=restored)


def connected(**options: Any) -> Agent:
    """An agent that has said hello and whose next periodic hello is after LATE."""
    agent = make_agent(**options)
    agent.step(ev.Started(), 0.0)
    agent.step(ev.Connected(), 0.0)
    agent.step(ev.Tick(), LATE - 1)
    return agent


def training(task: Task) -> Agent:
    agent = connected()
    agent.step(ev.TaskReceived(task, 1), LATE)
    agent.step(ev.TaskSpooled(task.task_id, 1), LATE)
    return agent


def publishing(task: Task) -> Agent:
    agent = training(task)
    agent.step(ev.TrainingFinished(task.task_id, 7), LATE)
    agent.step(ev.OutboxWritten(task.task_id), LATE)
    return agent


def receipt(task: Task) -> Receipt:
    return Receipt(
        update_id=uid(task), task_id=task.task_id, run_id=task.run_id, participant_id=ME, verdict="accepted", version=4
    )


def notice(event: Any, task: Task) -> Notice:
    return Notice(run_id=task.run_id, participant_id=ME, event=event, task_id=task.task_id)


def only(kind: type, commands: list[ev.Command]) -> Any:
    found = [command for command in commands if isinstance(command, kind)]
    assert len(found) == 1, commands
    return found[0]


def kinds(commands: list[ev.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]
