"""Steps by measured speed: every task is meant to last equally long."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.settings import StepAssignment
from fedmq.schemas.messages import TrainingConfig
from tests.unit.coordinator.decisions.harness import Bench, of, only

BY_SPEED = StepAssignment(target_s=10.0, min_steps=2, max_steps=50)
MANY_STEPS = TrainingConfig(epochs=50, batch_size=10)
"""Ten examples are a step: only `max_steps` limits a task."""


@pytest.mark.parametrize(
    ("step_s", "steps"), [(None, 2), (1.0, 10), (0.3, 33), (0.2, 50), (0.01, 50), (0.0, 50), (7.0, 2), (1e9, 2)]
)
def test_as_many_steps_as_fit_within_the_bounds(step_s: float | None, steps: int) -> None:
    assert BY_SPEED.steps(step_s) == steps


def test_a_participant_is_asked_by_its_own_speed_and_news_count_for_a_half() -> None:
    bench = Bench(concurrency=2, steps=BY_SPEED, training=MANY_STEPS)
    fast, slow = of(IssueTask, bench.hello("fast", "slow"))
    assert (fast.training.max_steps, slow.training.max_steps) == (2, 2)
    fast = only(IssueTask, bench.update(fast, t=1.0, train_s=1.0, num_steps=2))
    slow = only(IssueTask, bench.update(slow, t=8.0, train_s=8.0, num_steps=2))
    assert (fast.training.max_steps, slow.training.max_steps) == (20, 2)
    fast = only(IssueTask, bench.update(fast, t=31.0, train_s=30.0, num_steps=20))
    assert fast.training.max_steps == 10  # (0.5 + 1.5)/2 seconds a step


def test_the_speed_survives_a_restart() -> None:
    bench = Bench(concurrency=1, steps=BY_SPEED, training=MANY_STEPS)
    task = only(IssueTask, bench.hello("a"))
    task = only(IssueTask, bench.update(task, t=1.0, train_s=1.0, num_steps=2))
    bench.commit()
    assert json.loads(json.dumps(asdict(bench.participants["a"])))["step_s"] == 0.5
    bench.restart()
    assert only(IssueTask, bench.update(task, t=11.0, train_s=10.0, num_steps=20)).training.max_steps == 20


def test_an_update_without_steps_says_nothing_of_the_speed() -> None:
    bench = Bench(concurrency=1, steps=BY_SPEED)
    task = only(IssueTask, bench.hello("a"))
    assert only(IssueTask, bench.update(task, t=1.0, num_steps=0)).training.max_steps == 2


def test_the_trainings_own_limit_stays_and_without_an_assignment_nothing_changes() -> None:
    assert only(IssueTask, Bench(concurrency=1).hello("a")).training.max_steps is None
    bench = Bench(concurrency=1, steps=BY_SPEED, training=TrainingConfig(max_steps=15))
    task = only(IssueTask, bench.hello("a"))
    assert only(IssueTask, bench.update(task, t=1.0, train_s=0.1, num_steps=2)).training.max_steps == 15


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="min_steps = 9 is more than max_steps = 3"):
        StepAssignment(target_s=1.0, min_steps=9, max_steps=3)
