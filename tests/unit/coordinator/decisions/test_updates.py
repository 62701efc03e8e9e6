"""The verdict on an update: exactly one, with the right reason."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, CloseTask, Discard, IssueTask, NewVersion
from fedmq.coordinator.decisions.events import ParticipantSeen, PoisonArrived, StopRequested
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.schemas.messages import Hello
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench, of, only, parameters


def bench_with_task(**run):
    bench = Bench(**run)
    return bench, only(IssueTask, bench.hello("a"))


def discarded(commands):
    return only(Discard, commands).reason


def test_a_good_update_is_accepted_with_its_staleness_weight_and_order():
    bench, task = bench_with_task()
    commands = bench.update(task)
    accept = only(Accept, commands)
    assert (accept.staleness, accept.client_weight, accept.order) == (0, 1.0, 1)
    assert of(Discard, commands) == []


def test_the_commands_come_in_the_order_of_decision_and_tasks_last():
    bench, task = bench_with_task(strategy=FedAsync())
    assert [type(c) for c in bench.update(task)] == [Accept, NewVersion, IssueTask]


def test_a_version_names_its_updates_and_their_weights_and_new_tasks_start_from_it():
    bench = Bench(FedBuff(buffer_size=2), concurrency=2)
    first, second = of(IssueTask, bench.hello("a", "b"))
    assert first.base_version == 0
    bench.update(first, tensors=parameters(1.0, 0.0))
    commands = bench.update(second, tensors=parameters(0.0, 2.0))
    version = only(NewVersion, commands)
    assert version.version == bench.core.version == 1
    assert len(version.update_ids) == 2
    assert version.weights == (0.5, 0.5)
    assert only(IssueTask, commands).base_version == 1
    np.testing.assert_array_equal(bench.core.parameters["w"], np.array([0.5, 1.0], np.float32))


def test_with_a_buffer_the_freed_participant_gets_a_task_of_the_current_version_at_once():
    bench, task = bench_with_task(strategy=FedBuff(buffer_size=10))
    again = only(IssueTask, bench.update(task))
    assert (again.participant_id, again.base_version) == ("a", 0)


def test_the_second_copy_is_a_duplicate_before_the_commit_after_it_and_after_a_restart():
    bench, task = bench_with_task()
    bench.update(task)
    assert discarded(bench.update(task)) == "duplicate"
    bench.commit()
    assert discarded(bench.update(task)) == "duplicate"
    bench.restart()
    assert discarded(bench.update(task)) == "duplicate"
    assert bench.core.accepted == 1


def test_an_update_that_was_not_committed_is_accepted_when_it_comes_again_after_a_crash():
    bench, task = bench_with_task()
    saved = bench.save()
    first = only(Accept, bench.update(task))
    bench.restore(saved)
    again = only(Accept, bench.update(task))
    assert (again.order, again.client_weight, again.staleness) == (first.order, first.client_weight, first.staleness)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"run_id": "other"}, "wrong_run"),
        ({"task_id": "abcdef01-99"}, "unknown_task"),
        ({"task_id": "ffffffff-1"}, "unknown_task"),
        ({"participant_id": "stranger"}, "unknown_participant"),
        ({"participant_id": "b"}, "unknown_participant"),
    ],
)
def test_an_update_that_is_not_the_tasks_own_leaves_the_task_open(lie, reason):
    bench, task = bench_with_task()
    bench.hello("b")
    assert discarded(bench.update(task, **lie)) == reason
    assert only(Accept, bench.update(task)).order == 1


def test_another_participant_cannot_repeat_an_update_that_was_counted():
    bench, task = bench_with_task()
    bench.hello("b")
    bench.update(task)
    assert discarded(bench.update(task, participant_id="b")) == "unknown_participant"


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"update_id": "somebody-elses"}, "malformed"),
        ({"base_version": 3}, "wrong_base_version"),
        ({"payload": "none"}, "wrong_payload"),
        ({"tensors": parameters(1.0, 2.0, 3.0)}, "wrong_shape"),
        ({"tensors": Parameters({"w": np.zeros(2, np.float64)})}, "wrong_shape"),
        ({"tensors": Parameters({"v": np.zeros(2, np.float32)})}, "wrong_shape"),
    ],
)
def test_an_unusable_update_closes_its_task_and_its_participant_waits(lie, reason):
    bench, task = bench_with_task()
    commands = bench.update(task, **lie)
    assert discarded(commands) == reason
    assert only(CloseTask, commands).state == "discarded"
    assert of(IssueTask, commands) == []
    assert bench.core.tasks_out == 0
    assert only(IssueTask, bench.tick(30.0)).participant_id == "a"


def test_a_wrong_shape_is_told_with_the_difference():
    bench, task = bench_with_task()
    detail = only(Discard, bench.update(task, tensors=parameters(1.0))).detail
    assert "[1]" in detail
    assert "[2]" in detail


def test_integer_tensors_are_not_part_of_an_update():
    model = Parameters({"w": np.zeros(2, np.float32), "steps": np.zeros((), np.int64)}, {"steps"})
    bench, task = bench_with_task(model=model)
    assert only(Accept, bench.update(task)).update.task_id == task.task_id


def test_too_stale_is_discarded_with_its_staleness_and_its_participant_is_asked_again():
    bench = Bench(FedAsync(), concurrency=2, max_staleness=1)
    slow, task = of(IssueTask, bench.hello("a", "b"))
    for _ in range(2):
        task = only(IssueTask, bench.update(task))
    commands = bench.update(slow)
    discard = only(Discard, commands)
    assert (discard.reason, discard.staleness) == ("too_stale", 2)
    assert only(CloseTask, commands) == CloseTask(slow.task_id, "discarded", "too_stale")
    assert only(IssueTask, commands).participant_id == "a"
    assert discarded(bench.update(slow)) == "duplicate"


def test_after_the_end_updates_are_discarded_as_run_finished_but_duplicates_stay_duplicates():
    bench = Bench(concurrency=2)
    first, second = of(IssueTask, bench.hello("a", "b"))
    bench.update(first)
    bench.step(StopRequested())
    assert discarded(bench.update(second)) == "run_finished"
    assert discarded(bench.update(first)) == "duplicate"


def test_poison_is_discarded_and_frees_the_slot_of_its_task():
    bench, task = bench_with_task()
    commands = bench.step(PoisonArrived(7, "not_finite", "NaN", task.task_id))
    assert only(Discard, commands) == Discard(7, "not_finite", "NaN", None)
    assert only(CloseTask, commands).task_id == task.task_id
    assert bench.core.tasks_out == 0


@pytest.mark.parametrize(
    ("said_hello", "sent", "shown"),
    [("a", "a", True), ("all", "all", True), ("a", "b", False), ("all", "b", False), ("a", None, False),
     (None, None, False)],
)  # fmt: skip
def test_what_is_from_a_task_s_participant_is_shown_by_the_broker_s_user_alone(said_hello, sent, shown):
    bench = Bench(concurrency=1)
    hello = Hello(participant_id="a", session_id="s", num_examples=1)
    task = only(IssueTask, bench.step(ParticipantSeen(hello, said_hello)))
    assert bench.core.is_from_owner(task.task_id, sent) is shown
    assert not bench.core.is_from_owner("nothing", sent)


def test_a_user_that_bears_a_participant_s_name_is_that_participant():
    bench = Bench(concurrency=1)
    hello = Hello(participant_id="a", session_id="s", num_examples=1)
    for user in ("all", "b", None):
        bench.step(ParticipantSeen(hello, user))
        assert [bench.core.stranger("a", other) for other in ("all", "b", "a", None)] == [None] * 4
    bench.step(ParticipantSeen(hello, "a"))
    assert bench.core.stranger("a", "a") is None
    assert all("'a'" in (bench.core.stranger("a", other) or "") for other in ("all", "b", None))
    assert bench.core.stranger("nobody", "b") is None
    bench.restart()
    assert bench.core.stranger("a", "b"), "also after a restart"


def test_poison_without_a_task_is_only_discarded():
    bench, _ = bench_with_task()
    assert bench.step(PoisonArrived(7, "malformed", "?")) == [Discard(7, "malformed", "?", None)]
    assert bench.core.discarded == {"malformed": 1}


def test_client_weights_have_the_mean_one_over_participants_with_an_accepted_update():
    bench = Bench(concurrency=2, client_weights="examples")
    small, large = of(IssueTask, bench.hello("a", num_examples=10) + bench.hello("b", num_examples=30))
    bench.hello("c", num_examples=2**53)
    assert only(Accept, bench.update(small, num_examples=10)).client_weight == 1.0
    assert only(Accept, bench.update(large, num_examples=30)).client_weight == 1.5


def test_a_diverged_loss_can_be_written_down():
    bench, task = bench_with_task(client_weights="quality")
    bench.update(task, metrics={"loss": float("nan")})
    record = bench.commit().participants["a"]
    assert np.isfinite(record.client_loss)
