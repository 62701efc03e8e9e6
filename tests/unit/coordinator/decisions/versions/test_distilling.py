"""Versions that are distilled (decisions.versions.distilling): the question, the answers, and what waits for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, Distil, Evaluate, Finish, IssueTask, NewVersion
from fedmq.coordinator.decisions.events import (
    BufferFailed,
    DistilFailed,
    Distilled,
    EvaluationArrived,
    Started,
    StopRequested,
)
from fedmq.coordinator.decisions.versions.distilling import MOST_REASON_CHARS, distil_seed
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.feddf import FedDf
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench, of, only, parameters


def asked(bench: Bench, *, t: float = 1.0) -> tuple[Distil, list[Any]]:
    """Fill the buffer of two, and return the question with the commands of its step."""
    first, second = of(IssueTask, bench.hello("a", "b", t=0.0))
    commands = bench.update(first, t)
    commands = bench.update(second, t) if not of(Distil, commands) else commands
    return only(Distil, commands), commands


def begun(**settings: Any) -> Bench:
    strategy = settings.pop("strategy", FedDf(buffer_size=2))
    bench = Bench(strategy, **settings)
    bench.step(Started(), 0.0)
    return bench


def w(bench: Bench) -> list[float]:
    return bench.core.parameters["w"].tolist()


def test_a_full_buffer_asks_and_its_version_is_the_answer() -> None:
    bench = begun()
    question, commands = asked(bench)
    assert (question.version, question.seed) == (1, distil_seed(0, 1))
    assert question.seed != distil_seed(0, 2) != distil_seed(1, 2)
    assert question.ensemble.start["w"].tolist() == [1.0, 1.0]
    assert len(of(Accept, commands)) == 1
    assert not of(NewVersion, commands)
    assert not of(IssueTask, commands)
    assert bench.core.distilling
    assert bench.core.version == 0
    commands = bench.step(Distilled(1, parameters(5.0, 7.0)), 2.0)
    made = only(NewVersion, commands)
    assert (made.version, made.weights, made.plain, made.by_timeout) == (1, (0.5, 0.5), "", False)
    assert w(bench) == [5.0, 7.0]
    assert not bench.core.distilling
    # the task that waited goes out with the new version
    assert [task.base_version for task in of(IssueTask, commands)] == [1]


def test_an_answer_gives_the_commands_that_fedbuff_gives_at_once() -> None:
    one, other = begun(), begun(strategy=FedBuff(buffer_size=2))
    question, commands = asked(one)
    commands += one.step(DistilFailed(1, "why not"), 1.0)
    first, second = of(IssueTask, other.hello("a", "b", t=0.0))
    plain = other.update(first, 1.0)[:0] + other.update(second, 1.0)
    kept = [command for command in commands if command is not question]
    assert [type(command) for command in kept] == [type(command) for command in plain]
    assert of(IssueTask, kept) == of(IssueTask, plain)
    assert w(one) == w(other)


WRONG = [
    (Parameters({"w": np.array([np.nan, 0], np.float32)}), "1 of its 2 values are NaN or infinite"),
    (Parameters({"w": np.array([1e16, 0], np.float32)}), "a value of size 1e+16, the limit is 1e+15"),
    (Parameters({"w": np.zeros(3, np.float32)}), "tensors differ from the model's"),
    (Parameters({"w": np.zeros(2, np.float64)}), "tensors differ from the model's"),
    (Parameters({"v": np.zeros(2, np.float32)}), "tensors differ from the model's"),
    (Parameters({}), "tensors differ from the model's"),
    ({"w": [1.0, 2.0]}, "it gave dict, expected tensors by name"),
]


@pytest.mark.parametrize(("claim", "why"), WRONG)
def test_an_answer_that_is_no_version_makes_the_plain_mean_and_says_why(claim: Any, why: str) -> None:
    bench = begun()
    asked(bench)
    made = only(NewVersion, bench.step(Distilled(1, claim)))
    assert why in (made.plain or "")
    assert w(bench) == [1.0, 1.0]


def test_a_failure_makes_the_plain_mean_with_a_reason_of_bounded_length() -> None:
    bench = begun()
    asked(bench)
    made = only(NewVersion, bench.step(DistilFailed(1, "the child\n" + 10_000 * "x")))
    assert made.plain is not None
    assert made.plain.startswith("the child xxx")
    assert len(made.plain) == MOST_REASON_CHARS
    assert w(bench) == [1.0, 1.0]


def test_an_answer_to_another_question_is_ignored() -> None:
    bench = begun()
    assert bench.step(Distilled(1, parameters(5.0, 7.0))) == []
    asked(bench)
    assert of(NewVersion, bench.step(Distilled(2, parameters(5.0, 7.0)))) == []
    assert of(NewVersion, bench.step(DistilFailed(0, "late"))) == []
    bench.step(Distilled(1, parameters(5.0, 7.0)))
    assert bench.step(DistilFailed(1, "a second answer")) == []
    assert (w(bench), bench.core.version) == ([5.0, 7.0], 1)


def test_without_an_answer_in_time_the_version_is_the_plain_mean() -> None:
    bench = begun(strategy=FedDf(buffer_size=2, distil_timeout_s=30.0), lease_s=1000.0)
    asked(bench, t=1.0)
    assert bench.core.next_wakeup() == 31.0
    assert not of(NewVersion, bench.tick(30.9))
    made = only(NewVersion, bench.tick(31.0))
    assert made.plain == "there was no answer within distil_timeout_s = 30"
    assert bench.step(Distilled(1, parameters(5.0, 7.0)), 32.0) == []
    assert w(bench) == [1.0, 1.0]


def test_hellos_and_leases_go_on_while_a_version_is_distilled_and_no_task_goes_out() -> None:
    bench = begun(concurrency=3, lease_s=10.0)
    tasks = of(IssueTask, bench.hello("a", "b", "c", t=0.0))
    bench.update(tasks[0], 1.0)
    only(Distil, bench.update(tasks[1], 1.0))
    assert not of(IssueTask, bench.hello("d", t=2.0))
    assert bench.core.next_wakeup() == 10.0  # the lease of the third
    bench.tick(10.0)
    assert bench.core.tasks_out == 1  # the one that went out after the first update
    assert bench.core.distilling
    issued = of(IssueTask, bench.step(Distilled(1, parameters(5.0, 7.0)), 10.5))
    assert [task.base_version for task in issued] == [1, 1]
    # the lapsed task's update is welcome all the same, and is as stale as without a distillation
    assert only(Accept, bench.update(tasks[2], 12.0)).staleness == 1


def test_a_restored_core_asks_again_with_the_same_seed_and_the_same_models() -> None:
    bench = begun()
    question, _ = asked(bench)
    again = only(Distil, bench.restart())
    assert (again.version, again.seed) == (question.version, question.seed)
    assert again.ensemble.weights == question.ensemble.weights
    mine, theirs = ([one.start, *one.models] for one in (again.ensemble, question.ensemble))
    assert [one["w"].tobytes() for one in mine] == [one["w"].tobytes() for one in theirs]
    bench.step(Distilled(1, parameters(5.0, 7.0)))
    assert (w(bench), bench.core.version) == ([5.0, 7.0], 1)
    after = bench.restart()
    assert not of(Distil, after)
    assert w(bench) == [5.0, 7.0]


def test_limits_and_evaluations_wait_for_the_version() -> None:
    bench = begun(stop=StopSettings(max_updates=2), evaluates=True)
    bench.step(EvaluationArrived(0, {"accuracy": 0.1}), 0.5)
    _, commands = asked(bench)
    assert not of(Evaluate, commands)
    assert not bench.core.stopping
    commands = bench.step(Distilled(1, parameters(5.0, 7.0)), 2.0)
    assert only(Evaluate, commands).version == 1
    assert bench.core.stopping
    assert only(Finish, bench.step(EvaluationArrived(1, {"accuracy": 0.5}), 3.0)).reason == "max_updates"


def test_a_run_that_is_stopped_meanwhile_ends_with_the_plain_mean() -> None:
    bench = begun()
    asked(bench)
    commands = bench.step(StopRequested())
    assert only(NewVersion, commands).plain == "the run stopped: requested"
    assert only(Finish, commands)
    assert bench.step(Distilled(1, parameters(5.0, 7.0))) == []
    assert w(bench) == [1.0, 1.0]


def test_a_version_by_the_buffers_timeout_is_distilled_too() -> None:
    bench = begun(strategy=FedDf(buffer_size=3, buffer_timeout_s=10.0), lease_s=100.0)
    (task, _) = of(IssueTask, bench.hello("a", "b", t=0.0))
    bench.update(task, 1.0)
    question = only(Distil, bench.tick(11.0))
    assert question.ensemble.weights == (1.0,)
    again = of(Distil, bench.restart())
    assert [one.seed for one in again] == [question.seed]
    made = only(NewVersion, bench.step(Distilled(1, parameters(5.0, 7.0)), 12.0))
    assert (made.by_timeout, made.plain) == (True, "")


def test_a_buffer_without_a_model_for_the_ensemble_asks_nobody() -> None:
    bench = begun(strategy=FedDf(buffer_size=1, former_versions=0))
    one, other = of(IssueTask, bench.hello("a", "b", t=0.0))
    assert of(Distil, bench.update(one, 1.0))
    bench.step(Distilled(1, parameters(5.0, 7.0)))
    made = only(NewVersion, bench.update(other, 2.0))
    assert made.plain == "no model of its updates can be in an ensemble"


def test_a_version_that_is_not_finite_is_a_failure_of_its_buffer_and_asks_nobody_again() -> None:
    bench = begun()
    first, second = of(IssueTask, bench.hello("a", "b", t=0.0))
    bench.update(first, 1.0)
    bench.update(second, 1.0)
    bench.restore(bench.save())
    commands = bench.step(BufferFailed("overflow", "its version is not finite"))
    assert not of(Distil, commands)
    assert not bench.core.distilling
    assert bench.core.discarded == {"overflow": 2}
