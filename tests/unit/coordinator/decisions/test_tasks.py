"""Tasks: which participant gets one, at which moment, and how it ends."""

from __future__ import annotations

import pytest

from fedmq.coordinator.decisions.commands import (
    Accept,
    CloseTask,
    Discard,
    IssueTask,
    RepeatReceipts,
    SayHello,
    Withdraw,
)
from fedmq.coordinator.decisions.events import Started, TaskDeclined, TaskUndeliverable
from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedbuff import FedBuff
from tests.unit.coordinator.decisions.harness import Bench, of, only


def receivers(commands):
    return [c.participant_id for c in of(IssueTask, commands)]


def test_a_task_carries_its_id_seed_and_lease():
    bench = Bench(seed=7)
    task = only(IssueTask, bench.hello("a"))
    assert (task.task_id, task.seq, task.lease_s, task.again) == ("abcdef01-1", 1, 100.0, False)
    assert task.training.seed == task_seed(7, 1) != task_seed(7, 2)


def test_no_more_tasks_are_out_than_concurrency_and_one_for_each_participant():
    bench = Bench(concurrency=2)
    assert receivers(bench.hello("a", "b", "c")) == ["a", "b"]
    assert bench.hello("a", holds=["abcdef01-1"]) == []
    assert bench.core.tasks_out == 2


def test_no_task_goes_out_before_min_participants_are_here():
    bench = Bench(concurrency=5, min_participants=3)
    assert of(IssueTask, bench.hello("a", "b")) == []
    assert sorted(receivers(bench.hello("c"))) == ["a", "b", "c"]


def test_a_participant_that_went_away_does_not_count_as_here():
    bench = Bench(min_participants=2, participant_timeout_s=60.0)
    bench.hello("a", t=0.0)
    assert of(IssueTask, bench.hello("b", t=60.0)) == []
    assert of(IssueTask, bench.hello("a", t=61.0)) != []


@pytest.mark.parametrize("field", [{"accepting": False}, {"replies": ("parameters",)}])
def test_who_does_not_accept_or_cannot_reply_gets_no_task(field):
    assert of(IssueTask, Bench().hello("a", **field)) == []


def test_concurrency_is_kept_up_to_the_last_update():
    bench = Bench(FedBuff(buffer_size=2), concurrency=5, stop=StopSettings(max_updates=3))
    tasks = of(IssueTask, bench.hello("a", "b", "c", "d", "e", "f"))
    assert len(tasks) == 5
    for task in tasks[:2]:
        bench.update(task)
        assert bench.core.tasks_out == 5
    bench.update(tasks[2])
    assert (bench.core.finished, bench.core.tasks_out) == ("max_updates", 0)


def test_least_used_asks_whoever_was_asked_least():
    bench = Bench(FedAsync(), concurrency=1, selection="least_used")
    task = only(IssueTask, bench.hello("a", "b", "c"))
    asked = [task.participant_id]
    for _ in range(5):
        task = only(IssueTask, bench.update(task))
        asked.append(task.participant_id)
    assert asked == ["a", "b", "c", "a", "b", "c"]


def test_uniform_selection_follows_the_seed():
    def asked(seed):
        bench = Bench(concurrency=3, seed=seed, min_participants=20)
        return receivers(bench.hello(*(f"p{i}" for i in range(20))))

    assert asked(1) == asked(1)
    assert len({tuple(asked(seed)) for seed in range(10)}) > 5


def test_a_lease_that_is_over_gives_the_slot_to_somebody_else_and_the_late_update_counts():
    bench = Bench(concurrency=1, participant_timeout_s=1000.0)
    task = only(IssueTask, bench.hello("a", "b"))
    assert bench.core.next_wakeup() == 100.0
    assert bench.tick(99.0) == []
    other = only(IssueTask, bench.tick(100.0))
    assert other.participant_id != task.participant_id
    assert only(Accept, bench.update(task)).staleness == 0
    assert only(Accept, bench.update(other)).order == 2


def test_the_silent_holder_of_a_lapsed_task_gets_no_other_until_it_speaks():
    bench = Bench(participant_timeout_s=1000.0, lapse_backoff_s=0.0)
    task = only(IssueTask, bench.hello("a"))
    assert bench.tick(100.0) == []
    assert bench.hello("a", accepting=False, holds=[task.task_id]) == []
    assert only(IssueTask, bench.hello("a")).seq == 2


