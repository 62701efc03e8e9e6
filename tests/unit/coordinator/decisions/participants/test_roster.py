"""The roster: who is known, who is forgotten, and who gets the slots if some of them are silent or invented."""

from __future__ import annotations

import pytest

from fedmq.coordinator.decisions.commands import Accept, CloseTask, Discard, IssueTask, SayHello
from fedmq.coordinator.decisions.events import TaskUndeliverable
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies import Ca2fl, FedAsync, FedAvg
from tests.unit.coordinator.decisions.harness import Bench, of, only


def receivers(commands):
    return [c.participant_id for c in of(IssueTask, commands)]


def known(bench):
    bench.commit()
    return sorted(bench.participants)


# Forgetting


def test_an_id_without_an_accepted_update_is_forgotten_when_it_is_away_and_a_proven_one_is_kept():
    bench = Bench(concurrency=1)
    bench.update(only(IssueTask, bench.hello("a", t=0.0)), t=1.0)
    bench.hello("b", "c", t=1.0)
    assert known(bench) == ["a", "b", "c"]
    bench.hello("c", t=30.0)
    bench.tick(61.0)
    assert known(bench) == ["a", "c"]
    assert bench.restart() == [SayHello(("a", "c"))]


def test_a_forgotten_one_that_comes_again_is_new_and_no_seq_is_used_twice():
    bench = Bench(concurrency=1)
    bench.hello("a", "b", accepting=False, t=0.0)
    bench.hello("a", accepting=False, t=50.0)
    bench.tick(60.0)
    bench.restart()
    bench.hello("b", accepting=False, t=61.0)
    assert known(bench) == ["a", "b"]
    assert [bench.participants[name].seq for name in ("a", "b")] == [0, 2]


def test_a_row_that_went_and_came_again_between_two_commits_is_the_new_one():
    bench = Bench()
    bench.hello("a", accepting=False, t=0.0)
    bench.commit()
    bench.tick(60.0)
    bench.hello("a", accepting=False, t=61.0)
    changes = bench.commit()
    assert (changes.forgotten, changes.participants["a"].seq) == (frozenset({"a"}), 1)


def test_one_that_said_that_it_leaves_gets_no_task_and_keeps_its_row_until_it_would_be_away():
    bench = Bench(concurrency=1)
    task = only(IssueTask, bench.hello("a", t=0.0))
    bench.hello("a", accepting=False, leaving=True, holds=[task.task_id], t=1.0)
    bench.hello("b", accepting=False, leaving=True, t=1.0)
    assert bench.core.here == 0
    assert receivers(bench.update(task, t=2.0)) == []
    assert known(bench) == ["a", "b"]
    assert [bench.participants[name].left for name in ("a", "b")] == [True, True]
    assert bench.restart() == [SayHello(("a", "b"))]
    assert bench.core.here == 0
    bench.tick(60.9)
    assert known(bench) == ["a", "b"]
    bench.tick(61.0)
    assert known(bench) == ["a"]
    assert receivers(bench.hello("a", session="s1", t=62.0)) == ["a"]
    bench.commit()
    assert not bench.participants["a"].left


def test_the_slot_of_one_that_leaves_with_its_task_is_free_at_once_and_its_update_is_welcome_later():
    bench = Bench(concurrency=1, lapse_backoff_s=10.0)
    task = only(IssueTask, bench.hello("a", t=0.0))
    assert receivers(bench.hello("b", t=0.5)) == []
    assert receivers(bench.hello("a", accepting=False, leaving=True, holds=[task.task_id], t=1.0)) == ["b"]
    bench.hello("a", session="s1", accepting=False, holds=[task.task_id], t=2.0)
    assert only(Accept, bench.update(task, t=3.0)).order == 1


def test_one_that_comes_back_gets_no_other_task_while_its_queue_may_have_the_one_it_left():
    bench = Bench(concurrency=2)
    task = only(IssueTask, bench.hello("a", t=0.0))
    bench.hello("a", accepting=False, leaving=True, holds=[task.task_id], t=1.0)
    assert receivers(bench.hello("a", session="s1", t=2.0)) == []
    assert only(Accept, bench.update(task, t=3.0)).order == 1
    assert receivers(bench.hello("b", "c", t=4.0)) != []


