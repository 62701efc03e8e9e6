"""FedCompass's groups, computed by hand: the steps of each task, who waits for whom, the updates in each version.

Three participants take 1, 2 and 5 seconds a step. A task has 20 to 100 steps, the first one 20. A group's latest time
is half as far again as its expected time.
"""

from __future__ import annotations

import json

import pytest

from fedmq.coordinator.decisions.commands import Accept, CloseTask, Finish, IssueTask, NewVersion, Withdraw
from fedmq.coordinator.decisions.participants.arrival_groups import ArrivalGroups
from fedmq.coordinator.decisions.participants.participant import Participant
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.coordinator.settings import StepAssignment, StopSettings
from fedmq.coordinator.strategies import FedCompass
from fedmq.coordinator.strategies.math.staleness_weights import Constant
from fedmq.coordinator.strategies.protocol import Arrivals
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench, of, only, parameters

COMPASS = FedCompass(
    num_participants=4, min_steps=20, max_steps=100, first_steps=20, speed_momentum=1.0, staleness=Constant()
)
STEP_S = {"fast": 1.0, "mid": 2.0, "slow": 5.0}


def steps(task: IssueTask) -> int:
    assert task.training.epochs == task.training.max_steps
    return task.training.max_steps


def started(strategy: FedCompass = COMPASS, **run) -> tuple[Bench, dict[str, IssueTask]]:
    """Return a bench after the first updates, which came at 20, 40 and 100 s, and the tasks that followed.

    `fast` and `mid` are in group 2, expected at 120 s and at the latest at 170 s. `slow` is in group 5, expected at
    270 s and at the latest at 355 s.
    """
    bench = Bench(strategy, concurrency=3, lease_s=1e6, participant_timeout_s=1e6, **run)
    tasks = {c.participant_id: c for c in of(IssueTask, bench.hello(*STEP_S))}
    assert [steps(task) for task in tasks.values()] == [20, 20, 20]
    for name, at in (("fast", 20.0), ("mid", 40.0), ("slow", 100.0)):
        commands = bench.update(tasks[name], t=at)
        assert len(only(NewVersion, commands).update_ids) == 1
        tasks[name] = only(IssueTask, commands)
    return bench, tasks


def test_who_comes_first_opens_a_group_and_others_join_it_with_as_many_steps_as_fit() -> None:
    bench, tasks = started()
    assert {name: steps(task) for name, task in tasks.items()} == {
        "fast": 100,  # nobody else is in training: until 20 + 100·1 = 120
        "mid": 40,  # (120 - 40)/2
        "slow": 34,  # 4 until 120 are too few; until fast may be back twice it has (170 + 100·1 - 100)/5
    }
    assert [tasks[name].base_version for name in STEP_S] == [1, 2, 3]
    groups = bench.core.snapshot().scalars["arrival_groups"]["groups"]
    assert {k: (g["expected_s"], g["latest_s"]) for k, g in groups.items()} == {
        "2": (120.0, 170.0),
        "5": (270.0, 355.0),
    }


def test_a_group_makes_its_version_when_all_are_there_and_who_came_first_waits() -> None:
    bench, tasks = started()
    commands = bench.update(tasks["mid"], t=119.0)
    assert of(NewVersion, commands) == of(IssueTask, commands) == []
    assert bench.hello("mid", t=119.5) == []  # a hello frees no participant that waits
    commands = bench.update(tasks["fast"], t=120.0)
    version = only(NewVersion, commands)
    assert (version.version, version.orders, version.weights) == (4, (4, 5), (0.25, 0.25))
    again = {c.participant_id: steps(c) for c in of(IssueTask, commands)}
    # fast cannot join slow's group (150 steps), and opens one until 220; mid has 75 steps until slow's 270, else 50
    assert again == {"fast": 100, "mid": int((270 - 120) / (79 / 40))}
    assert [c.participant_id for c in of(IssueTask, commands)] == ["fast", "mid"]


def test_the_version_is_of_the_group_and_leaves_other_groups_alone() -> None:
    bench, tasks = started()
    before = bench.core.parameters["w"][0]
    assert before == pytest.approx(3 * 0.25)
    slow = only(Accept, bench.update(tasks["slow"], t=101.0))  # much earlier than expected, and alone in its group
    assert slow.group == 5
    bench.update(tasks["mid"], t=119.0, tensors=_value(8.0))
    assert bench.core.parameters["w"][0] == pytest.approx(4 * 0.25)
    bench.update(tasks["fast"], t=120.0, tensors=_value(16.0))
    assert bench.core.parameters["w"][0] == pytest.approx(4 * 0.25 + 24 / 4)