def test_of_many_lapsed_tasks_of_one_participant_the_oldest_are_withdrawn():
    bench = Bench(concurrency=1, lapse_backoff_s=0.0)
    first = only(IssueTask, bench.hello("a", t=0.0))
    for i in range(1, 5):
        assert of(CloseTask, bench.hello("a", t=100.0 * i)) == []
    commands = bench.hello("a", t=500.0)
    assert only(CloseTask, commands).task_id == first.task_id
    assert only(Withdraw, commands).task_id == first.task_id
    assert only(Discard, bench.update(first)).reason == "task_closed"


def test_lapsed_tasks_are_withdrawn_once_they_are_too_stale():
    bench = Bench(FedAsync(), concurrency=2, max_staleness=1, participant_timeout_s=1e6)
    slow = only(IssueTask, bench.hello("a", t=0.0))
    task = only(IssueTask, bench.hello("b", t=50.0))
    bench.tick(100.0)
    task = only(IssueTask, bench.update(task))
    commands = bench.update(task)
    assert only(Withdraw, commands).task_id == slow.task_id
    discard = only(Discard, bench.update(slow))
    assert (discard.reason, discard.staleness) == ("too_stale", 2)


# Lost tasks


def test_a_new_session_that_does_not_name_its_task_gets_it_again_with_the_same_seed():
    bench = Bench()
    task = only(IssueTask, bench.hello("a", t=0.0))
    again = only(IssueTask, bench.hello("a", t=1.0, session="s1"))
    assert again.again
    assert (again.task_id, again.training, again.base_version) == (task.task_id, task.training, 0)
    assert again.lease_s == 99.0
    assert bench.core.tasks_out == 1


def test_a_hello_of_the_same_session_may_cross_its_task_on_the_wire():
    bench = Bench(lease_s=100.0)
    bench.hello("a", t=0.0)
    assert bench.hello("a", t=9.9) == []
    assert only(IssueTask, bench.hello("a", t=10.0)).again
    assert bench.hello("a", t=30.0) == []


def test_a_task_that_is_named_is_not_lost():
    bench = Bench()
    task = only(IssueTask, bench.hello("a", t=0.0))
    assert bench.hello("a", t=50.0, session="s1", accepting=False, holds=[task.task_id]) == []


def test_a_lost_task_of_an_old_version_lapses_and_its_participant_gets_a_fresh_one():
    bench = Bench(FedAsync(), concurrency=2)
    lost, other = of(IssueTask, bench.hello("a", "b"))
    bench.update(other)
    fresh = only(IssueTask, bench.hello("a", session="s1"))
    assert (fresh.again, fresh.base_version, fresh.participant_id) == (False, 1, "a")
    assert only(Accept, bench.update(lost)).staleness == 1


def test_a_lost_task_is_not_repeated_to_a_participant_that_does_not_accept():
    bench = Bench(concurrency=1)
    bench.hello("a")
    bench.hello("b")
    assert receivers(bench.hello("a", session="s1", accepting=False)) == ["b"]


def test_after_a_restart_everybody_is_asked_for_a_hello_and_unsent_tasks_are_repeated_without_grace():
    bench = Bench()
    task = only(IssueTask, bench.hello("a", t=5.0))
    assert bench.restart() == [SayHello(("a",))]
    again = only(IssueTask, bench.hello("a", t=5.1))
    assert (again.task_id, again.again) == (task.task_id, True)


def test_a_repeat_that_was_committed_and_never_sent_is_repeated_after_the_restart_too():
    bench = Bench()
    task = only(IssueTask, bench.hello("a", t=0.0))
    assert only(IssueTask, bench.hello("a", t=1.0, session="s1")).again
    bench.restart()
    assert only(IssueTask, bench.hello("a", t=1.1, session="s1")).task_id == task.task_id
    assert bench.hello("a", t=1.2, session="s1") == []


def test_after_a_restart_a_task_that_is_named_is_not_doubted_any_more():
    bench = Bench()
    task = only(IssueTask, bench.hello("a", t=0.0))
    bench.restart()
    assert bench.hello("a", t=0.1, holds=[task.task_id], accepting=False) == []
    assert bench.hello("a", t=0.2) == []


def test_a_fresh_start_asks_nobody():
    assert Bench().step(Started()) == []


# Declines and failures


def test_a_decline_frees_the_slot_and_the_participant_is_asked_again_after_the_backoff():
    bench = Bench(concurrency=1, decline_backoff_s=30.0)
    task = only(IssueTask, bench.hello("a"))
    assert bench.decline(task) == [CloseTask(task.task_id, "declined", "busy")]
    assert bench.core.next_wakeup() == 30.0
    assert bench.tick(29.0) == []
    assert only(IssueTask, bench.tick(30.0)).participant_id == "a"


def test_a_declining_participant_says_itself_when_to_ask_again():
    bench = Bench()
    bench.decline(only(IssueTask, bench.hello("a")), retry_after_s=5.0)
    assert only(IssueTask, bench.tick(5.0)).seq == 2