def test_one_that_leaves_with_each_task_soon_waits_for_the_next_one():
    bench = Bench(concurrency=1, lapse_backoff_s=10.0)
    for turn, issued in enumerate((["a"], ["a"], ["a"], [])):
        issues = bench.hello("a", session=f"s{turn}", t=10.0 * turn)
        if turn:  # its queue may still have the last one: the next hello tells
            assert receivers(issues) == []
            issues = bench.hello("a", session=f"s{turn}", t=10.0 * turn + 1)  # one is forgiven, one pardoned (rule 8)
        assert receivers(issues) == issued
        for task in of(IssueTask, issues):
            bench.hello("a", session=f"s{turn}", accepting=False, leaving=True, holds=[task.task_id], t=10.0 * turn + 5)


def test_finished_work_of_one_that_is_away_is_still_welcome():
    bench = Bench(concurrency=1)
    task = only(IssueTask, bench.hello("a", t=0.0))
    bench.tick(10_000.0)
    assert only(Accept, bench.update(task, t=20_000.0)).order == 1


def test_a_back_off_outlives_an_absence():
    bench = Bench(decline_backoff_s=100.0)
    bench.decline(only(IssueTask, bench.hello("a", t=0.0)), "trainer_error")
    bench.tick(60.0)
    assert receivers(bench.hello("a", t=61.0)) == []
    bench.tick(121.0)
    assert receivers(bench.hello("a", t=122.0)) == ["a"]


def test_beyond_max_participants_the_unproven_one_that_is_away_for_longest_makes_room():
    bench = Bench(concurrency=2, max_participants=3, lease_s=50.0)
    proven, silent = of(IssueTask, bench.hello("a", "b", t=0.0))
    bench.update(proven, t=1.0)
    bench.hello("c", accepting=False, t=1.0)
    bench.hello("d", accepting=False, t=2.0)
    assert known(bench) == ["a", "b", "c"]
    assert not bench.core.knows("d")
    bench.hello("c", accepting=False, t=59.0)
    commands = bench.hello("d", accepting=False, t=100.0)
    assert [c.task_id for c in of(CloseTask, commands)] == [silent.task_id]
    assert known(bench) == ["a", "c", "d"]
    assert only(Discard, bench.update(silent)).reason == "unknown_participant"


def test_beyond_max_per_user_a_users_further_ids_are_turned_away():
    bench = Bench(max_per_user=2)
    bench.hello("a", "b", "c", accepting=False, user="site", t=0.0)
    bench.hello("d", accepting=False, user="other", t=0.0)
    assert known(bench) == ["a", "b", "d"]
    bench.hello("d", accepting=False, user="site", t=1.0)
    assert known(bench) == ["a", "b", "d"]
    assert bench.participants["d"].user == "other"
    bench.hello("a", accepting=False, user="site", t=30.0)
    bench.tick(60.0)
    bench.hello("c", accepting=False, user="site", t=61.0)
    assert known(bench) == ["a", "c"]


def test_a_run_that_could_never_begin_is_refused():
    with pytest.raises(ValueError, match="raise max_participants"):
        RunSettings(run_id="r", min_participants=3, max_participants=2, stop=StopSettings(max_updates=1))


# Silent participants


def test_a_lease_that_lapses_backs_off_as_a_failure_does():
    bench = Bench(concurrency=1, lapse_backoff_s=30.0, participant_timeout_s=1e6)
    bench.hello("a", t=0.0)
    waits = []
    for _ in range(7):
        bench.tick(bench.core.next_wakeup())
        lapsed_s = bench.t
        assert receivers(bench.hello("a")) == []
        assert receivers(bench.tick(bench.core.next_wakeup())) == ["a"]
        waits.append(bench.t - lapsed_s)
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_a_new_session_ends_the_back_off_of_a_silent_one_once_in_ten_minutes():
    bench = Bench(lease_s=10.0)
    bench.hello("a", t=0.0)
    assert receivers(bench.hello("a", t=10.0, session="s1")) == ["a"]
    assert receivers(bench.hello("a", t=20.0, session="s2")) == []
    assert receivers(bench.hello("a", t=79.0, session="s3")) == []
    assert receivers(bench.hello("a", t=80.0, session="s4")) == ["a"]
    bench.tick(90.0)
    assert receivers(bench.hello("a", t=609.0, session="s5")) == ["a"]
    bench.tick(619.0)
    assert receivers(bench.hello("a", t=620.0, session="s6")) == ["a"]


