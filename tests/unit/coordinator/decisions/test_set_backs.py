"""A core that goes on from an older state than its participants know: a folder that was restored from a backup."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, Discard, DropBuffer, IssueTask, SayHello, TellSetBack, Withdraw
from fedmq.coordinator.decisions.events import Started
from fedmq.coordinator.decisions.failures import drops_in
from fedmq.coordinator.decisions.tasks.names import TaskNames
from fedmq.coordinator.strategies import Area, FedAvg, FedBuff, Scaffold
from fedmq.coordinator.strategies.ca2fl import Ca2fl
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedcompass import FedCompass
from fedmq.schemas.messages import TrainingConfig, Uplink
from fedmq.schemas.methods import METHODS
from fedmq.schemas.parameters import Parameters
from tests.unit.coordinator.decisions.harness import Bench, of, only, parameters

ALL = tuple(METHODS)
FIRST = TaskNames("", "k" * 32, "00000001")


def bench(strategy=None, **settings):
    return Bench(strategy or FedBuff(buffer_size=1), naming=FIRST, **({"concurrency": 1} | settings))


def go_back(one, saved, nonce="00000002"):
    """Restore a backup, as a coordinator of a new start. Return the commands of its first step."""
    one.naming = replace(FIRST, key="x" * 32, nonce=nonce)  # the run keeps its own key
    one.restore(saved)
    return one.step(Started())


def test_no_id_is_given_twice_after_a_restore():
    one = bench()
    task = only(IssueTask, one.hello("a"))
    saved = one.save()
    lost = only(IssueTask, one.update(task))
    go_back(one, saved)
    again = only(IssueTask, one.update(task))
    assert (again.seq, lost.seq) == (2, 2)
    assert again.task_id != lost.task_id
    assert again.training == lost.training


def test_a_participant_that_is_done_with_the_open_task_gets_another_at_once():
    one = bench()
    task = only(IssueTask, one.hello("a"))
    saved = one.save()
    one.update(task)  # and its receipt: the participant does not train it again
    go_back(one, saved)
    commands = one.hello("a", t=0.1, last_task=task.task_id)
    assert only(IssueTask, commands).again is False
    told = only(TellSetBack, commands).set_back
    assert (told.version, told.task, told.lost_version, told.anew) == (0, 1, None, False)
    assert "a participant is done with a task that was open in it; what was made of updates since" in told.told()


def test_a_task_that_is_proved_to_be_the_runs_shows_what_was_lost():
    one = bench(concurrency=2)
    tasks = of(IssueTask, one.hello("a", "b"))
    saved = one.save()
    second = only(IssueTask, one.update(tasks[0]))
    third = only(IssueTask, one.update(second))
    go_back(one, saved)
    commands = one.hello("a", last_task=second.task_id, holds=[third.task_id], accepting=False)
    told = only(TellSetBack, commands)
    assert told.first
    assert told.set_back.told() == (
        "the folder was restored from a backup, or is a copy: it went on with version 0 after 2 tasks; participants "
        "know version 2 and task 4; versions 1 to 2 at least are lost, and the updates in them"
    )
    assert one.core.set_backs == (told.set_back,)
    assert of(IssueTask, commands) == []  # a trains a task that is withdrawn, and b said nothing yet
    assert only(IssueTask, one.hello("a")).task_id.startswith(one.core.snapshot().scalars["task_names"]["uid"])
    assert of(Accept, one.update(tasks[1]))  # it lapsed, and is welcome: b may just have finished it


def test_more_is_told_when_more_is_known_and_nothing_twice():
    one = bench(concurrency=2)
    first, _ = of(IssueTask, one.hello("a", "b"))
    saved = one.save()
    third = only(IssueTask, one.update(first))
    fourth = only(IssueTask, one.update(third))
    go_back(one, saved)
    assert only(TellSetBack, one.hello("a", last_task=third.task_id)).set_back.lost_version == 1
    more = only(TellSetBack, one.hello("a", last_task=fourth.task_id))
    assert (more.first, more.set_back.lost_version, more.set_back.lost_task) == (False, 2, 4)
    assert of(TellSetBack, one.hello("a", last_task=fourth.task_id)) == []
    assert len(one.core.set_backs) == 1


def test_an_update_of_a_lost_task_is_discarded_as_such_and_its_participant_asked_again():
    one = bench(FedBuff(buffer_size=1), concurrency=1)
    first = only(IssueTask, one.hello("a"))
    saved = one.save()
    lost = only(IssueTask, one.update(first))
    go_back(one, saved)
    commands = one.update(lost)
    assert only(Discard, commands).reason == "set_back"
    assert only(TellSetBack, commands).set_back.lost_version == 1
    assert only(IssueTask, commands).participant_id == "a"
    assert (one.core.accepted, one.core.discarded) == (0, {"set_back": 1})


def test_an_update_of_a_participant_that_joined_since_is_discarded_as_such():
    one = bench(concurrency=2)
    one.hello("a")
    saved = one.save()
    lost = only(IssueTask, one.hello("b"))
    go_back(one, saved)
    commands = one.update(lost)
    assert only(Discard, commands).reason == "set_back"
    assert of(TellSetBack, commands)


def test_a_made_up_id_shows_nothing():
    one = bench()
    task = only(IssueTask, one.hello("a"))
    made_up = task.task_id.replace("-1.", "-99.")
    assert only(Discard, one.update(task, task_id=made_up)).reason == "unknown_task"
    assert of(TellSetBack, one.hello("a", last_task=made_up, holds=[task.task_id])) == []
    assert of(TellSetBack, one.hello("a", last_task="abcdef01-99", holds=[task.task_id])) == []
    assert one.core.set_backs == ()


def test_an_ordinary_restart_shows_nothing():
    one = bench(concurrency=2)
    first, second = of(IssueTask, one.hello("a", "b"))
    third = only(IssueTask, one.update(first))
    go_back(one, one.save())
    one.hello("a", last_task=first.task_id, holds=[third.task_id])
    assert of(IssueTask, one.hello("b", holds=()))[0].again is False  # its base has moved on
    assert of(Accept, one.update(third))
    assert of(Accept, one.update(second))
    assert one.core.set_backs == ()


def gone_back():
    """Return a bench that went back to what it saved, what that was, and a task that it issued after that."""
    one = bench(concurrency=2)
    first, _ = of(IssueTask, one.hello("a", "b"))
    saved = one.save()
    lost = only(IssueTask, one.update(first))
    go_back(one, saved)
    return one, saved, lost


def test_a_second_restart_does_not_notice_the_same_loss_again():
    one, _, lost = gone_back()
    one.hello("a", last_task=lost.task_id)
    go_back(one, one.save(), nonce="00000003")
    assert len(one.core.set_backs) == 1
    one.hello("a", last_task=lost.task_id)
    assert only(Discard, one.update(lost)).reason == "set_back"
    assert len(one.core.set_backs) == 1


def test_a_backup_that_is_restored_twice_is_noticed_twice():
    one, saved, lost = gone_back()
    task = only(IssueTask, one.hello("a", last_task=lost.task_id))
    go_back(one, saved, nonce="00000003")
    found = only(TellSetBack, one.hello("a", last_task=task.task_id))
    assert (found.set_back.lost_task, found.first) == (3, True)


def test_a_ledger_of_an_older_fedmq_gets_a_key_and_keeps_its_open_tasks():
    one = Bench(FedBuff(buffer_size=1), concurrency=1)
    task = only(IssueTask, one.hello("a"))
    assert task.task_id == "abcdef01-1"
    saved = one.save()
    older = {k: v for k, v in saved.snapshot.scalars.items() if k not in ("task_names", "set_backs")}
    go_back(one, replace(saved, snapshot=replace(saved.snapshot, scalars=older)))
    following = only(IssueTask, one.update(task))
    assert following.task_id.startswith("abcdef01-2.1.00000002")
    assert one.save().snapshot.scalars["task_names"] == {"uid": "abcdef01", "key": "x" * 32}


STRATEGIES = [
    FedBuff(buffer_size=2), FedAsync(), FedAvg(cohort_size=2), Ca2fl(num_participants=3, buffer_size=2),
    Area(num_participants=3), FedCompass(num_participants=3, min_steps=1, max_steps=4),
]  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_no_slot_waits_for_a_lease_whatever_the_strategy_and_the_run_goes_on_the_same_each_time(strategy):
    """The lease is 100 s. All happens in the first second, twice with the same bits."""
    models = []
    for _ in range(2):
        one = bench(strategy, concurrency=2)
        names = ("a", "b")
        latest = {t.participant_id: t for t in of(IssueTask, one.hello(*names, replies=ALL))}
        saved = one.save()
        for turn in range(6):
            for name in names:
                task = latest.get(name)
                commands = one.update(task, tensors=parameters(turn, 1.0)) if task else []
                latest |= {t.participant_id: t for t in of(IssueTask, commands)}
        assert one.core.version >= 3
        go_back(one, saved)
        commands = []
        for name in names:
            commands += one.hello(name, t=0.5, session="s1", replies=ALL, last_task=latest[name].task_id)
        issued = {t.participant_id: t for t in of(IssueTask, commands)}
        assert set(issued) == {"a", "b"}
        for turn in range(4):
            for name in names:
                if name in issued:
                    commands = one.update(issued.pop(name), t=0.6, tensors=parameters(2.0, turn))
                    issued |= {t.participant_id: t for t in of(IssueTask, commands)}
                    if turn == 1:
                        one.restore(one.save())
        assert one.core.version >= 2
        models.append(one.core.parameters["w"].tobytes())
    assert models[0] == models[1]


def area(**settings):
    return bench(Area(num_participants=2, buffer_size=2, memory="participant"), concurrency=2, **settings)


def remembering(one, task, mark, after, value=1.0, **fields):
    return one.update(task, memory=mark, next_memory=after, tensors=parameters(value, value), **fields)


def test_a_method_whose_participants_remember_begins_anew_from_the_restored_model():
    one = area()
    a, b = of(IssueTask, one.hello("a", "b", replies=ALL))
    c, d = of(IssueTask, remembering(one, a, None, "a1", 2.0) + remembering(one, b, None, "b1", 4.0))
    x0 = one.core.parameters["w"].copy()  # the mean of both
    e = only(IssueTask, remembering(one, c, "a1", "a2", 1.0))  # in the buffer
    saved = one.save()
    lost = only(IssueTask, remembering(one, d, "b1", "b2", 1.0))
    go_back(one, saved)
    commands = one.hello("b", replies=ALL, session="s1", last_task=lost.task_id)
    told = only(TellSetBack, commands).set_back
    assert (told.anew, told.dropped, told.lost_version) == (True, 1, 2)
    assert "the method's memory on the participants began anew; 1 accepted updates" in told.told()
    assert len(only(DropBuffer, commands).update_ids) == 1
    assert {w.task_id for w in of(Withdraw, commands)} == {d.task_id, e.task_id}
    assert set(only(SayHello, commands).participant_ids) == {"a", "b"}
    tasks = {t.participant_id: t for t in of(IssueTask, commands)}
    tasks |= {t.participant_id: t for t in of(IssueTask, one.hello("a", "b", replies=ALL, session="s1"))}
    state = one.core.snapshot().arrays
    assert not state["strategy/total/w"].any()
    assert np.array_equal(state["strategy/initial/w"], x0)
    # Each sends y itself, as at the beginning, and the model is the mean of both again.
    assert of(Accept, remembering(one, tasks["a"], None, "a9", 7.0))
    assert of(Accept, remembering(one, tasks["b"], None, "b9", 9.0))
    assert one.core.parameters["w"].tolist() == [8.0, 8.0]
    drops = drops_in(json.loads(json.dumps(one.core.snapshot().scalars)))
    assert [(d.reason, d.count, d.anew) for d in drops] == [("set_back", 1, True)]


def test_the_word_of_a_participant_that_is_done_with_an_open_task_is_enough_to_begin_anew():
    """The participant moved its memory on a receipt that this ledger does not have, and got no task after it."""
    one = area()
    a, _ = of(IssueTask, one.hello("a", "b", replies=ALL))
    saved = one.save()
    remembering(one, a, None, "a1")
    go_back(one, saved)
    commands = one.hello("a", replies=ALL, last_task=a.task_id)
    assert only(TellSetBack, commands).set_back.anew
    assert of(Accept, remembering(one, only(IssueTask, commands), None, "a2"))


def test_that_word_counts_once_a_start():
    one = area()
    a, b = of(IssueTask, one.hello("a", "b", replies=ALL))
    go_back(one, one.save())
    assert of(TellSetBack, one.hello("a", replies=ALL, last_task=a.task_id))
    assert of(TellSetBack, one.hello("b", replies=ALL, last_task=b.task_id)) == []
    task = only(IssueTask, one.hello("a", replies=ALL, session="s2"))
    assert of(TellSetBack, one.hello("a", replies=ALL, last_task=task.task_id)) == []


def test_a_task_of_this_start_that_its_participant_is_done_with_shows_no_set_back():
    one = area()
    a, _ = of(IssueTask, one.hello("a", "b", replies=ALL))
    assert of(TellSetBack, one.hello("a", replies=ALL, last_task=a.task_id)) == []


@pytest.mark.parametrize("shape", [{"cohort_size": 2, "min_updates": 2}, {"buffer_size": 2}], ids=["rounds", "buffer"])
def test_scaffold_begins_anew_with_control_variates_of_zero(shape):
    strategy = Scaffold(num_participants=2, **shape)
    one = bench(strategy, concurrency=2, training=TrainingConfig(learning_rate=0.1))
    sent = Parameters({"w": np.ones(2, np.float32), "control:w": np.ones(2, np.float32)})
    a, b = of(IssueTask, one.hello("a", "b", replies=ALL))
    first = one.update(a, next_memory="a1", tensors=sent)
    c, _ = of(IssueTask, first + one.update(b, next_memory="b1", tensors=sent))
    assert one.core.snapshot().arrays["strategy/controls/w"].tolist() == [2.0, 2.0]
    saved = one.save()
    one.update(c, memory=f"{c.participant_id}1", next_memory="c2", tensors=sent)
    go_back(one, saved)
    commands = one.hello(c.participant_id, replies=ALL, session="s1", last_task=c.task_id)
    assert only(TellSetBack, commands).set_back.anew
    assert one.core.snapshot().arrays["strategy/controls/w"].tolist() == [0.0, 0.0]
    assert one.core.task_tensors["control:w"].tolist() == [0.0, 0.0]
    tasks = of(IssueTask, [*commands, *one.hello("a", "b", replies=ALL, session="s1")])
    for task in {t.participant_id: t for t in tasks}.values():
        assert of(Accept, one.update(task, next_memory="z", tensors=sent))
    assert one.core.version == 2


@pytest.mark.parametrize("session", ["s0", "s{}"], ids=["one session", "new sessions"])
def test_a_participant_that_says_it_is_done_with_each_task_of_this_start_gets_no_endless_supply(session):
    one = bench()
    go_back(one, one.save())
    issued = of(IssueTask, one.hello("a"))
    for i in range(100):
        issued += of(IssueTask, one.hello("a", t=i / 1000, session=session.format(i), last_task=issued[-1].task_id))
    assert len(issued) <= 5
    assert one.core.set_backs == ()


def test_after_a_set_back_any_soft_memory_is_taken_once():
    one = bench(uplink=Uplink(codec="topk", error_feedback=True))
    has = {"codecs": ("topk",)}
    first = only(IssueTask, one.update(only(IssueTask, one.hello("a", **has)), next_memory="m1"))
    saved = one.save()
    second = only(IssueTask, one.update(first, memory="m1", next_memory="m2"))
    third = only(IssueTask, one.update(second, memory="m2", next_memory="m3"))
    go_back(one, saved)
    issued = of(IssueTask, one.hello("a", t=0.1, last_task=third.task_id, **has))
    assert (first.former, issued[-1].former) == ((), (first.task_id.partition("-")[0],))
    assert of(Accept, one.update(issued[-1], memory="m3", next_memory="m4"))
    assert one.core.discarded == {}
