"""Participants that keep the method's memory: the core knows the mark of their last accepted update, nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, Discard, IssueTask, Withdraw
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies import Area, FedBuff, Scaffold
from fedmq.schemas.errors import AppError, ConfigError
from fedmq.schemas.messages import TrainingConfig, Uplink
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench, of, only

ALL = tuple(METHODS)
STOP = StopSettings(max_versions=9)


def bench(**settings):
    return Bench(Area(num_participants=4, memory="participant"), concurrency=1, **settings)


def test_an_update_from_another_memory_than_the_last_accepted_one_left_is_discarded():
    one = bench()
    first = only(IssueTask, one.hello("a", replies=ALL))
    second = only(IssueTask, one.update(first, next_memory="m1"))
    lost = one.update(second, next_memory="m2")
    assert only(Discard, lost).reason == "wrong_memory"
    assert "from the memory none, the last accepted one left m1" in only(Discard, lost).detail
    third = only(IssueTask, one.hello("a", replies=ALL, session="s1"))
    assert of(Accept, one.update(third, memory="m1", next_memory="m3"))


def test_an_update_that_says_nothing_of_its_memory_is_discarded():
    one = bench()
    assert only(Discard, one.update(only(IssueTask, one.hello("a", replies=ALL)))).reason == "wrong_memory"


def test_the_mark_survives_a_restart():
    one = bench()
    one.update(only(IssueTask, one.hello("a", replies=ALL)), next_memory="m1")
    one.restart()
    task = only(IssueTask, one.hello("a", replies=ALL, session="s1"))
    assert of(Accept, one.update(task, memory="m1", next_memory="m2"))


def test_of_two_updates_from_one_memory_one_is_taken():
    one = bench(lease_s=10.0)
    first = only(IssueTask, one.hello("a", replies=ALL))
    one.tick(11.0)  # lapsed: somebody may be training it
    second = only(IssueTask, one.hello("a", replies=ALL, session="s1"))
    assert of(Accept, one.update(second, next_memory="m2"))
    assert only(Discard, one.update(first, next_memory="m1")).reason == "wrong_memory"


def test_methods_without_a_memory_take_no_notice_of_marks():
    one = Bench(FedBuff(buffer_size=1), concurrency=1)
    first = only(IssueTask, one.hello("a"))
    second = only(IssueTask, one.update(first, next_memory="m1"))
    assert of(Accept, one.update(second, memory="another"))


def test_who_cannot_reply_as_the_method_needs_gets_no_task():
    assert of(IssueTask, bench().hello("a")) == []


def test_who_waits_for_a_verdict_gets_one_two_leases_after_its_task():
    one = bench(lease_s=10.0)
    task = only(IssueTask, one.hello("a", replies=ALL))
    one.tick(11.0)
    waiting = {"replies": ALL, "holds": [task.task_id], "accepting": False}
    assert of(Withdraw, one.hello("a", t=19.0, **waiting)) == []
    assert only(Withdraw, one.hello("a", t=20.0, **waiting)).task_id == task.task_id


def test_where_nobody_remembers_a_lapsed_task_stays_welcome():
    one = Bench(FedBuff(), concurrency=1, lease_s=10.0)
    task = only(IssueTask, one.hello("a"))
    one.tick(11.0)
    assert of(Withdraw, one.hello("a", t=99.0, holds=[task.task_id])) == []


def core(strategy, training=None, model=None, **settings):
    run = RunSettings(run_id="run", stop=STOP, **settings)
    parameters = model or Parameters({"x": np.zeros(2), "n": np.array(1)}, {"n"})
    return Core(run, strategy, training or TrainingConfig(learning_rate=0.1), parameters, "uid")


def test_a_task_of_scaffold_carries_the_control_variates_beside_the_parameters():
    made = core(Scaffold(num_participants=2))
    assert {name: a.tolist() for name, a in made.task_tensors.items()} == {"x": [0, 0], "n": 1, "control:x": [0, 0]}
    assert made.task_tensors is made.task_tensors
    plain = core(FedBuff())
    assert plain.task_tensors is plain.parameters


@pytest.mark.parametrize(
    ("refused", "match"),
    [
        (lambda: core(Scaffold(num_participants=2), TrainingConfig()), r"training\.learning_rate: missing"),
        (
            lambda: core(Area(num_participants=2, memory="participant"), client_weights="examples"),
            r"run\.client_weights: got 'examples', allowed: 'equal'",
        ),
    ],
)
def test_settings_that_a_method_cannot_do_with_are_refused(refused, match):
    with pytest.raises(ConfigError, match=match):
        refused()


def test_a_model_whose_names_look_like_a_groups_is_refused_at_the_start():
    with pytest.raises(AppError, match="give it another name"):
        _ = core(Scaffold(num_participants=2), model=Parameters({"control:x": np.zeros(1)})).task_tensors


FED_BACK = Uplink(codec="topk", error_feedback=True)
HAS_IT = {"codecs": ("topk",)}


def coded(uplink=FED_BACK, **settings):
    return Bench(FedBuff(buffer_size=1), uplink=uplink, **({"concurrency": 1} | settings))


def test_an_update_is_asked_for_in_the_codec_if_its_participant_has_it():
    one = coded(Uplink(codec="int8", lossless="zstd"), concurrency=3)
    assert only(IssueTask, one.hello("a", codecs=("int8", "zstd"))).coded
    assert not only(IssueTask, one.hello("b", codecs=("int8",))).coded
    assert not only(IssueTask, one.hello("c")).coded
    assert not only(IssueTask, Bench().hello("a", codecs=("int8", "zstd"))).coded


def test_what_a_participant_can_send_survives_a_restart():
    one = coded()
    one.hello("a", **HAS_IT, accepting=False)
    one.restart()
    assert one.core.participants == 1
    assert only(IssueTask, one.hello("a", **HAS_IT)).coded


def test_a_soft_memory_may_be_lost_and_of_two_updates_from_one_a_single_one_is_taken():
    one = coded(lease_s=10.0)
    first = only(IssueTask, one.hello("a", **HAS_IT))
    second = only(IssueTask, one.update(first, next_memory="m1"))
    third = only(IssueTask, one.update(second, memory="m1", next_memory="m2"))
    refused = only(Discard, one.update(third, memory="m1", next_memory="m3"))
    assert refused.reason == "wrong_memory"
    assert "the memory was lost, and is begun anew" in refused.detail
    lost = only(IssueTask, one.hello("a", **HAS_IT, session="s1"))  # without a back-off: it is nobody's fault
    assert of(Accept, one.update(lost, next_memory="m4"))


def test_a_plain_update_leaves_the_soft_memory_as_it_is():
    one = coded()
    task = only(IssueTask, one.update(only(IssueTask, one.hello("a", **HAS_IT)), next_memory="m1"))
    task = only(IssueTask, one.update(task))
    assert of(Accept, one.update(task, memory="m1", next_memory="m2"))


def test_who_waits_for_the_verdict_on_a_fed_back_update_gets_one():
    one = coded(lease_s=10.0)
    task = only(IssueTask, one.hello("a", **HAS_IT))
    one.tick(11.0)
    assert (
        only(Withdraw, one.hello("a", t=20.0, holds=[task.task_id], accepting=False, **HAS_IT)).task_id == task.task_id
    )