def test_one_that_never_names_its_task_does_not_get_one_after_the_other():
    bench = Bench(FedAsync(), concurrency=2)
    lost, other = of(IssueTask, bench.hello("a", "b", t=0.0))
    bench.update(other, t=1.0)
    assert receivers(bench.hello("a", t=20.0)) == []
    assert bench.core.next_wakeup() == 50.0
    assert only(Accept, bench.update(lost, t=21.0)).staleness == 1
    bench.commit()
    assert bench.participants["a"].failures == 0


def test_a_queue_that_is_gone_again_and_again_backs_off_too():
    bench = Bench(concurrency=1)
    first = only(IssueTask, bench.hello("a", t=0.0))
    bench.step(TaskUndeliverable(first.task_id, "no queue"))
    second = only(IssueTask, bench.hello("a", t=1.0))
    bench.step(TaskUndeliverable(second.task_id, "no queue"))
    assert receivers(bench.hello("a", t=2.0)) == []
    assert receivers(bench.tick(31.0)) == ["a"]


def test_a_task_that_the_coordinator_itself_lost_is_nobodys_silence():
    bench = Bench(FedAsync(), concurrency=2)
    lost, other = of(IssueTask, bench.hello("a", "b", t=0.0))
    bench.update(other, t=1.0)
    bench.restart()
    assert receivers(bench.hello(lost.participant_id, t=2.0)) == [lost.participant_id]


# Newcomers


def test_newcomers_hold_half_of_the_slots_while_others_are_free():
    bench = Bench(FedAsync(), concurrency=4, selection="least_used")
    tasks = of(IssueTask, bench.hello("a", "b", "c", "d", t=0.0))
    bench.hello(*(f"new{i}" for i in range(9)), t=0.0)
    for task in tasks[:3]:
        bench.update(task, t=1.0)
    bench.hello(*(f"late{i}" for i in range(9)), t=1.0)
    assert bench.core.tasks_out == 4
    # The nine that came before the first accepted update are no newcomers.
    out = [task.participant_id for task in bench.core._desk.tasks.open()]
    assert sorted(out) == ["d", "new0", "new1", "new2"]


def test_a_flood_of_newcomers_leaves_the_proven_ones_their_half():
    bench = Bench(FedAsync(), concurrency=4)
    tasks = of(IssueTask, bench.hello("a", "b", "c", "d", t=0.0))
    tasks = [task for one in tasks for task in of(IssueTask, bench.update(one, t=1.0))]
    bench.hello(*(f"late{i}" for i in range(20)), t=2.0)
    for task in tasks:
        bench.update(task, t=3.0)
    out = [task.participant_id for task in bench.core._desk.tasks.open()]
    assert sum(name.startswith("late") for name in out) == 2


def test_newcomers_get_all_slots_that_nobody_else_wants():
    bench = Bench(FedAsync(), concurrency=4)
    bench.update(only(IssueTask, bench.hello("a", t=0.0)), t=1.0)
    assert sorted(receivers(bench.hello("b", "c", "d", t=2.0))) == ["b", "c", "d"]


# Shares of users


def out_of(bench):
    return sorted(task.participant_id for task in bench.core._desk.tasks.open() if task.state == "out")


@pytest.mark.parametrize("selection", ["uniform", "least_used"])
def test_twenty_ids_of_one_user_hold_one_slot_beside_two_users_of_one_id(selection):
    bench = Bench(FedAsync(), concurrency=16, selection=selection)
    bench.hello("a", user="a")
    bench.hello("b", user="b")
    bench.hello(*(f"s{i:02}" for i in range(20)), user="sybil")
    assert out_of(bench) == ["a", "b", "s00"]
    bench.update(only_out(bench, "s00"))
    assert out_of(bench) == ["a", "b", "s01"]
    bench.restart()
    bench.update(only_out(bench, "s01"))
    assert out_of(bench) == ["a", "b", "s02"]


def only_out(bench, participant_id):
    (task,) = [t for t in bench.core._desk.tasks.open() if t.participant_id == participant_id]
    return task


