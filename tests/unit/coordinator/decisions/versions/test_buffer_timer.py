"""A buffer that does not fill: its timeout makes a version of what is there."""

import pytest

from fedmq.coordinator.decisions.commands import Accept, DropBuffer, IssueTask, NewVersion
from fedmq.coordinator.decisions.events import BufferFailed
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import Area, FedBuff, FedNova
from fedmq.coordinator.strategies.math.staleness_weights import Constant
from fedmq.coordinator.strategies.protocol import buffer_timeout
from tests.unit.coordinator.decisions.harness import Bench, of, only, parameters


def timed(**changes):
    values = {"buffer_size": 4, "buffer_timeout_s": 10.0, "staleness": Constant()}
    run = {"concurrency": 4, "lease_s": 1000.0, "participant_timeout_s": 1e6, "decline_backoff_s": 0.0}
    return Bench(FedBuff(**(values | changes)), **run)


def tasks_of(bench, *names):
    return of(IssueTask, bench.hello(*names))


def test_the_time_counts_from_the_first_accepted_update_and_makes_a_version_of_those_that_are_there():
    bench = timed()
    first, second, third = tasks_of(bench, "a", "b", "c")
    assert bench.core.next_wakeup() != 10.0, "an empty buffer has no time"
    bench.update(first, t=5.0, tensors=parameters(1.0, 2.0))
    assert bench.core.next_wakeup() == 15.0
    bench.update(second, t=14.0, tensors=parameters(3.0, 6.0))
    assert bench.core.next_wakeup() == 15.0, "the second update begins no new time"
    assert of(NewVersion, bench.tick(14.999)) == []
    made = only(NewVersion, bench.tick(15.0))
    assert (made.by_timeout, made.weights, len(made.update_ids)) == (True, (0.5, 0.5), 2)
    assert bench.core.parameters["w"].tolist() == [2.0, 4.0], "a mean over the two that are there"
    assert bench.core.next_wakeup() != 25.0
    bench.update(third, t=40.0)
    assert bench.core.next_wakeup() == 50.0, "the next buffer has a time of its own"


def test_an_update_at_the_very_end_of_the_time_opens_the_next_buffer():
    bench = timed()
    first, second = tasks_of(bench, "a", "b")
    bench.update(first, t=1.0)
    commands = bench.update(second, t=11.0)
    assert only(NewVersion, commands).by_timeout
    assert only(Accept, commands).staleness == 1
    assert bench.core.next_wakeup() == 21.0


def test_with_too_few_the_buffer_waits_on_and_the_update_that_is_enough_makes_the_version_at_once():
    bench = timed(min_updates=2)
    first, second = tasks_of(bench, "a", "b")
    bench.update(first, t=1.0)
    assert bench.core.next_wakeup() != 11.0, "nothing would happen then"
    assert of(NewVersion, bench.tick(11.0)) == of(NewVersion, bench.tick(500.0)) == []
    made = only(NewVersion, bench.update(second, t=501.0))
    assert (made.by_timeout, made.weights) == (True, (0.5, 0.5))


def test_a_full_buffer_makes_its_version_as_it_always_does_and_the_next_one_has_its_own_time():
    bench = timed(buffer_size=2)
    first, second, third = tasks_of(bench, "a", "b", "c")
    bench.update(first, t=1.0)
    assert not only(NewVersion, bench.update(second, t=2.0)).by_timeout
    bench.update(third, t=9.0)
    assert of(NewVersion, bench.tick(11.0)) == []
    assert only(NewVersion, bench.tick(19.0)).by_timeout


def test_a_buffer_of_one_update_is_enough_for_a_federation_of_one():
    bench = timed()
    (task,) = tasks_of(bench, "a")
    commands = bench.update(task, t=0.0)
    for at in (10.0, 20.0, 30.0):
        task = only(IssueTask, commands)
        assert only(NewVersion, bench.tick(at)).weights == (1.0,)
        commands = bench.update(task, t=at)
    assert bench.core.version == 3


