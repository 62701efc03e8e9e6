"""A strategy that raises, and versions that would not be finite: the core names who is to blame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import POISON, Discard, DropBuffer, IssueTask, NewVersion
from fedmq.coordinator.decisions.events import BufferFailed, Started
from fedmq.coordinator.decisions.failures import Condemned, StrategyFailed, drops_in
from fedmq.coordinator.strategies.fedavg import FedAvg
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.fedcompass import FedCompass
from fedmq.coordinator.strategies.math.server_optimizers import Adam
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.coordinator.strategies.scaffold import Scaffold
from fedmq.schemas.errors import AppError, NotFinite, Overflow
from fedmq.schemas.messages import update_id
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import check_magnitudes

from .harness import Bench, of, only, parameters

HALF = Parameters({"w": np.zeros(2, np.float16)})
"""A model that overflows at 65504."""


@dataclass(frozen=True)
class Raises(FedBuff):
    at: str = ""

    def accumulate(self, state: Any, update: Any, staleness: int) -> Any:
        state.block[:] += 7.0  # half of the work is done
        if self.at == "accumulate":
            raise ZeroDivisionError("1/num_steps")
        return super().accumulate(state, update, staleness)

    def ready(self, state: Any, now: float) -> bool:
        if self.at == "ready":
            raise KeyError("loss")
        return super().ready(state, now)

    def weights(self, state: Any) -> Any:
        return (float("nan"), 1.0) if self.at == "weights" else super().weights(state)

    def aggregate(self, state: Any, parameters: Parameters) -> Any:
        return None if self.at == "aggregate" else super().aggregate(state, parameters)


def _send_all(bench: Bench, tasks: list[IssueTask], tensors: tuple[Parameters, ...]) -> None:
    for task, delta in zip(tasks, tensors, strict=False):
        bench.update(task, tensors=delta)


def sent_until_it_failed(bench: Bench, *tensors: Parameters) -> StrategyFailed:
    tasks = of(IssueTask, bench.hello(*"abcd"[: bench.settings.concurrency]))
    with pytest.raises(StrategyFailed) as caught:
        _send_all(bench, tasks, tensors or (parameters(1.0, 1.0),) * len(tasks))
    return caught.value


@pytest.mark.parametrize(
    ("at", "blamed", "of_buffer"),
    [("accumulate", 1, False), ("ready", 1, True), ("weights", 2, True), ("aggregate", 2, True)],
)
def test_the_failure_names_the_function_and_the_updates_to_blame(at: str, blamed: int, of_buffer: bool) -> None:
    failed = sent_until_it_failed(Bench(Raises(buffer_size=2, at=at)))
    failure = failed.failure
    assert (failure.reason, failure.function, len(failure.update_ids), failure.of_buffer) == (
        "strategy_error", at, blamed, of_buffer,
    )  # fmt: skip
    assert failure.participant_id == ("a" if at == "accumulate" else None)
    assert isinstance(failed, AppError)
    assert f"strategy Raises: {at}() raised" in str(failed)


def test_a_condemned_update_is_discarded_and_its_participant_waits_if_it_is_to_blame() -> None:
    assert {"strategy_error", "overflow"} <= POISON, "a person should see them"
    for fault in (True, False):
        bench = Bench(concurrency=1, decline_backoff_s=30.0)
        task = only(IssueTask, bench.hello("a"))
        bench.core.condemn({update_id("run", task.task_id, "a"): Condemned("strategy_error", "x.py:3", fault)})
        commands = bench.update(task)
        assert (only(Discard, commands).reason, only(Discard, commands).detail) == ("strategy_error", "x.py:3")
        assert len(of(IssueTask, commands)) == (0 if fault else 1), "it is asked again at once unless it is to blame"
        assert bench.core.discarded == {"strategy_error": 1}


def test_a_version_that_would_not_be_finite_is_not_made() -> None:
    bench = Bench(FedBuff(buffer_size=2, server_learning_rate=2.0), model=HALF)
    big = Parameters({"w": np.full(2, 60_000, np.float16)})
    failed = sent_until_it_failed(bench, big, big)
    assert (failed.failure.reason, failed.failure.of_buffer) == ("overflow", True)
    assert bench.core.version == 0
    assert np.isfinite(bench.core.parameters["w"]).all()


def test_a_state_that_is_not_finite_is_found_before_it_is_committed_and_then_its_update() -> None:
    """Adam's second moment is infinite, and the step from it is 0: the model alone would not tell."""
    strategy = FedBuff(buffer_size=1, server_optimizer=Adam())
    bench = Bench(strategy, concurrency=1)
    task = only(IssueTask, bench.hello("a"))
    before = bench.save()
    bench.update(task, tensors=parameters(1e25, 1.0))
    assert np.isfinite(bench.core.parameters["w"]).all()
    with pytest.raises(StrategyFailed) as caught:
        bench.core.check_finite()
    assert (caught.value.failure.reason, caught.value.failure.update_ids) == ("overflow", ())
    bench.restore(before)
    bench.core.condemn({}, careful=True)
    with pytest.raises(StrategyFailed) as caught:
        bench.update(task, tensors=parameters(1e25, 1.0))
    assert len(caught.value.failure.update_ids) == 1