def test_at_its_latest_time_a_group_goes_on_without_those_that_are_late() -> None:
    bench, tasks = started()
    assert bench.core.next_wakeup() is None or bench.core.next_wakeup() > 355
    bench.update(tasks["fast"], t=120.0)
    assert bench.core.next_wakeup() == 170.0
    assert of(NewVersion, bench.tick(169.9)) == []
    commands = bench.tick(170.0)
    assert only(NewVersion, commands).orders == (4,)
    assert [c.participant_id for c in of(IssueTask, commands)] == ["fast"]
    commands = bench.update(tasks["mid"], t=171.0, tensors=_value(8.0))  # late: no version, and a task at once
    assert only(Accept, commands).group is None
    assert of(NewVersion, commands) == []
    task = only(IssueTask, commands)
    assert (task.base_version, steps(task)) == (4, 30)  # beside slow: (270 - 171)/(131/40)
    buffered = bench.core.snapshot().scalars["buffer_ids"]
    assert len(buffered) == 1
    before = bench.core.parameters["w"][0]
    assert of(NewVersion, bench.update(tasks["slow"], t=271.0)) == []
    version = only(NewVersion, bench.tick(355.0))
    assert (version.orders, version.update_ids[0]) == ((5, 6), buffered[0])
    assert bench.core.parameters["w"][0] == pytest.approx(before + (8 + 1) / 4)


def test_an_update_at_the_very_latest_time_is_late_and_time_passes_before_it() -> None:
    bench, tasks = started()
    bench.update(tasks["fast"], t=120.0)
    commands = bench.update(tasks["mid"], t=170.0)
    assert only(NewVersion, commands).version == 4
    assert (only(Accept, commands).group, only(Accept, commands).staleness) == (None, 2)


@pytest.mark.parametrize("way", ["declines", "lapses"])
def test_who_can_no_longer_be_expected_is_waited_for_no_more(way: str) -> None:
    bench, tasks = started(COMPASS)
    bench.update(tasks["fast"], t=120.0)
    if way == "declines":
        commands = bench.decline(tasks["mid"], t=125.0)
        assert of(CloseTask, commands)
    else:
        commands = bench.hello("mid", t=125.0, session="another", accepting=False)
    assert only(NewVersion, commands).orders == (4,)
    if way == "lapses":
        assert only(Accept, bench.update(tasks["mid"], t=126.0)).group is None


def test_a_lost_task_is_repeated_with_the_same_steps_and_its_speed_counts_from_then() -> None:
    bench = Bench(COMPASS, concurrency=1, lease_s=1e6, participant_timeout_s=1e6)
    task = only(IssueTask, bench.hello("a"))
    again = only(IssueTask, bench.hello("a", t=50.0, session="another"))
    assert (again.again, steps(again)) == (True, 20)
    assert steps(only(IssueTask, bench.update(task, t=90.0))) == 100
    assert bench.save().participants["a"].step_s == 2.0


def test_speeds_are_means_in_which_the_newest_counts_most() -> None:
    bench = Bench(FedCompass(num_participants=1, first_steps=10), concurrency=1, lease_s=1e6, participant_timeout_s=1e6)
    task = only(IssueTask, bench.hello("a"))
    task = only(IssueTask, bench.update(task, t=10.0))
    assert steps(task) == 100
    bench.update(task, t=10.0 + 120.0)
    assert bench.save().participants["a"].step_s == pytest.approx(0.1 * 1.0 + 0.9 * 1.2)


def test_the_run_ends_at_its_last_version_and_not_after_it() -> None:
    bench, tasks = started(stop=StopSettings(max_versions=4))
    bench.update(tasks["fast"], t=120.0)
    bench.update(tasks["slow"], t=121.0)  # makes version 4 alone
    assert bench.core.version == 4
    assert bench.core.finished == "max_versions"
    assert bench.core.next_wakeup() is None


def test_two_versions_that_are_due_in_one_step_do_not_pass_the_last_one() -> None:
    bench, tasks = started(stop=StopSettings(max_versions=4))
    bench.update(tasks["fast"], t=120.0)
    commands = bench.update(tasks["slow"], t=200.0)  # its group is over, and so is that of fast since 170
    assert only(NewVersion, commands).orders == (4,)
    assert only(Accept, commands).order == 5
    assert bench.core.finished == "max_versions"
    assert len(bench.core.snapshot().scalars["buffer_ids"]) == 1


def test_of_two_groups_that_are_over_the_one_that_was_to_end_first_does() -> None:
    members = {name: Participant(name, 0, "s", 1, (), True, True, 0.0, step_s=1.0) for name in "abcd"}
    groups = ArrivalGroups(Arrivals(1, 10, 1, 1.5, 1.0), members.get)
    for name, at in (("a", 0.0), ("b", 2.0), ("c", 9.5), ("d", 9.5)):
        groups.assign(members[name], f"task-{name}", at)
    tasks = {name: HeldTask(f"task-{name}", 1, name, 0, 0.0, 99.0) for name in "abcd"}
    assert [groups.steps(f"task-{name}") for name in "abcd"] == [
        10,
        8,
        10,
        10,
    ]  # b with a until 10, d with c until 19.5
    assert groups.arrive(members["c"], tasks["c"], "update-c", 1, 12.0) == 2
    assert groups.arrive(members["a"], tasks["a"], "update-a", 2, 14.0) == 1
    assert groups.next_due() == 15.0
    assert groups.close(14.9) is None
    assert [(c.group, c.updates) for c in iter(lambda: groups.close(30.0), None)] == [
        (1, {"update-a": 2}),
        (2, {"update-c": 1}),
    ]
    assert not any(p.waits for p in members.values())


