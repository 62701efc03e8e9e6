"""A coordinator that dies anywhere in the commit loses nothing and counts nothing twice."""

import errno
import os
import threading

import pytest

from fedmq.coordinator.service import loop
from fedmq.coordinator.service.commits import after_commit, commit
from fedmq.coordinator.service.outgoing import publishing
from fedmq.coordinator.settings import CommitSettings, StopSettings
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.strategies import Area, Ca2fl
from tests.integration.coordinator.federation import DEADLINE_S, TOPOLOGY, FullDisk, delta, same_bits, update_for
from tests.support.asking import ask_until

POINTS = (
    "before-checkpoint", "after-checkpoint", "before-ledger", "after-ledger", "before-acks", "between-acks",
    "after-acks", "before-task-publish", "after-task-publish",
)  # fmt: skip


class Crashed(Exception):
    """A stand-in for SIGKILL: nothing runs after it but the loss of the connection."""


def crash_at(monkeypatch, point: str, nth: int) -> threading.Event:
    """Let the nth pass of the named point die, once. The event tells that it happened."""
    happened, passes = threading.Event(), [0]

    def fault(name: str) -> None:
        if name == point and not happened.is_set():
            passes[0] += 1
            if passes[0] == nth:
                happened.set()
                raise Crashed(name)

    for module in (after_commit, commit, loop, publishing):
        monkeypatch.setattr(module, "fault", fault)
    return happened


@pytest.mark.parametrize("nth", [2, 7])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_in_a_commit_loses_nothing_and_counts_nothing_twice(federation, monkeypatch, point, nth):
    federation.stop = StopSettings(max_versions=8)
    happened = crash_at(monkeypatch, point, nth)
    for i in range(3):
        federation.join(f"p{i}")
    with pytest.raises(Crashed, match=point):
        federation.run()
    assert happened.is_set()
    with federation.ledger() as ledger:
        before = ledger.updates()
    summary = federation.run()
    assert (summary.finished, summary.version) == ("max_versions", 8)
    with federation.ledger() as ledger:
        rows = ledger.updates()
        assert rows[: len(before)] == [
            now if was.version is None else was for was, now in zip(before, rows, strict=False)
        ]
        assert len({row.update_id for row in rows}) == len(rows)
        assert [v.version for v in ledger.versions()] == list(range(1, 9))
        assert set(ledger.discarded()) <= {"duplicate", "run_finished", "task_closed"}
    assert same_bits(federation.final(), federation.replayed())


def test_updates_that_the_broker_confirmed_before_a_crash_are_all_in_the_ledger_after_it(federation, monkeypatch):
    """Nobody resends here: only the broker and the run folder remember."""
    federation.stop = StopSettings(max_updates=12)
    crash_at(monkeypatch, "between-acks", 3)
    confirmed = []

    def train(p, task):
        p.train(task)
        confirmed.append(task.task_id)

    for i in range(4):
        federation.join(f"p{i}", train)
    with pytest.raises(Crashed):
        federation.run()
    sent_before = set(confirmed)
    federation.run()
    with federation.ledger() as ledger:
        assert sent_before <= {row.task_id for row in ledger.updates()} | {
            task_id for (task_id,) in ledger._rows("SELECT task_id FROM discards WHERE reason = 'run_finished'")
        }
        assert ledger.accepted() == 12


def test_what_a_crash_left_of_a_checkpoint_is_passed_over_for_the_last_good_one_aloud(federation, monkeypatch, caplog):
    crash_at(monkeypatch, "after-checkpoint", 3)
    federation.join("p0")
    with pytest.raises(Crashed):
        federation.run()
    with federation.ledger() as ledger:
        good, before = ledger.checkpoints()[0].file, ledger.accepted()
    (torn,) = {path.name for path in (federation.run_dir / "checkpoints").iterdir() if path.name > good}
    (federation.run_dir / "checkpoints" / torn).write_bytes(b"half of it")
    (federation.run_dir / "checkpoints" / f"{torn}.tmp").write_bytes(b"less")
    federation.run()
    said = f"event=commit_cut_short removed={torn},{torn}.tmp goes_on_from={good}"
    assert said in caplog.text
    assert 0 < before < 15
    assert same_bits(federation.final(), federation.replayed())


def test_a_crash_after_the_last_commit_still_tells_the_participants_that_the_run_is_over(federation, monkeypatch):
    crash_at(monkeypatch, "before-farewell", 1)
    p = federation.join("p0")
    with pytest.raises(Crashed):
        federation.run()
    assert not [notice for notice in p.notices if notice.event == "run_finished"]
    assert federation.run().finished == "max_versions"
    p.wait_until(lambda: [notice for notice in p.notices if notice.event == "run_finished"])


def test_updates_that_reach_the_queue_before_the_goodbye_are_discarded_with_a_reason(federation, monkeypatch):
    """There are more than the prefetch window holds, from a run that ended while its coordinator was dead."""
    federation.stop = StopSettings(max_updates=3)
    last = []
    p = federation.join("p0", lambda p, task: (last.append(task), p.train(task)))
    crash_at(monkeypatch, "before-farewell", 1)
    with pytest.raises(Crashed):
        federation.run()
    for _ in range(100):
        p.send_update(update_for(last[-1]), delta(last[-1].task_id)).result(DEADLINE_S)
    assert federation.depth(TOPOLOGY.updates) == 100
    federation.run()
    assert federation.depth(TOPOLOGY.updates) == 0
    with federation.ledger() as ledger:
        assert (ledger.accepted(), ledger.discarded()) == (3, {"duplicate": 100})


