"""Synchronous rounds: FedAvg on the same core."""

from __future__ import annotations

import numpy as np

from fedmq.coordinator.decisions.commands import Accept, CloseTask, Discard, Finish, IssueTask, NewVersion, Withdraw
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies.fedavg import FedAvg
from tests.unit.coordinator.decisions.harness import Bench, of, only, parameters


def rounds(**changes):
    values = {"cohort_size": 2, "over_selection": 1.5, "round_deadline_s": 50.0, "min_updates": 2}
    run = {"concurrency": 1, "lease_s": 1000.0, "participant_timeout_s": 1e6, "lapse_backoff_s": 0.0}
    return Bench(FedAvg(**(values | changes)), **run)


def open_round(bench, *names):
    return of(IssueTask, bench.hello(*names))


def test_a_round_opens_with_min_updates_participants_and_fills_up_to_the_cohort_over_selected():
    bench = rounds()
    assert open_round(bench, "a") == []
    assert {t.participant_id for t in open_round(bench, "b")} == {"a", "b"}
    assert [t.participant_id for t in open_round(bench, "c", "d")] == ["c"]


def test_the_first_updates_make_the_version_and_the_rest_of_the_round_is_withdrawn():
    bench = rounds()
    first, second, third = open_round(bench, "a", "b", "c")
    bench.update(first, tensors=parameters(1.0, 1.0))
    commands = bench.update(second, tensors=parameters(3.0, 5.0))
    assert only(NewVersion, commands).weights == (0.5, 0.5)
    np.testing.assert_array_equal(bench.core.parameters["w"], np.array([2.0, 3.0], np.float32))
    assert only(Withdraw, commands).task_id == third.task_id
    assert only(CloseTask, commands).state == "withdrawn"
    late = only(Discard, bench.update(third))
    assert late.reason == "task_closed"


def test_a_participant_gives_one_update_a_round():
    bench = rounds(cohort_size=3, over_selection=1.0, min_updates=1)
    (task,) = open_round(bench, "a")
    assert [type(c) for c in bench.update(task)] == [Accept]
    assert bench.hello("a") == []
    tasks = open_round(bench, "b", "c")
    bench.update(tasks[0])
    commands = bench.update(tasks[1])
    assert only(NewVersion, commands).version == 1
    assert {t.participant_id for t in of(IssueTask, commands)} == {"a", "b", "c"}


def test_at_the_deadline_a_round_goes_on_with_the_minimum():
    bench = rounds(cohort_size=3, over_selection=1.0)
    first, second, third = open_round(bench, "a", "b") + open_round(bench, "c")
    bench.update(first, t=10.0)
    bench.update(second, t=20.0)
    assert bench.core.next_wakeup() == 50.0
    commands = bench.tick(50.0)
    assert len(only(NewVersion, commands).update_ids) == 2
    assert only(Withdraw, commands).task_id == third.task_id


def test_at_the_deadline_with_too_few_updates_others_are_asked_and_stragglers_still_count():
    bench = rounds(over_selection=1.0)
    first, straggler = open_round(bench, "a", "b")
    bench.update(first, t=10.0)
    assert bench.hello("c", t=20.0) == []
    other = only(IssueTask, bench.tick(50.0))
    assert other.participant_id == "c"
    assert bench.core.next_wakeup() == 100.0
    assert only(NewVersion, bench.update(straggler, t=60.0)).version == 1
    assert only(Discard, bench.update(other, t=61.0)).reason == "task_closed"


def test_a_decline_in_a_round_is_replaced_at_once():
    bench = rounds(over_selection=1.0)
    first, _ = open_round(bench, "a", "b")
    bench.hello("c")
    assert only(IssueTask, bench.decline(first)).participant_id == "c"


def test_a_round_survives_a_restart():
    bench = rounds(cohort_size=3, over_selection=1.0)
    first, second = open_round(bench, "a", "b")
    bench.update(first, t=10.0)
    bench.restart()
    bench.hello(second.participant_id, holds=[second.task_id], accepting=False)
    assert bench.hello(first.participant_id) == []
    third = only(IssueTask, bench.hello("c", t=15.0))
    bench.update(second)
    assert only(NewVersion, bench.update(third)).version == 1


def test_max_updates_does_not_cut_a_round_short():
    bench = Bench(FedAvg(cohort_size=2), stop=StopSettings(max_updates=3))
    tasks = open_round(bench, "a", "b")
    seen = []
    while not of(Finish, seen):
        seen = bench.update(tasks.pop(0))
        tasks += of(IssueTask, seen)
    assert (bench.core.accepted, bench.core.version) == (4, 2)


def test_client_weights_keep_one_scale_while_a_round_is_open():
    bench = rounds(over_selection=1.0)
    bench = Bench(bench.strategy, client_weights="examples", lease_s=1000.0)
    small, large = of(IssueTask, bench.hello("a", num_examples=10) + bench.hello("b", num_examples=30))
    bench.update(small, num_examples=10)
    bench.hello("late", num_examples=1000)
    version = only(NewVersion, bench.update(large, num_examples=30))
    assert version.weights == (0.25, 0.75)


def test_over_selection_is_not_rounded_up_by_a_floating_point_remainder():
    bench = rounds(cohort_size=10, over_selection=1.1, min_updates=10)
    assert len(open_round(bench, *(f"p{i:02}" for i in range(20)))) == 11


def test_a_straggler_is_free_again_once_its_late_update_came():
    bench = rounds(cohort_size=2, over_selection=1.5)
    first, second, straggler = open_round(bench, "a", "b", "c")
    bench.update(first)
    assert straggler.participant_id not in {t.participant_id for t in of(IssueTask, bench.update(second))}
    assert only(IssueTask, bench.update(straggler)).participant_id == straggler.participant_id
