"""Evaluations, limits and goals, and the end of a run."""

from __future__ import annotations

import math

import pytest

from fedmq.coordinator.decisions.commands import CloseTask, Discard, Evaluate, Finish, IssueTask, Withdraw
from fedmq.coordinator.decisions.ending import limit_reached
from fedmq.coordinator.decisions.evaluation import PatienceState, target_reached
from fedmq.coordinator.decisions.events import SUPERSEDED, EvaluationArrived, Started, StopRequested
from fedmq.coordinator.settings import Patience, StopSettings, TargetMetric
from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.schemas.errors import ConfigError
from tests.unit.coordinator.decisions.harness import Bench, of, only


@pytest.mark.parametrize("stop", [{"max_versions": 2}, {"max_updates": 2}])
def test_the_run_ends_at_its_limit_without_waiting_for_stragglers_and_their_tasks_are_withdrawn(stop):
    bench = Bench(FedAsync(), concurrency=3, lease_s=600.0, stop=StopSettings(**stop))
    first, second, straggler = of(IssueTask, bench.hello("a", "b", "c"))
    (again,) = of(IssueTask, bench.update(first, 1.0))  # the run may not end with the next update, so a task goes out
    commands = bench.update(second, 2.0)
    reason = next(iter(stop))
    detail = f"the run is over: {reason}"
    assert of(Withdraw, commands) == [
        Withdraw("c", straggler.task_id, detail),
        Withdraw("a", again.task_id, detail),
    ]
    assert of(IssueTask, commands) == []
    assert only(Finish, commands).reason == reason == bench.core.finished
    assert only(Discard, bench.update(straggler, 3.0)).reason == "run_finished"


def test_a_stop_withdraws_what_is_out_and_finishes_once():
    bench = Bench()
    task = only(IssueTask, bench.hello("a"))
    commands = bench.step(StopRequested())
    detail = "the run is over: requested"
    assert commands == [
        CloseTask(task.task_id, "withdrawn", detail),
        Withdraw("a", task.task_id, detail),
        Finish("requested"),
    ]
    assert bench.step(StopRequested()) == []
    assert bench.hello("b") == []
    assert bench.core.next_wakeup() is None


def test_the_run_ends_at_max_time_without_anybody():
    bench = Bench(stop=StopSettings(max_time_s=5.0))
    bench.step(Started())
    assert bench.core.next_wakeup() == 5.0
    assert bench.tick(5.0) == [Finish("max_time_s")]


def test_a_finished_run_stays_finished_after_a_restart():
    bench = Bench()
    bench.step(StopRequested())
    assert bench.restart() == []
    assert bench.core.finished == "requested"


# Evaluation


def test_the_newest_version_is_evaluated_one_at_a_time_and_not_more_often_than_the_interval():
    bench = Bench(FedAsync(), concurrency=1, evaluates=True, evaluate_interval_s=10.0)
    assert bench.step(Started()) == [Evaluate(0)]
    task = only(IssueTask, bench.hello("a"))
    for _ in range(3):
        commands = bench.update(task, t=bench.t + 1)
        task = only(IssueTask, commands)
        assert of(Evaluate, commands) == []
    assert bench.step(EvaluationArrived(0, {"accuracy": 0.1}), 5.0) == []
    assert bench.core.next_wakeup() == 10.0
    assert bench.tick(10.0) == [Evaluate(3)]
    assert bench.step(EvaluationArrived(3, {}), 30.0) == []


def test_the_newest_version_is_evaluated_each_time_that_so_many_updates_more_were_accepted():
    bench = Bench(
        FedBuff(buffer_size=2), concurrency=1, evaluates=True, evaluate_interval_s=0, evaluate_every_updates=3,
        stop=StopSettings(max_updates=8),
    )  # fmt: skip
    assert bench.step(Started()) == [Evaluate(0)]
    bench.step(EvaluationArrived(0, {"accuracy": 0.1}))
    task, evaluated = only(IssueTask, bench.hello("a")), {}
    for update in range(1, 8):
        commands = bench.update(task)
        task = only(IssueTask, commands)
        for command in of(Evaluate, commands):
            evaluated[update] = command.version
            bench.step(EvaluationArrived(command.version, {"accuracy": 0.1}))
        if update == 4:
            bench.restart()
    assert evaluated == {3: 1, 6: 3}
    assert bench.core.next_wakeup() is None or bench.core.next_wakeup() > bench.t, "no evaluation is due"
    assert of(Evaluate, bench.update(task)) == [Evaluate(4)], "the last version is evaluated too"


