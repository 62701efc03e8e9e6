"""Whose a message is, and what becomes of a participant that was revoked."""

import pytest

from fedmq.coordinator.decisions.commands import POISON, CloseTask, Discard, IssueTask, NewVersion, Withdraw
from fedmq.coordinator.decisions.events import ParticipantRevoked, Started
from fedmq.coordinator.decisions.participants import identity
from fedmq.coordinator.strategies.fedavg import FedAvg
from tests.unit.coordinator.decisions.harness import Bench, of, only


@pytest.mark.parametrize(
    ("user", "reason"), [("alice", None), (None, "unknown_sender"), ("bob", "wrong_sender"), ("", "wrong_sender")]
)
def test_only_a_participants_own_user_speaks_for_it(user, reason):
    fault = identity.impostor("alice", user)
    assert (fault and fault.reason) == reason


@pytest.mark.parametrize(
    ("standing", "reason"), [("enrolled", None), ("unknown", "not_enrolled"), ("revoked", "revoked")]
)
def test_only_who_is_in_the_fleet_is_heard(standing, reason):
    fault = identity.outsider("alice", standing)
    assert (fault and fault.reason) == reason


def test_what_a_stranger_sends_is_dead_lettered_and_what_a_revoked_one_left_behind_is_not():
    assert {"unknown_sender", "wrong_sender", "not_enrolled"} <= POISON
    assert "revoked" not in POISON


def revoke(bench, name, t=None):
    return bench.step(ParticipantRevoked(name), t)


def test_a_revoked_participant_loses_its_tasks_and_its_slot_goes_to_another():
    bench = Bench(concurrency=1)
    (lapsed,) = of(IssueTask, bench.hello("a"))
    bench.tick(200.0)
    (out,) = of(IssueTask, bench.hello("a", session="s1"))
    bench.hello("b")
    commands = revoke(bench, "a")
    assert [(c.task_id, c.state) for c in of(CloseTask, commands)] == [
        (lapsed.task_id, "withdrawn"), (out.task_id, "withdrawn"),
    ]  # fmt: skip
    assert [(c.participant_id, c.task_id) for c in of(Withdraw, commands)] == [
        ("a", lapsed.task_id), ("a", out.task_id),
    ]  # fmt: skip
    assert [c.participant_id for c in of(IssueTask, commands)] == ["b"]
    assert revoke(bench, "a") == []
    assert bench.core.tasks_out == 1


def test_a_revoked_participant_gets_no_task_whatever_it_says():
    bench = Bench()
    bench.hello("a")
    revoke(bench, "a")
    for session in ("s0", "s1", "s2"):
        assert of(IssueTask, bench.hello("a", session=session)) == []
    bench.hello("b", "c")
    assert {task.participant_id for task in bench.core._desk.tasks.open()} == {"b", "c"}


def test_a_record_says_who_was_revoked_and_a_restart_asks_the_fleet_all_the_same():
    bench = Bench(concurrency=1)
    bench.update(only(IssueTask, bench.hello("a", t=0.0)))
    revoke(bench, "a")
    bench.commit()
    assert bench.participants["a"].revoked
    bench.restart()
    assert not bench.core.is_revoked("a")


def test_a_revoked_participant_is_not_here():
    bench = Bench(min_participants=2)
    bench.hello("a")
    revoke(bench, "a")
    assert of(IssueTask, bench.hello("b")) == []
    assert len(of(IssueTask, bench.hello("c"))) == 2


def test_an_update_of_a_revoked_participant_is_discarded_and_an_accepted_one_stays_a_duplicate():
    bench = Bench(concurrency=1)
    (first,) = of(IssueTask, bench.hello("a"))
    (second,) = of(IssueTask, bench.update(first))
    bench.commit()
    revoke(bench, "a")
    assert [d.reason for d in of(Discard, bench.update(second))] == ["revoked"]
    bench.commit()
    assert [d.reason for d in of(Discard, bench.update(second))] == ["revoked"]
    assert [d.reason for d in of(Discard, bench.update(first))] == ["duplicate"]
    assert (bench.core.accepted, bench.core.discarded) == (1, {"revoked": 2, "duplicate": 1})


def test_accepted_updates_of_a_revoked_participant_stay_in_the_version():
    bench = Bench(concurrency=2)
    a, b = of(IssueTask, bench.hello("a", "b"))
    bench.update(a)
    revoke(bench, a.participant_id)
    (version,) = of(NewVersion, bench.update(b))
    assert len(version.update_ids) == 2


def test_a_round_goes_on_without_its_revoked_participant():
    bench = Bench(FedAvg(cohort_size=2, min_updates=2))
    tasks = {task.participant_id: task for task in of(IssueTask, bench.hello("a", "b", "c"))}
    assert len(tasks) == 2
    gone, stays = tasks
    (instead,) = of(IssueTask, revoke(bench, gone))
    bench.update(tasks[stays])
    assert len(of(NewVersion, bench.update(instead))) == 1


def test_after_a_restart_the_members_say_who_is_revoked_before_any_task_goes_out():
    bench = Bench(concurrency=1)
    (task,) = of(IssueTask, bench.hello("a"))
    bench.hello("b")
    saved = bench.save()
    commands = bench.restore(saved).step(Started(revoked=("a", "unheard-of")))
    assert [c.task_id for c in of(Withdraw, commands)] == [task.task_id]
    assert [c.participant_id for c in of(IssueTask, commands)] == ["b"]


def test_a_core_without_revoked_participants_starts_as_before():
    one, other = Bench(), Bench()
    for bench in (one, other):
        bench.hello("a", "b")
    assert one.restart() == other.restore(other.save()).step(Started(revoked=()))