def test_who_waits_may_be_the_fastest_of_its_group() -> None:
    bench, tasks = started()
    bench.update(tasks["fast"], t=120.0)
    task = only(IssueTask, bench.update(tasks["slow"], t=150.0))  # its 34 steps took 50 s
    assert steps(task) == int((170 + 100 * STEP_S["fast"] - 150) / (50 / 34)) == 81


def test_a_group_that_all_have_left_is_over() -> None:
    members = {name: Participant(name, 0, "s", 1, (), True, True, 0.0, step_s=1.0) for name in "ab"}
    groups = ArrivalGroups(Arrivals(1, 10, 1, 1.5, 1.0), members.get)
    groups.assign(members["a"], "task-a", 0.0)
    groups.leave("task-a", open_still=True)
    assert groups.scalars()["groups"] == {}
    groups.assign(members["b"], "task-b", 12.0)
    assert groups.steps("task-b") == 10


def test_a_groups_version_withdraws_lapsed_tasks_that_are_too_stale_by_then() -> None:
    bench, tasks = started(max_staleness=2)
    lapsed = tasks["fast"]
    assert lapsed.base_version == 1
    assert of(Withdraw, bench.hello("fast", t=101.0, session="another", accepting=False)) == []
    commands = bench.update(tasks["mid"], t=119.0)
    assert only(NewVersion, commands).version == 4
    assert only(Withdraw, commands).task_id == lapsed.task_id


def test_who_can_make_less_than_the_fewest_steps_makes_these_and_who_is_alone_may_be_late_too() -> None:
    members = {name: Participant(name, 0, "s", 1, (), True, True, 0.0) for name in ("fast", "slow")}
    members["fast"].step_s, members["slow"].step_s = 1.0, 20.0
    groups = ArrivalGroups(Arrivals(3, 10, 1, 1.5, 1.0), members.get)
    groups.assign(members["fast"], "task-fast", 0.0)
    groups.assign(members["slow"], "task-slow", 0.0)
    assert [groups.steps("task-fast"), groups.steps("task-slow")] == [10, 3]  # not (15 + 10·1)/20
    assert groups.arrive(members["fast"], HeldTask("task-fast", 1, "fast", 0, 0.0, 99.0), "u", 1, 15.0) is None
    assert list(groups.scalars()["groups"]) == ["2"]
    assert groups.next_due() is None


@pytest.mark.parametrize("after", range(8))
def test_a_crash_in_the_middle_of_a_group_changes_nothing(after: int) -> None:
    def play(restart: int | None) -> tuple[list, dict, list[float]]:
        bench, tasks = started()
        said = []
        story = [("mid", 119.0), ("fast", 120.0), ("fast", 230.0), ("slow", 268.0), ("tick", 300.0), ("mid", 450.0),
                 ("fast", 460.0), ("tick", 700.0)]  # fmt: skip
        for number, (who, at) in enumerate(story):
            if number == restart:
                bench.restore(bench.save())
            commands = bench.tick(at) if who == "tick" else bench.update(tasks[who], t=at, tensors=_value(at))
            tasks |= {c.participant_id: c for c in of(IssueTask, commands)}
            said.append(commands)
        return said, bench.save().snapshot.scalars, bench.core.parameters["w"].tolist()

    straight, resumed = play(None), play(after)
    assert sum(len(of(NewVersion, commands)) for commands in straight[0]) >= 3
    assert any(c.group is None for commands in straight[0] for c in of(Accept, commands))
    assert resumed == straight


def test_a_saved_state_stays_as_it_is_when_a_core_goes_on_from_it() -> None:
    """Another core may have to start from the same state."""
    bench, tasks = started()
    bench.update(tasks["mid"], t=119.0)
    saved = bench.save()
    before = json.dumps(saved.snapshot.scalars)
    assert only(NewVersion, bench.restore(saved).update(tasks["fast"], t=120.0)).orders == (4, 5)
    assert json.dumps(saved.snapshot.scalars) == before


def test_settings_that_say_something_else_of_the_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"run.steps: leave it out: fedcompass says how many steps"):
        Bench(COMPASS, steps=StepAssignment(target_s=1.0))
    with pytest.raises(ConfigError, match=r"training.max_steps: leave it out"):
        Bench(COMPASS, training=TrainingConfig(max_steps=5))


def test_a_finished_run_says_so_once() -> None:
    bench, tasks = started(stop=StopSettings(max_updates=4))
    commands = bench.update(tasks["mid"], t=119.0)
    assert only(Finish, commands).reason == "max_updates"
    assert of(NewVersion, bench.tick(1000.0)) == []


def _value(value: float) -> Parameters:
    return parameters(value, value)