def test_a_lost_buffer_leaves_the_model_and_is_counted() -> None:
    bench = Bench(FedBuff(buffer_size=3), concurrency=3)
    tasks = of(IssueTask, bench.hello("a", "b", "c"))
    for task in tasks[:2]:
        bench.update(task)
    bench.restore(bench.save())
    commands = bench.step(BufferFailed("overflow", "too large"))
    assert len(only(DropBuffer, commands).update_ids) == 2
    assert bench.core.discarded == {"overflow": 2}
    saved = bench.save()
    assert [(d.accepted, d.version, d.count) for d in drops_in(saved.snapshot.scalars)] == [(2, 0, 2)]
    bench.restore(saved)
    issued = of(IssueTask, bench.step(Started())) + of(IssueTask, bench.hello("a", "b"))
    made = bench.update(tasks[2]) + [c for task in issued for c in bench.update(task, tensors=parameters(4.0, 4.0))]
    assert only(NewVersion, made).weights == (1 / 3, 1 / 3, 1 / 3)
    assert bench.core.parameters["w"].tolist() == pytest.approx([3.0, 3.0])
    assert bench.core.accepted == 5


def test_nothing_happens_to_a_buffer_that_is_empty() -> None:
    bench = Bench()
    bench.hello("a")
    assert of(DropBuffer, bench.step(BufferFailed("overflow", ""))) == []
    assert drops_in(bench.save().snapshot.scalars) == []


def test_a_round_asks_its_participants_again_after_its_buffer_was_lost() -> None:
    bench = Bench(FedAvg(cohort_size=3, min_updates=3), lease_s=1000.0)
    tasks = of(IssueTask, bench.hello("a", "b", "c"))
    for task in tasks[:2]:
        bench.update(task)
    bench.hello("a", "b")
    again = of(IssueTask, bench.step(BufferFailed("overflow", "")) + bench.tick(1.0))
    assert {task.participant_id for task in again} == {"a", "b"}
    made = [c for task in [tasks[2], *again] for c in bench.update(task)]
    assert only(NewVersion, made).version == 1


def test_the_control_variates_of_a_lost_buffer_stay_because_participants_have_moved_theirs() -> None:
    strategy = Scaffold(num_participants=2, buffer_size=3)
    state = strategy.init(parameters(0.0, 0.0))
    change = Parameters({"w": np.array([2.0, 4.0], np.float32)})
    state = strategy.accumulate(
        state, ClientUpdate("u", "a", 0, parameters(1.0, 1.0), 10, beside={"control": change}), 0
    )
    state.drop(None)
    assert state.count == 0
    assert state.sums["w"].tolist() == [0.0, 0.0]
    assert state.beside(parameters(0.0, 0.0))["control"]["w"].tolist() == [1.0, 2.0]


def test_a_lost_arrival_group_leaves_the_other_groups_alone() -> None:
    bench = Bench(FedCompass(num_participants=3, min_steps=1, max_steps=10), concurrency=3)
    tasks = of(IssueTask, bench.hello("a", "b", "c"))
    first = bench.update(tasks[0], t=1.0)
    assert of(NewVersion, first), "a participant of unknown speed is a group of its own"
    tasks = [*tasks[1:], *of(IssueTask, first)]
    bench.restore(bench.save())
    assert of(DropBuffer, bench.step(BufferFailed("overflow", "", group=1))) == [], "it has made its version"
    assert of(NewVersion, bench.update(tasks[0], t=2.0))


def test_a_sum_of_large_updates_is_refused_before_it_is_added() -> None:
    for dtype in (np.float32, np.float64):
        check_magnitudes(Parameters({"w": np.array([1e15, -1e15], dtype)}))
        for value in (1.1e15, -3.4e38):
            with pytest.raises(Overflow, match="the limit is 1e\\+15"):
                check_magnitudes(Parameters({"w": np.array([0.0, value], dtype)}))
        with pytest.raises(NotFinite):
            check_magnitudes(Parameters({"w": np.array([0.0, np.nan], dtype)}))


@pytest.mark.parametrize("value", [1.1e15, -1e20, 3e38])
def test_bfloat16_has_the_same_limit(value: float) -> None:
    check_magnitudes(Parameters({"w": np.array([1.0, -9e14], ml_dtypes.bfloat16)}))
    with pytest.raises(Overflow):
        check_magnitudes(Parameters({"w": np.array([1.0, value], ml_dtypes.bfloat16)}))