def test_lost_connections_in_the_middle_of_a_run_change_nothing(federation):
    federation.stop = StopSettings(max_versions=10)
    dropped = []

    def train(p, task):
        p.train(task)
        if len(p.tasks) % 4 == 0:
            dropped.append(federation.broker.drop_connections("coordinator"))

    for i in range(3):
        federation.join(f"p{i}", train)
    summary = federation.run()
    assert sum(dropped) >= 2
    assert summary.version == 10
    assert same_bits(federation.final(), federation.replayed())
    with federation.ledger() as ledger:
        assert len({row.task_id for row in ledger.updates()}) == ledger.accepted()


def test_a_full_disk_acks_nothing_and_work_resumes_when_there_is_room(federation, monkeypatch):
    monkeypatch.setattr(commit, "RETRY_FIRST_S", 0.01)
    real, disk = os.fsync, FullDisk()

    def fsync(handle):
        disk.refuse_where_full()
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    p = federation.join("p0", disk.train)
    running = federation.start(federation.service())
    disk.wait_until_refused(3)
    receipts = len(p.receipts)
    assert receipts <= 4
    assert federation.broker.unsettled(TOPOLOGY.updates.name) == 1
    disk.room()
    summary = running.result(DEADLINE_S)
    assert summary.version == 5
    assert same_bits(federation.final(), federation.replayed())


def test_a_participant_whose_queue_is_gone_costs_its_slot_nothing(federation):
    gone = federation.join("p0", lambda p, task: None)
    gone.transport.close()
    federation.broker.delete_queue(TOPOLOGY.participant("p0").name)
    federation.join("p1")
    assert federation.run().version == 5
    with federation.ledger() as ledger:
        assert set(ledger.accepted_by_participant()) == {"p1"}


@pytest.mark.parametrize("point", ["after-checkpoint", "after-ledger", "between-acks"])
@pytest.mark.parametrize("updates_a_commit", [1, 64])
@pytest.mark.parametrize(
    "strategy",
    [Ca2fl(num_participants=4, buffer_size=3), Area(num_participants=4, buffer_size=2)],
    ids=["ca2fl", "area"],
)
def test_what_is_remembered_of_participants_survives_a_crash_bit_for_bit(
    federation, monkeypatch, strategy, point, updates_a_commit
):
    federation.strategy = strategy
    federation.stop = StopSettings(max_versions=8)
    federation.commit = CommitSettings(commit_interval_s=0.05, commit_every_updates=updates_a_commit)
    happened = crash_at(monkeypatch, point, 4)
    for i in range(4):
        federation.join(f"p{i}")
    with pytest.raises(Crashed, match=point):
        federation.run()
    assert happened.is_set()
    assert federation.run().version == 8
    with federation.ledger() as ledger:
        assert len(ledger.memories()) == len(ledger.accepted_by_participant())
    assert same_bits(federation.final(), federation.replayed())


def test_a_transaction_that_was_refused_and_is_there_after_a_crash_has_its_checkpoint(federation, monkeypatch):
    """SQLite writes a transaction's end and cannot sync it. It refuses, and the next process finds the transaction."""
    monkeypatch.setattr(commit, "RETRY_FIRST_S", 0.01)
    real, refused, left, crashed = Ledger.commit, threading.Event(), [3, 0], []

    def refuse(ledger, group, *given, **named):
        if crashed:
            return real(ledger, group, *given, **named)
        if refused.is_set() and len(group.accepted) > left[1]:
            crashed.append(True)
            raise Crashed
        if not refused.is_set():
            real(ledger, group, *given, **named)
            left[0] -= len(group.accepted) > 0
        if left[0] == 0:
            left[1] = len(group.accepted)
            refused.set()
            raise OSError(errno.EIO, "ledger: disk I/O error")
        return None

    monkeypatch.setattr(Ledger, "commit", refuse)
    for name in ("p0", "p1"):  # so that a later try has another state
        federation.join(name, lambda p, task: (p.name == "p0" or refused.wait(DEADLINE_S), p.train(task)))
    with pytest.raises(Crashed):
        federation.run()
    files = sorted(path.name for path in (federation.run_dir / "checkpoints").iterdir())
    with federation.ledger() as ledger:
        newest = ledger.checkpoints()[0].file
    assert files[-2:] == sorted([newest, newest.replace(".safetensors", "-1.safetensors")])
    assert federation.run().version == 5
    assert same_bits(federation.final(), federation.replayed())
    assert len(list((federation.run_dir / "checkpoints").iterdir())) == 2


def test_the_bytes_of_tasks_are_in_the_ledger_while_their_trainings_last_and_nothing_else_happens(federation):
    """A coordinator that is killed in an hour of training has counted the tasks that it sent before."""
    for i in range(3):
        federation.join(f"p{i}", lambda p, task: None)
    federation.start(federation.service())
    for participant in federation.participants:
        participant.wait_until(lambda p=participant: len(p.tasks) == 1)

    def counted():
        with federation.ledger() as ledger:
            return ledger.bytes_down().messages

    ask_until(counted, lambda count: count == 3)
