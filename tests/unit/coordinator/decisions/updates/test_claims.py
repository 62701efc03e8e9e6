"""The bounds on what a participant says about its own work."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.decisions.commands import Accept, IssueTask
from fedmq.coordinator.decisions.events import TimeStoodStill
from fedmq.coordinator.decisions.updates.claims import MOST_METRIC, Elapsed, bounded, examples_between, most_steps
from fedmq.coordinator.settings import StepAssignment
from fedmq.coordinator.strategies.math.client_weights import ClientWeights
from fedmq.schemas.messages import TrainingConfig, Update, update_id
from tests.unit.coordinator.decisions.harness import Bench, of, only

LARGEST = 2**53


def claim(**fields) -> Update:
    values = {
        "task_id": "t-1", "run_id": "run", "participant_id": "a", "base_version": 0, "payload": "delta",
        "num_examples": 100, "num_steps": 8, "train_s": 3.0, "update_id": update_id("run", "t-1", "a"),
    }  # fmt: skip
    return Update(**(values | fields))


def within(update: Update, **bounds):
    limits = {
        "most_examples": 1000, "last_examples": None, "epochs": 2, "batch_size": 32, "max_steps": None,
        "elapsed_s": 5.0,
    }  # fmt: skip
    return bounded(update, **(limits | bounds))


def test_an_honest_update_is_returned_itself() -> None:
    update = claim(metrics={"loss": 0.5})
    assert within(update) == (update, ())
    assert within(update)[0] is update


@pytest.mark.parametrize(
    ("claimed", "kept"), [(0, 1), (1, 1), (8, 8), (9, 8), (LARGEST, 8)], ids=["0", "1", "asked", "one more", "largest"]
)
def test_steps_are_those_that_the_task_asked_for_and_one_at_least(claimed: int, kept: int) -> None:
    update, names = within(claim(num_steps=claimed))
    assert update.num_steps == kept, "2 epochs over 100 examples in batches of 32 are 8 steps"
    assert names == (() if claimed == kept else ("num_steps",))


def test_a_tasks_limit_of_steps_counts_too() -> None:
    assert [most_steps(100, 2, 32, limit) for limit in (None, 3, 100)] == [8, 3, 8]
    assert most_steps(0, 2, 32, None) == 2


@pytest.mark.parametrize(("claimed", "kept"), [(0.0, 0.0), (5.0, 5.0), (5.004, 5.004), (5.1, 5.0), (1.7e308, 5.0)])
def test_a_training_takes_no_longer_than_its_task_is_old(claimed: float, kept: float) -> None:
    assert within(claim(train_s=claimed))[0].train_s == kept


def test_examples_are_within_the_limit_and_change_slowly_once_they_count() -> None:
    assert [examples_between(n, 1000, None) for n in (1, 600, 1001, LARGEST)] == [1, 600, 1000, 1000]
    assert [examples_between(n, 1000, 101) for n in (1, 51, 150, 202, 203, LARGEST)] == [51, 51, 150, 202, 202, 202]
    assert examples_between(LARGEST, 1000, 0) == 1


def test_a_data_set_that_grew_too_fast_was_trained_on_all_the_same() -> None:
    update, names = within(claim(num_examples=640, num_steps=40), last_examples=100)
    assert (update.num_examples, update.num_steps, names) == (200, 40, ("num_examples",))


def test_metrics_are_numbers_that_every_mean_can_hold() -> None:
    told = {"a": 1e308, "b": -1e308, "c": 0.5, "loss": math.nan, "d": -math.inf}
    update, names = within(claim(metrics=told))
    assert dict(update.metrics) == {
        "a": MOST_METRIC, "b": -MOST_METRIC, "c": 0.5, "loss": MOST_METRIC, "d": -MOST_METRIC,
    }  # fmt: skip
    assert names == ("metrics",)


def test_downtime_counts_for_the_tasks_that_were_made_before_it() -> None:
    elapsed = Elapsed()
    elapsed.add_gap(10.0, 3600.0, oldest_s=4.0)
    assert (elapsed.since(4.0, 12.0), elapsed.since(11.0, 12.0)) == (3608.0, 1.0)
    again = Elapsed()
    again.load(elapsed.scalars())
    assert again.since(4.0, 12.0) == 3608.0
    again.add_gap(20.0, 5.0, oldest_s=15.0)
    assert again.scalars() == [[20.0, 5.0]], "no open task is old enough for the first one"


# In the core


def test_the_clamped_number_is_the_one_that_is_accepted_and_counted() -> None:
    bench = Bench(concurrency=1)
    task = only(IssueTask, bench.hello("a"))
    accepted = only(Accept, bench.update(task, t=2.0, num_steps=LARGEST, train_s=1.7e308, num_examples=LARGEST))
    assert (accepted.update.num_steps, accepted.update.train_s) == (312_500, 2.0)
    assert accepted.update.num_examples == 10_000_000
    assert (
        accepted.clamped == f"num_examples {LARGEST} -> 10000000, num_steps {LARGEST} -> 312500, train_s 1.7e+308 -> 2"
    )
    assert bench.core.clamped == {"num_examples": 1, "num_steps": 1, "train_s": 1}
    assert bench.commit().participants["a"].clamped == 1


def test_a_fleet_has_a_limit_of_its_own_for_each_participant() -> None:
    bench = Bench(concurrency=2)
    bench.core.limit_examples({"a": 7}.get)
    tasks = of(IssueTask, bench.hello("a", "b", num_examples=50))
    assert bench.commit().participants["a"].num_examples == 7
    kept = [only(Accept, bench.update(task, num_examples=50)).update.num_examples for task in tasks]
    assert kept == [7, 50]


def test_counts_bounds_and_downtime_survive_a_restart() -> None:
    bench = Bench(concurrency=1)
    task = only(IssueTask, bench.hello("a"))
    task = only(IssueTask, bench.update(task, t=2.0, num_steps=LARGEST))
    bench.step(TimeStoodStill(1000.0), 3.0)
    bench.restart()
    assert bench.core.clamped == {"num_steps": 1}
    accepted = only(Accept, bench.update(task, t=4.0, train_s=900.0, num_examples=30))
    assert (accepted.update.train_s, accepted.update.num_examples) == (900.0, 20), "10 examples may double"


def test_steps_by_speed_are_bounded_by_what_this_participant_was_asked_for() -> None:
    by_speed = StepAssignment(target_s=10.0, min_steps=2, max_steps=50)
    bench = Bench(concurrency=1, steps=by_speed, training=TrainingConfig(epochs=99, batch_size=1))
    task = only(IssueTask, bench.hello("a"))
    commands = bench.update(task, t=2.0, train_s=2.0, num_steps=LARGEST)
    assert only(Accept, commands).update.num_steps == task.training.max_steps == 2
    assert only(IssueTask, commands).training.max_steps == 10


def test_a_hello_alone_changes_nobodys_weight() -> None:
    bench = Bench(concurrency=2, client_weights="examples")
    tasks = of(IssueTask, bench.hello("a", "b"))
    bench.hello(*(f"sybil-{i}" for i in range(50)), num_examples=LARGEST)
    assert [only(Accept, bench.update(task)).client_weight for task in tasks] == [1.0, 1.0]


# The cap of the client weights


def test_a_claim_above_the_cap_is_cut_in_the_weight_and_in_the_mean() -> None:
    weights = ClientWeights("examples", 10.0)
    for i in range(9):
        weights.observe(f"p{i}", 100, {})
    weights.observe("liar", 10_000_000, {})
    assert weights.weight("liar", 10_000_000, {}) == 1000 * 10 / (900 + 1000)
    assert weights.weight("p0", 100, {}) == 100 * 10 / (900 + 1000)
    assert 0.52 < 1000 / 1900 < 0.53, "the share of one liar in ten"


def test_several_liars_lift_nobodys_cap() -> None:
    weights = ClientWeights("examples", 10.0)
    for i in range(8):
        weights.observe(f"p{i}", 100, {})
    for liar in ("x", "y"):
        weights.observe(liar, 2**50, {})
    assert weights.weight("x", 2**50, {}) == weights.weight("y", 2**50, {}) == 1000 * 10 / (800 + 2000)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_values_within_the_cap_have_the_weights_that_they_have_without_one(values: list[int]) -> None:
    free, capped = ClientWeights("examples"), ClientWeights("examples", 1000.0)
    for i, n in enumerate(values):
        assert free.weight(f"p{i}", n, {}) == capped.weight(f"p{i}", n, {})


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, LARGEST)), min_size=1, max_size=40))
def test_the_mean_of_the_weights_is_one_and_none_is_above_the_cap(told: list[tuple[str, int]]) -> None:
    weights, last = ClientWeights("examples", 4.0), {}
    for participant_id, n in told:
        weights.observe(participant_id, n, {})
        last[participant_id] = n
    counted = {p: n for p, n in last.items() if n}
    found = [weights.weight(p, n, {}) for p, n in counted.items()]
    if found:
        assert sum(found) / len(found) == pytest.approx(1.0, rel=1e-6)
        assert max(found) <= 4.0 + 1e-6


def test_the_first_round_has_one_scale_too() -> None:
    weights = ClientWeights("examples", 10.0)
    weights.pin()
    assert [weights.weight(p, n, {}) for p, n in (("a", 10), ("b", 30), ("c", 20))] == [1.0, 3.0, 2.0]
    again = ClientWeights.restore(
        "examples", weights.scalars(), [("a", 10, None), ("b", 30, None), ("c", 20, None)], 10
    )
    assert again.weight("d", 40, {}) == weights.weight("d", 40, {}) == 4.0
