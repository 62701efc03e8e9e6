"""Times at which a commit is due, in exact seconds of run time."""

from fedmq.coordinator.decisions.commands import Accept, IssueTask, NewVersion
from fedmq.coordinator.service.commits.commit import CONTROL_WINDOW, MOST_REST_S, Pace
from fedmq.coordinator.service.commits.effects import Pending
from fedmq.coordinator.settings import CommitSettings
from fedmq.schemas.messages import TrainingConfig

NOW = float("-inf")
NEVER = float("inf")


def pace(window: int = 8, **settings: float) -> Pace:
    return Pace(CommitSettings(commit_interval_s=1.0, commit_every_updates=64, **settings), window, 1000)


def pending(since_s: float = 10.0, urgent: bool = True, **given: int) -> Pending:
    return Pending(since_s=since_s, urgent=urgent, **given)


def test_nothing_to_commit_is_never_due():
    assert pace().due_s(Pending(), idle=True) == NEVER


def test_an_idle_coordinator_commits_at_once_and_a_busy_one_after_the_interval():
    assert pace().due_s(pending(), idle=True) == 10.0
    assert pace().due_s(pending(), idle=False) == 11.0


def test_what_nobody_waits_for_waits_for_the_interval():
    assert pace().due_s(pending(urgent=False), idle=True) == 11.0


def test_a_coordinator_rests_three_commit_durations():
    p = pace()
    p.succeeded(9.5, 10.0)
    assert p.due_s(pending(10.25), idle=True) == 11.5
    assert p.due_s(pending(10.25), idle=False) == 11.5
    assert p.due_s(pending(11.0), idle=False) == 12.0, "the interval, where that is longer"


def test_a_commit_that_stood_still_for_an_hour_keeps_nobody_waiting_for_three():
    p = pace()
    p.succeeded(0.0, 3600.0)
    assert p.due_s(pending(3601.0), idle=True) == 3600.0 + MOST_REST_S


def test_two_thirds_of_the_window_or_enough_updates_commit_now_even_before_the_rest_is_over():
    p = pace(window=8)
    p.succeeded(0.0, 10.0)
    assert p.due_s(pending(num_updates=5), idle=False) == 40.0
    assert p.due_s(pending(num_updates=6), idle=False) == NOW
    assert pace(window=1).due_s(pending(num_updates=1), idle=False) == NOW
    assert pace(window=2).due_s(pending(num_updates=1), idle=False) == 11.0
    assert pace(window=100).due_s(pending(num_updates=64), idle=False) == NOW


def test_a_full_control_window_or_much_poison_commits_now():
    assert pace().due_s(pending(num_control=CONTROL_WINDOW), idle=False) == NOW
    assert pace().due_s(pending(poison_bytes=1001), idle=False) == NOW


def test_failures_wait_ever_longer_and_a_success_ends_that():
    p = pace()
    waits = []
    for _ in range(9):
        p.failed(100.0)
        waits.append(p.due_s(pending(num_updates=8), idle=True) - 100.0)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    p.succeeded(100.0, 100.0)
    assert p.due_s(pending(num_updates=8), idle=True) == NOW


def test_a_task_to_send_is_urgent_and_an_update_to_ack_is_not():
    accepted = Accept(1, None, staleness=0, client_weight=1.0, order=1)
    task = IssueTask("t-1", 1, "p", 0, TrainingConfig(), lease_s=10.0)
    waiting = Pending()
    waiting.touch(10.0, [accepted, NewVersion(1, ("u",), (1.0,))])
    assert pace().due_s(waiting, idle=True) == 11.0
    waiting.touch(10.5, [accepted, task])
    assert pace().due_s(waiting, idle=True) == 10.0
    waiting.touch(10.7, [accepted])
    assert waiting.urgent
