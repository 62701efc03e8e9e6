"""Entries of the next commit, step by step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.commands import Accept, CloseTask, Discard, IssueTask, Withdraw
from fedmq.coordinator.decisions.events import (
    ClosedTask,
    EvaluationArrived,
    PoisonArrived,
    Started,
    Tick,
    UpdateArrived,
)
from fedmq.coordinator.service.commits.effects import Effects
from fedmq.coordinator.service.incoming.update_reader import NO_PAYLOAD
from fedmq.coordinator.service.outgoing.discards import FIRST_LETTERS, FIRST_LINES, TELL_S
from fedmq.coordinator.state.ledger.rows import MOST_DISCARD_ROWS
from fedmq.schemas.messages import ChunkedPayload, TrainingConfig, Update, update_id

UPDATES, CONTROL = Topology().updates.name, Topology().control.name


def delivery(name: str) -> Delivery:
    return Delivery(UPDATES, b"12345", name, f"t-{name}", None, {}, False, 0, name)


def update(name: str, chunks: ChunkedPayload | None = None) -> Update:
    return Update(
        update_id=update_id("r", f"t-{name}", name), task_id=f"t-{name}", run_id="r", participant_id=name,
        base_version=0, payload="delta", num_examples=1, num_steps=1, train_s=0.0, chunks=chunks,
    )  # fmt: skip


@pytest.fixture
def core() -> Any:
    return SimpleNamespace(tensors_of=lambda _: NO_PAYLOAD, stopping=False, discarded={})


@pytest.fixture
def effects(core: Any) -> Effects:
    intake = SimpleNamespace(queue_of=lambda _run_id, task_id, _participant_id: f"queue of {task_id}")
    return Effects(
        run_id="r", core=core, intake=intake, evaluator=None, in_chunks=False, put=lambda _: None, wall_s=lambda: 9.0,  # type: ignore[arg-type]
        control_queue=CONTROL,
    )  # fmt: skip


def arrived(handle: int, name: str = "a", chunks: ChunkedPayload | None = None) -> UpdateArrived:
    return UpdateArrived(handle, update(name, chunks), NO_PAYLOAD)


def test_an_accepted_update_is_settled_without_its_body_and_its_time_is_the_steps(effects: Effects) -> None:
    handle = effects.hold(delivery("a"))
    accept = Accept(handle, update("a"), staleness=0, client_weight=1.0, order=1)
    effects.on_step(arrived(handle), [accept], 5.0)
    pending = effects.pending
    assert (pending.num_updates, pending.since_s, pending.urgent, pending.arrays_changed) == (1, 5.0, False, True)
    assert [(one.token, one.body) for one in pending.settle] == [("a", b"")]
    ((kept, stamp),) = pending.group.accepted
    assert (kept, stamp.run_s, stamp.wall_s) == (accept, 5.0, 9.0)
    assert [receipt.verdict for receipt in pending.receipts] == ["accepted"]
    assert pending.payload_queues == []


def test_poison_keeps_its_body_for_the_dead_letters(effects: Effects) -> None:
    handle = effects.hold(delivery("a"))
    discard = Discard(handle, "malformed", "no", None)
    effects.on_step(PoisonArrived(handle, "malformed", "no"), [discard], 1.0)
    assert [(one.body, command) for one, command in effects.pending.poison] == [(b"12345", discard)]
    assert (effects.pending.poison_bytes, effects.pending.settle, effects.pending.num_updates) == (5, [], 1)


@pytest.mark.parametrize(("reason", "dead_lettered"), [("wrong_sender", True), ("revoked", False)])
def test_a_refused_hello_is_counted_and_is_no_update(effects: Effects, reason: Any, dead_lettered: bool) -> None:
    handle = effects.hold(replace(delivery("a"), queue=CONTROL))
    effects.on_step(PoisonArrived(handle, reason, "no"), [Discard(handle, reason, "no", None)], 1.0)
    pending = effects.pending
    assert [discard.reason for discard, _ in pending.group.discards] == [reason]
    assert (pending.num_updates, pending.num_control) == (0, 1)
    assert (len(pending.poison), len(pending.settle)) == ((1, 0) if dead_lettered else (0, 1))
    assert pending.receipts == []


def test_a_message_that_is_refused_leaves_the_straggler_that_it_names_expected(effects: Effects, core: Any) -> None:
    core.stopping = True
    effects.on_step(Tick(), [Withdraw("a", "t-a", "the run is over")], 1.0)
    handle = effects.hold(delivery("a"))
    effects.on_step(PoisonArrived(handle, "wrong_sender", ""), [Discard(handle, "wrong_sender", "", None)], 1.0)
    assert effects.expects_stragglers


def test_the_chunks_of_a_discarded_update_are_deleted_after_the_commit(effects: Effects) -> None:
    chunks = ChunkedPayload(payload_id="one", num_bytes=1024, chunk_bytes=1024, count=1, digest="0" * 64)
    handle = effects.hold(delivery("a"))
    discard = Discard(handle, "too_stale", "", update("a", chunks))
    effects.on_step(arrived(handle, "a", chunks), [discard], 1.0)
    assert effects.pending.payload_queues == ["queue of t-a"]


def test_a_tick_without_commands_leaves_nothing_to_commit_and_other_events_do(effects: Effects) -> None:
    effects.on_step(Tick(), [], 1.0)
    assert effects.pending.since_s == float("inf")
    effects.on_step(Started(), [], 2.0)
    assert effects.pending.since_s == 2.0


def test_an_evaluation_is_recorded_at_its_step(effects: Effects) -> None:
    event = EvaluationArrived(3, {"accuracy": 0.5})
    effects.on_step(event, [], 4.0)
    ((kept, stamp),) = effects.pending.group.evaluations
    assert (kept, stamp.run_s) == (event, 4.0)


def test_an_update_that_is_to_be_sent_again_is_urgent_and_settled(effects: Effects) -> None:
    handle = effects.hold(delivery("a"))
    effects.send_again(handle, update("a"), "chunks are missing", 3.0)
    pending = effects.pending
    assert (pending.urgent, pending.since_s, pending.num_updates) == (True, 3.0, 1)
    assert [(news.event, news.task_id) for news in pending.notices] == [("send_again", "t-a")]
    assert [one.token for one in pending.settle] == ["a"]


def test_a_task_that_waits_for_its_commit_keeps_its_base_version(effects: Effects) -> None:
    effects.on_step(Tick(), [IssueTask("t-1", 1, "p", 7, TrainingConfig(), lease_s=10.0)], 1.0)
    assert (effects.versions, effects.pending.urgent) == ({7}, True)
    done = effects.taken()
    assert [command.task_id for command, _ in done.tasks] == ["t-1"]
    assert (effects.versions, effects.pending.since_s) == (set(), float("inf"))


def test_an_update_of_a_task_that_was_withdrawn_with_the_run_is_expected_until_it_is_here(
    effects: Effects, core: Any
) -> None:
    core.stopping = True
    effects.on_step(Tick(), [Withdraw("a", "t-a", "the run ends")], 1.0)
    assert effects.expects_stragglers
    handle = effects.hold(delivery("a"))
    effects.on_step(arrived(handle), [Discard(handle, "run_finished", "", update("a"))], 1.0)
    assert not effects.expects_stragglers


@pytest.mark.parametrize(
    ("state", "found"),
    [("out", None), ("accepted", ClosedTask("t-1", "p", "accepted")), ("", ClosedTask("t-1", "p", "withdrawn"))],
)
def test_the_end_of_a_task_is_what_is_to_be_committed_or_else_what_the_ledger_says(
    effects: Effects, state: str, found: ClosedTask | None
) -> None:
    ledger = SimpleNamespace(closed_task=lambda task_id: ClosedTask(task_id, "p", "withdrawn"))
    if state:
        record = SimpleNamespace(task_id="t-1", participant_id="p", state=state)
        effects.pending.group.tasks["t-1"] = record  # type: ignore[assignment]
    assert effects.closed_task("t-1", ledger) == found  # type: ignore[arg-type]


def bad(effects: Effects, core: Any, now: float, user: str, reason: Any = "malformed") -> None:
    core.discarded[reason] = core.discarded.get(reason, 0) + 1
    handle = effects.hold(replace(delivery("a"), user_id=user))
    effects.on_step(PoisonArrived(handle, reason, "no"), [Discard(handle, reason, "no", None)], now)


def test_a_flood_of_bad_updates_leaves_a_bounded_number_of_rows_lines_and_dead_letters(
    effects: Effects, core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20_000):
        bad(effects, core, 5.0, "mallory")
    bad(effects, core, 5.0, "honest")
    pending = effects.pending
    assert core.discarded == {"malformed": 20_001}
    assert len(pending.group.discards) == MOST_DISCARD_ROWS
    assert [one.user_id for one, _ in pending.poison] == ["mallory"] * FIRST_LETTERS + ["honest"]
    assert len(pending.settle) == 20_000 - FIRST_LETTERS
    assert {one.body for one in pending.settle} == {b""}
    assert pending.num_updates == 20_001
    lines = [message for message in caplog.messages if "event=update_discarded" in message]
    assert len(lines) == FIRST_LINES + 1
    bad(effects, core, 5.0 + TELL_S, "mallory")
    assert "number=20001" in caplog.messages[-1]


def test_an_update_that_closes_its_task_has_a_row_after_a_flood_too(effects: Effects, core: Any) -> None:
    core.discarded["too_stale"] = 5000
    for name, commands in (("a", [CloseTask("t-a", "discarded", "too_stale")]), ("b", [])):
        handle = effects.hold(delivery(name))
        effects.on_step(arrived(handle, name), [Discard(handle, "too_stale", "", update(name)), *commands], 1.0)
    assert [one.update and one.update.participant_id for one, _ in effects.pending.group.discards] == ["a"]