def test_an_accepting_hello_ends_the_backoff_of_a_busy_participant():
    bench = Bench()
    bench.decline(only(IssueTask, bench.hello("a")))
    assert only(IssueTask, bench.hello("a", t=1.0)).seq == 2


@pytest.mark.parametrize("reason", ["trainer_error", "unreadable"])
def test_a_failure_that_comes_again_and_again_does_not_spin(reason):
    bench = Bench(decline_backoff_s=10.0, participant_timeout_s=1e6)
    task = only(IssueTask, bench.hello("a"))
    waits = []
    for _ in range(9):
        declined_s = bench.t
        bench.decline(task, reason, detail="boom")
        assert of(IssueTask, bench.hello("a")) == []
        task = only(IssueTask, bench.tick(bench.core.next_wakeup()))
        waits.append(bench.t - declined_s)
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_new_session_may_try_again_after_failures_and_success_forgets_them():
    bench = Bench(decline_backoff_s=10.0)
    bench.decline(only(IssueTask, bench.hello("a")), "trainer_error")
    task = only(IssueTask, bench.hello("a", session="s1"))
    bench.update(task)
    assert bench.commit().participants["a"].failures == 0


def test_declines_of_unknown_tasks_other_runs_and_other_participants_change_nothing():
    bench = Bench()
    task = only(IssueTask, bench.hello("a"))
    bench.hello("b", accepting=False)
    for change in ({"task_id": "abcdef01-77"}, {"run_id": "other"}, {"participant_id": "b"}, {"participant_id": "x"}):
        event = {"participant_id": "a", "task_id": task.task_id, "run_id": "run", "reason": "busy"} | change
        assert bench.step(TaskDeclined(**event)) == []
    assert bench.core.tasks_out == 1


def test_a_decline_of_a_task_that_was_sent_twice_leaves_the_other_copy_welcome():
    bench = Bench()
    task = only(IssueTask, bench.hello("a"))
    only(IssueTask, bench.hello("a", session="s1"))
    bench.decline(task)
    assert bench.core.tasks_out == 0
    only(Accept, bench.update(task))


def test_the_update_of_a_declined_task_is_task_closed():
    bench = Bench()
    task = only(IssueTask, bench.hello("a"))
    bench.decline(task)
    assert only(Discard, bench.update(task)).reason == "task_closed"
    bench.commit()
    assert only(Discard, bench.update(task)).reason == "task_closed"


def test_an_undeliverable_task_frees_its_slot_and_its_participant_is_away_until_its_hello():
    bench = Bench(concurrency=1)
    task = only(IssueTask, bench.hello("a"))
    bench.hello("b")
    other = only(IssueTask, bench.step(TaskUndeliverable(task.task_id, "no queue")))
    assert other.participant_id == "b"
    bench.decline(other)
    assert bench.tick(20.0) == []
    assert only(IssueTask, bench.hello("a")).participant_id == "a"
    only(Accept, bench.update(task))  # only our publish had timed out: the task had arrived


def test_receipts_are_repeated_for_tasks_that_are_over_once_they_are_committed():
    bench = Bench()
    task = only(IssueTask, bench.hello("a"))
    after = only(IssueTask, bench.update(task))
    assert of(RepeatReceipts, bench.hello("a", holds=[task.task_id, after.task_id])) == []
    bench.commit()
    commands = bench.hello("a", holds=[task.task_id, after.task_id, "old00000-1"])
    assert only(RepeatReceipts, commands) == RepeatReceipts("a", (task.task_id, "old00000-1"))


def test_a_record_that_changed_twice_is_reported_once_and_then_no_more():
    bench = Bench()
    task = only(IssueTask, bench.hello("a"))
    bench.update(task)
    changes = bench.commit()
    assert set(changes.participants) == {"a"}
    assert changes.tasks[task.task_id].state == "accepted"
    assert changes.participants["a"].accepted == 1
    nothing = bench.commit()
    assert (nothing.participants, nothing.tasks) == ({}, {})


def test_time_never_runs_backwards_for_the_core():
    bench = Bench()
    bench.hello("a", t=50.0)
    bench.tick(10.0)
    assert bench.core.snapshot().scalars["now"] == 50.0


def test_the_core_holds_open_tasks_and_those_closed_since_the_last_commit():
    bench = Bench(stop=StopSettings(max_updates=1))
    task = only(IssueTask, bench.hello("a"))
    assert bench.core.holds(task.task_id)
    bench.update(task)
    assert bench.core.holds(task.task_id)
    bench.commit()
    assert not bench.core.holds(task.task_id)