def test_a_checkpoint_without_a_number_of_updates_between_evaluations_is_as_before():
    bench = Bench(FedAsync(), concurrency=1, evaluates=True)
    assert set(bench.core.snapshot().scalars["evaluations"]) == {"running", "done", "begun_s", "patience"}


def test_the_final_version_is_evaluated_before_the_finish():
    bench = Bench(
        FedAsync(), concurrency=1, evaluates=True, evaluate_interval_s=100.0, stop=StopSettings(max_versions=1)
    )
    bench.step(Started())
    commands = bench.update(only(IssueTask, bench.hello("a")))
    assert of(Finish, commands) == of(Evaluate, commands) == of(IssueTask, commands) == []
    assert bench.hello("late") == []
    assert bench.step(EvaluationArrived(0, {"accuracy": 0.5})) == [Evaluate(1)]
    assert bench.step(EvaluationArrived(1, {"accuracy": 0.5})) == [Finish("max_versions")]


def test_a_final_evaluation_that_fails_does_not_hold_the_finish():
    bench = Bench(evaluates=True)
    bench.step(Started())
    bench.step(StopRequested())
    assert bench.step(EvaluationArrived(0, detail="out of memory")) == [Finish("requested")]


def test_an_evaluation_that_died_with_the_coordinator_is_done_again():
    bench = Bench(evaluates=True)
    bench.step(Started())
    bench.step(StopRequested())
    assert bench.restart() == [Evaluate(0)]
    assert bench.step(EvaluationArrived(0, {})) == [Finish("requested")]


def test_a_target_ends_the_run():
    stop = StopSettings(target=TargetMetric(name="accuracy", value=0.9))
    bench = Bench(evaluates=True, stop=stop)
    bench.step(Started())
    assert bench.step(EvaluationArrived(0, {"accuracy": 0.9})) == [Finish("target")]


def test_patience_ends_the_run():
    stop = StopSettings(patience=Patience(name="loss", evaluations=2, mode="min", min_delta=0.1))
    bench = Bench(FedAsync(), concurrency=1, evaluates=True, evaluate_interval_s=0.0, stop=stop)
    bench.step(Started())
    task = only(IssueTask, bench.hello("a"))
    for version, loss in enumerate([1.0, 0.8, 0.75, 0.71]):
        assert bench.core.finished is None
        commands = bench.step(EvaluationArrived(version, {"loss": loss}))
        if version < 3:
            assert commands == []
            commands = bench.update(task)
            task = only(IssueTask, commands)
            assert of(Evaluate, commands) == [Evaluate(version + 1)]
        bench.restore(bench.save())
    assert bench.core.finished == "patience"


TARGET = StopSettings(max_versions=9, target=TargetMetric(name="accuracy", value=0.9))
PATIENCE = StopSettings(patience=Patience(name="accuracy", evaluations=1))


@pytest.mark.parametrize("stop", [TARGET, PATIENCE])
def test_a_goal_that_the_first_evaluation_does_not_measure_is_a_mistake(stop):
    bench = Bench(evaluates=True, stop=stop)
    bench.step(Started())
    assert bench.step(EvaluationArrived(0, {"loss": 2.0, "f1": 0.1})) == []
    key = "target" if stop is TARGET else "patience"
    assert bench.core.mistake == (
        f"run.stop.{key}.name: got 'accuracy', which the evaluation does not measure: it measures 'f1', 'loss'. "
        "Name one of these, or let the app measure it"
    )
    assert bench.core.finished is None
    bench.restore(bench.save())
    assert bench.core.mistake is None
    assert bench.step(Started()) == [Evaluate(0)]  # with other goals, or with another app