@pytest.mark.parametrize("since_save_s", [0.0, 4.0])
def test_after_a_restart_the_time_goes_on_by_run_time(since_save_s):
    bench = timed()
    first, _ = tasks_of(bench, "a", "b")
    bench.update(first, t=5.0)
    bench.tick(5.0 + since_save_s)
    bench.restart()
    assert bench.core.next_wakeup() == 15.0
    assert of(NewVersion, bench.tick(14.9)) == []
    assert only(NewVersion, bench.tick(15.0)).by_timeout


def test_a_timeout_that_is_switched_on_counts_from_that_start():
    bench = timed(buffer_timeout_s=None)
    first, second, third = tasks_of(bench, "a", "b", "c")
    bench.update(first, t=5.0, tensors=parameters(1.0, 2.0))
    bench.tick(100.0)
    bench.strategy = timed().strategy
    assert of(NewVersion, bench.restart()) == []
    assert bench.core.next_wakeup() == 110.0
    bench.update(second, t=104.0, tensors=parameters(3.0, 6.0))
    bench.restart()
    made = only(NewVersion, bench.tick(110.0))
    assert (made.by_timeout, len(made.update_ids)) == (True, 2)
    bench.update(third, t=120.0)
    assert bench.core.next_wakeup() == 130.0


def test_a_restart_from_any_moment_goes_on_to_the_same_bits():
    def run(restarts):
        bench = timed(buffer_size=3, min_updates=2)
        first, second, third = tasks_of(bench, "a", "b", "c")
        steps = [
            lambda: bench.update(first, t=1.0, tensors=parameters(0.1, 0.2)),
            lambda: bench.tick(11.0),
            lambda: bench.update(second, t=12.0, tensors=parameters(0.3, 0.7)),
            lambda: bench.update(third, t=13.0, tensors=parameters(0.9, 0.4)),
            lambda: bench.tick(23.0),
        ]
        made = []
        for number, step in enumerate(steps):
            if number in restarts:
                made += bench.restart()
            made += step()
        return of(NewVersion, made), bench.core.parameters["w"].tobytes()

    straight = run(())
    assert [version.by_timeout for version in straight[0]] == [True]
    assert all(run((number,)) == straight for number in range(5))
    assert run(range(5)) == straight


def test_a_buffer_that_was_lost_takes_its_time_with_it():
    bench = timed()
    first, second = tasks_of(bench, "a", "b")
    bench.update(first, t=1.0)
    bench.restore(bench.save())
    only(DropBuffer, bench.step(BufferFailed("overflow", "not finite"), 11.0))
    assert of(NewVersion, bench.tick(12.0)) == []
    bench.update(second, t=20.0)
    assert bench.core.next_wakeup() == 30.0


def test_a_run_that_is_over_makes_no_version_by_a_timeout():
    bench = Bench(timed().strategy, stop=StopSettings(max_updates=1))
    (task,) = tasks_of(bench, "a")
    bench.update(task, t=1.0)
    assert bench.core.next_wakeup() is None
    assert of(NewVersion, bench.tick(100.0)) == []


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        (FedNova(buffer_size=5, buffer_timeout_s=10.0, min_updates=2), (0.5, 0.5)),
        (Area(num_participants=4, buffer_size=5, buffer_timeout_s=10.0), (0.25, 0.25)),
    ],
)
def test_the_others_that_stand_on_a_buffer_have_it_too(strategy, weights):
    bench = Bench(strategy, concurrency=2, lease_s=1000.0)
    first, second = tasks_of(bench, "a", "b")
    bench.update(first, t=1.0)
    bench.update(second, t=2.0)
    made = only(NewVersion, bench.tick(11.0))
    assert (made.by_timeout, made.weights) == (True, weights)


def test_a_strategy_without_a_timeout_has_no_timer_and_an_attribute_of_that_name_is_none():
    class Mine(FedBuff):
        buffer_timeout = 60.0

    assert buffer_timeout(FedBuff()) is buffer_timeout(Mine()) is None
    bench = Bench(FedBuff(buffer_size=4), concurrency=4, lease_s=1000.0)
    (task,) = tasks_of(bench, "a")
    bench.update(task, t=1.0)
    assert bench.save().snapshot.scalars["buffer_opened_s"] is None
    assert of(NewVersion, bench.tick(1e5)) == []
