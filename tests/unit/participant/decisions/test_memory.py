"""The method's memory moves on an accepting receipt, whatever crashes or is lost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.participant.decisions import events as ev
from fedmq.participant.memory import Memory
from fedmq.participant.spool.spool import MOST_MEMORIES, Spool
from fedmq.schemas.messages import Receipt, Task
from tests.unit.participant.decisions.agents import LATE, ME, connected, kinds, make_agent, make_task, notice, only, uid


def task(number: int = 1, **changes: Any) -> Task:
    return make_task(number, **{"reply": "change"} | changes)


def verdict(one: Task, what: Any = "accepted") -> ev.ReceiptReceived:
    return ev.ReceiptReceived(
        Receipt(update_id=uid(one), task_id=one.task_id, run_id=one.run_id, participant_id=ME, verdict=what)
    )


def trained(one: Task) -> Any:
    agent = connected()
    agent.step(ev.TaskReceived(one, 1), LATE)
    agent.step(ev.TaskSpooled(one.task_id, 1), LATE)
    agent.step(ev.TrainingFinished(one.task_id, 7), LATE)
    agent.step(ev.OutboxWritten(one.task_id), LATE)
    return agent


def sent(one: Task) -> Any:
    agent = trained(one)
    agent.step(ev.PublishConfirmed(uid(one)), LATE)
    return agent


def test_an_accepting_receipt_moves_the_memory_before_the_update_is_forgotten() -> None:
    one = task()
    agent = sent(one)
    assert agent.step(verdict(one), LATE) == [ev.MoveMemory(uid(one), one.task_id)]
    assert one.task_id in agent.held()
    remembered = only(ev.WriteSent, agent.step(ev.MemoryMoved(uid(one)), LATE))
    assert (dict(remembered.sent), remembered.done) == ({}, (one.task_id,))
    assert agent.step(verdict(one), LATE) == [], "a repeated receipt moves nothing"


def test_a_discarding_receipt_gives_the_memory_back() -> None:
    one = task()
    agent = sent(one)
    commands = agent.step(verdict(one, "discarded"), LATE)
    assert commands[0] == ev.DropNextMemory(uid(one))
    assert "MoveMemory" not in kinds(commands)
    assert agent.held() == ()


def test_a_method_without_a_memory_knows_nothing_of_it() -> None:
    one = make_task()
    assert kinds(sent(one).step(verdict(one), LATE)) == ["WriteSent"]
    assert kinds(sent(one).step(verdict(one, "discarded"), LATE)) == ["WriteSent"]


@pytest.mark.parametrize("event", ["task_withdrawn", "run_finished"])
def test_a_withdrawn_or_dropped_update_gives_its_memory_back(event: Any) -> None:
    one = task()
    for agent in (trained(one), sent(one)):
        commands = agent.step(ev.NoticeReceived(notice(event, one)), LATE)
        assert ev.DropNextMemory(uid(one)) in commands
        assert (ev.ClearMemory("run-1") in commands) == (event == "run_finished")


def test_a_receipt_that_overtakes_the_confirm_clears_the_outbox_too() -> None:
    one = task()
    agent = trained(one)
    agent.step(verdict(one), LATE)
    assert kinds(agent.step(ev.MemoryMoved(uid(one)), LATE)) == ["WriteSent", "ClearOutbox"]


def test_while_an_update_is_unsettled_the_participant_is_not_free_and_says_so_only_when_asked() -> None:
    one, two = task(1), task(2)
    agent = sent(one)
    assert "SendHello" not in kinds(agent.step(ev.Tick(), LATE + 1))
    commands = agent.step(ev.TaskReceived(two, 2), LATE + 2)
    assert only(ev.SendDecline, commands).decline.reason == "busy"
    hello = only(ev.SendHello, commands).hello
    assert (hello.accepting, hello.task_ids) == (False, (one.task_id,)), "so that the receipt is repeated"
    agent.step(verdict(one), LATE + 3)
    assert only(ev.SendHello, agent.step(ev.MemoryMoved(uid(one)), LATE + 3)).hello.accepting is True
    assert kinds(agent.step(ev.TaskReceived(task(3), 3), LATE + 4)) == ["SpoolTask"]
    other = sent(one).step(ev.TaskReceived(make_task(2), 2), LATE + 2)
    assert kinds(other) == ["SpoolTask"], "a method without a memory waits for no verdict"


def test_a_memory_that_cannot_be_moved_is_moved_when_the_receipt_is_repeated() -> None:
    one = task()
    agent = sent(one)
    agent.step(verdict(one), LATE)
    assert only(ev.Note, agent.step(ev.MemoryNotMoved(uid(one), "read-only"), LATE)).level == "error"
    assert agent.held() == (one.task_id,)
    assert agent.step(verdict(one), LATE) == [ev.MoveMemory(uid(one), one.task_id)]


def test_an_unsettled_update_that_cannot_be_read_is_named_until_its_verdict() -> None:
    one = task()
    agent = trained(one)
    agent.step(ev.UpdateUnreadable(uid(one), "gone"), LATE)
    assert agent.held() == (one.task_id,)
    assert agent.step(verdict(one), LATE) == [ev.MoveMemory(uid(one), one.task_id)]


def restored(**found: Any) -> tuple[Any, list[ev.Command]]:
    agent = make_agent(restored=ev.Restored(**found))
    return agent, agent.step(ev.Started(), 0.0)


def test_a_restart_between_the_memory_and_the_update_trains_again() -> None:
    one = task()
    agent, commands = restored(task=one, task_age_s=1.0, unsettled={uid(one): (one.task_id, one.run_id)})
    assert commands[0] == ev.DropNextMemory(uid(one))
    assert only(ev.StartTraining, commands).task == one
    assert agent.held() == (one.task_id,)


@pytest.mark.parametrize("known", ["outbox", "sent", "nowhere"])
def test_a_restart_after_the_update_was_written_waits_for_its_verdict(known: str) -> None:
    one = task()
    names = {uid(one): (one.task_id, one.run_id)}
    agent, commands = restored(unsettled=names, **({} if known == "nowhere" else {known: names}))
    assert "DropNextMemory" not in kinds(commands)
    assert agent.held() == (one.task_id,)
    assert agent.step(verdict(one), 1.0) == [ev.MoveMemory(uid(one), one.task_id)]


def test_a_restart_after_the_memory_has_moved_moves_nothing_again() -> None:
    one = task()
    agent, _ = restored(sent={uid(one): (one.task_id, one.run_id)})
    assert kinds(agent.step(verdict(one), 1.0)) == ["WriteSent"]


def test_a_spooled_task_whose_update_is_on_its_way_is_not_trained_to_another_memory() -> None:
    one = task()
    names = {uid(one): (one.task_id, one.run_id)}
    _, commands = restored(task=one, task_age_s=1.0, sent=names, unsettled=names)
    assert kinds(commands) == ["ClearTask"]


# The spool


def memory(mark: str, value: float = 1.0) -> Memory:
    return Memory(mark, {"w": np.array([value, 2.0]), "b": np.array(value)})


def found(spool: Spool, run_uid: str = "ab") -> tuple[str, float] | None:
    kept = spool.read_memory(run_uid)
    return None if kept is None else (kept.mark, float(kept.tensors["w"][0]))


def test_what_an_update_leaves_is_remembered_once_it_is_moved(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ME)
    assert found(spool) is None
    spool.write_next_memory("u1", "ab-1", "run-1", memory("m1"))
    assert (found(spool), spool.unsettled()) == (None, {"u1": ("ab-1", "run-1")})
    spool.move_memory("u1", "ab")
    spool.move_memory("u1", "ab")
    spool.write_next_memory("u2", "ab-2", "run-1", memory("m2", 5.0))
    spool.close()
    again = Spool(tmp_path, ME)
    assert (found(again), again.unsettled()) == (("m1", 1.0), {"u2": ("ab-2", "run-1")})
    again.drop_next_memory("u2")
    again.drop_next_memory("u2")
    assert (found(again), again.unsettled()) == (("m1", 1.0), {})
    kept = again.read_memory("ab")
    assert kept is not None
    assert (kept.tensors["w"].dtype, kept.tensors["b"].shape) == (np.float64, ())
    again.clear_memory("another")
    assert found(again) is not None
    again.clear_memory("run-1")
    assert found(again) is None
    again.close()


def test_a_soft_memory_of_a_run_goes_on_under_its_new_id_and_a_hard_one_does_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ME)
    for run, soft in (("aa", True), ("bb", False)):
        spool.write_next_memory(f"u{run}", f"{run}-1", "r", replace(memory(run), soft=soft))
        spool.move_memory(f"u{run}", run)
    spool.adopt_soft_memory("cc", ("bb",))
    assert found(spool, "cc") is None
    for _ in range(2):
        spool.adopt_soft_memory("cc", ("bb", "gone", "aa"))
        assert found(spool, "cc") == ("aa", 1.0)
    assert found(spool, "aa") is None
    spool.write_next_memory("u2", "aa-2", "r", replace(memory("late"), soft=True))
    spool.move_memory("u2", "aa")
    spool.adopt_soft_memory("cc", ("aa",))
    assert found(spool, "cc") == ("aa", 1.0)
    spool.close()


def test_a_damaged_memory_is_set_aside_and_not_used(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ME)
    spool.write_next_memory("u1", "ab-1", "run-1", memory("m1"))
    spool.move_memory("u1", "ab")
    path = tmp_path / ME / "memory" / "ab.fedmq"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert found(spool) is None
    assert len(list((tmp_path / ME / "set-aside").iterdir())) == 1
    spool.close()


def test_runs_whose_end_was_never_heard_of_are_forgotten_in_their_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ME)
    for number in range(MOST_MEMORIES + 2):
        spool.write_next_memory("u", f"r{number}-1", "run", memory("m"))
        spool.move_memory("u", f"r{number}")
    assert [found(spool, f"r{n}") is not None for n in range(MOST_MEMORIES + 2)] == [False] * 2 + [True] * MOST_MEMORIES
    spool.close()