def test_a_goal_that_was_measured_once_may_be_missing_later_and_a_run_that_stops_has_no_mistake():
    bench = Bench(FedAsync(), concurrency=1, evaluates=True, evaluate_interval_s=0.0, stop=TARGET)
    bench.step(Started())
    bench.step(EvaluationArrived(0, {"accuracy": 0.1}))
    task = only(IssueTask, bench.hello("a"))
    assert of(Evaluate, bench.update(task)) == [Evaluate(1)]
    bench.step(EvaluationArrived(1, {"loss": 0.1}))
    assert bench.core.mistake is None
    bench = Bench(evaluates=True, stop=TARGET)
    bench.step(Started())
    bench.step(StopRequested())
    bench.step(EvaluationArrived(0, {"loss": 0.1}))
    assert bench.core.mistake is None
    assert bench.core.finished == "requested"


def test_a_goal_whose_evaluations_all_fail_is_a_mistake_after_the_third():
    bench = Bench(FedAsync(), concurrency=1, evaluates=True, evaluate_interval_s=0.0, stop=TARGET)
    bench.step(Started())
    task = only(IssueTask, bench.hello("a"))
    for version, detail in enumerate(["no data", f"{SUPERSEDED} by version 2", "no data", "no data"]):
        assert bench.core.mistake is None
        bench.step(EvaluationArrived(version, detail=detail))
        if version < 3:
            task = only(IssueTask, bench.update(task))
    assert bench.core.mistake == "run.stop: no goal is ever measured, because all evaluations fail: no data"


def test_a_goal_whose_metric_is_never_a_number_is_a_mistake_after_the_third_evaluation():
    bench = Bench(FedAsync(), concurrency=1, evaluates=True, evaluate_interval_s=0.0, stop=TARGET)
    bench.step(Started())
    task = only(IssueTask, bench.hello("a"))
    for version in range(3):
        assert bench.core.mistake is None
        bench.step(EvaluationArrived(version, {"accuracy": math.nan}))
        if version < 2:
            task = only(IssueTask, bench.update(task))
    assert bench.core.mistake == "run.stop: no goal is ever measured, because all evaluations give nan for accuracy"


def test_a_goal_without_an_evaluator_is_refused():
    with pytest.raises(ConfigError, match="load_test_data"):
        Bench(stop=StopSettings(target=TargetMetric(name="accuracy", value=0.9)))


# The pure functions


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ({"max_versions": 3}, "max_versions"),
        ({"max_versions": 4}, None),
        ({"max_updates": 30}, "max_updates"),
        ({"max_updates": 31}, None),
        ({"max_time_s": 9.0}, "max_time_s"),
        ({"max_time_s": 9.1}, None),
    ],
)
def test_a_limit_is_reached_at_its_value_and_not_before(stop, expected):
    assert limit_reached(StopSettings(**stop), version=3, accepted=30, now=9.0) == expected


@pytest.mark.parametrize(
    ("mode", "value", "reached"), [("max", 0.9, True), ("max", 0.89, False), ("min", 0.9, True), ("min", 0.91, False)]
)
def test_a_target_is_reached_at_its_value_and_at_better_ones(mode, value, reached):
    assert target_reached(TargetMetric(name="m", value=0.9, mode=mode), {"m": value}) is reached


def test_a_missing_or_nan_metric_reaches_no_target_and_uses_up_patience():
    patience = Patience(name="m", evaluations=2)
    assert not target_reached(TargetMetric(name="m", value=0.9), {})
    assert not target_reached(TargetMetric(name="m", value=0.9), {"m": float("nan")})
    state = PatienceState().after(patience, {"m": float("nan")}).after(patience, {})
    assert state.exhausted(patience)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"), ("val_loss", "min"), ("mean_squared_error", "min"), ("mse", "min"), ("RMSE", "min"),
        ("accuracy", "max"), ("lossless", "max"), ("gloss", "max"), ("auc", "max"),
    ],
)  # fmt: skip
def test_a_goal_of_a_loss_or_an_error_is_low_unless_it_says_otherwise(name, mode):
    assert TargetMetric(name=name, value=1).mode == mode
    assert Patience(name=name, evaluations=1).mode == mode
    assert Patience(name=name, evaluations=1, mode="max").mode == "max"