def test_one_user_alone_has_all_slots_and_loses_none_that_it_holds_when_others_come():
    bench = Bench(FedAsync(), concurrency=16)
    bench.hello("s0", "s1", "s2", user="shared")
    assert out_of(bench) == ["s0", "s1", "s2"]
    bench.hello("a", user="a")
    bench.update(only_out(bench, "s0"))
    assert out_of(bench) == ["a", "s1", "s2"]


def test_the_share_is_the_lower_median_of_the_users_here():
    bench = Bench(FedAsync(), concurrency=16)
    bench.hello("a0", "a1", "a2", "a3", user="a")
    bench.hello("b0", "b1", user="b")
    bench.hello("c0", "c1", "c2", user="c")
    for name in out_of(bench):
        bench.update(only_out(bench, name))
    assert [sum(name[0] == user for name in out_of(bench)) for user in "abc"] == [3, 2, 3]


def test_when_the_others_are_away_a_user_has_all_slots_again():
    bench = Bench(FedAsync(), concurrency=16)
    bench.hello("a", user="a", accepting=False, t=0.0)
    bench.hello("s0", "s1", "s2", user="shared", t=0.0)
    assert out_of(bench) == ["s0"]
    bench.hello("s0", "s1", "s2", user="shared", t=30.0, holds=[only_out(bench, "s0").task_id])
    assert out_of(bench) == ["s0"]
    bench.tick(60.0)
    assert out_of(bench) == ["s0", "s1", "s2"]


def test_ids_without_a_user_hold_no_slot_beside_a_user():
    bench = Bench(FedAsync(), concurrency=16)
    bench.hello("s0", "s1", user=None)
    assert out_of(bench) == ["s0", "s1"]
    bench.hello("a", user="a")
    for name in ("s0", "s1"):
        bench.update(only_out(bench, name))
    assert out_of(bench) == ["a"]


def test_in_a_round_a_user_gives_no_more_updates_than_its_share():
    bench = Bench(FedAvg(cohort_size=4, min_updates=3, round_deadline_s=50.0), lease_s=1000.0)
    bench.hello("a", user="a")
    bench.hello("b", user="b")
    bench.hello(*(f"s{i}" for i in range(9)), user="sybil")
    for name in ("s0", "a"):
        bench.update(only_out(bench, name))
    assert out_of(bench) == ["b"]
    bench.update(only_out(bench, "b"))
    bench.tick(50.0)
    assert bench.core.version == 1


def test_max_per_user_is_the_share_if_it_is_set():
    bench = Bench(FedAsync(), concurrency=16, max_per_user=2)
    bench.hello("a", user="a")
    bench.hello(*(f"s{i}" for i in range(9)), user="site")
    assert out_of(bench) == ["a", "s0", "s1"]


# Places of a strategy


def test_a_silent_one_loses_its_place_and_a_proven_one_keeps_it():
    bench = Bench(Ca2fl(num_participants=2, buffer_size=2), concurrency=3, lease_s=10.0, participant_timeout_s=1e6)
    proven, silent = of(IssueTask, bench.hello("a", "b", t=0.0))
    bench.hello("c", t=0.0)
    assert not bench.core.has_room_for("c")
    bench.update(proven, t=1.0)
    commands = bench.tick(10.0)
    assert receivers(commands) == ["c"]
    assert [c.task_id for c in of(CloseTask, commands)][-1:] == [silent.task_id]
    assert [bench.core.has_room_for(name) for name in "abc"] == [True, False, True]
    bench.restart()
    assert [bench.core.has_room_for(name) for name in "abc"] == [True, False, True]


def test_the_place_of_a_forgotten_one_is_free():
    bench = Bench(Ca2fl(num_participants=1, buffer_size=2))
    bench.hello("a", accepting=False, t=0.0)
    assert receivers(bench.hello("b", t=1.0)) == []
    assert receivers(bench.tick(60.0)) == ["b"]


def test_a_user_takes_no_more_places_than_its_share():
    bench = Bench(Ca2fl(num_participants=3, buffer_size=2), concurrency=8)
    bench.hello("a", user="a")
    bench.hello(*(f"s{i}" for i in range(9)), user="sybil")
    bench.hello("b", user="b")
    assert out_of(bench) == ["a", "b", "s0"]
