"""A coordinator that dies while half of an arrival group is back, and the groups in its ledger."""

from __future__ import annotations

import sqlite3

import pytest

from fedmq.cli.commands import explain
from fedmq.coordinator.audit import audit
from fedmq.coordinator.settings import ArchiveSettings, StopSettings
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedCompass
from fedmq.schemas.messages import Decline, Task
from fedmq.studies.engine.replay import replay
from tests.integration.coordinator.federation import DEADLINE_S, Federation, Participant, same_bits
from tests.integration.coordinator.test_crashes import Crashed, crash_at

HOLD = 10_000
"""Steps of the first group: so many that its times never come in a test."""


def half_back(federation: Federation) -> tuple[Participant, Participant]:
    """Let `fast` and `slow` share a group, and commit the update of `fast`."""
    federation.strategy = FedCompass(num_participants=2, min_steps=1, max_steps=HOLD, first_steps=1)
    federation.archive, federation.stop = ArchiveSettings(max_bytes=2**30), StopSettings(max_versions=3)
    fast = federation.join("fast", lambda p, task: None if len(p.tasks) > 1 else p.train(task))
    slow = federation.join("slow", lambda _p, _task: None)
    return fast, slow


def share_a_group(fast: Participant, slow: Participant) -> None:
    fast.wait_until(lambda: len(fast.tasks) == 2)
    slow.train(slow.tasks[0])  # that took longer, so it can make fewer steps than the group has, and joins it
    slow.wait_until(lambda: len(slow.tasks) == 2)
    assert slow.tasks[1].training.max_steps < fast.tasks[1].training.max_steps == HOLD
    fast.train(fast.tasks[1])
    fast.wait_until(lambda: len(fast.receipts) == 2)


def decline(p: Participant, task: Task) -> None:
    p.send_control(
        Decline(participant_id=p.name, task_id=task.task_id, run_id=task.run_id, reason="busy", retry_after_s=1000.0)
    )


def wrong(federation: Federation) -> list[str]:
    return [said for check in audit.verify(RunFolder(federation.run_dir)) for said in check.wrong]


@pytest.mark.parametrize("point", ["after-checkpoint", "before-ledger", "after-ledger"])
def test_half_a_group_survives_a_crash_in_the_commit_of_the_other_half(federation, monkeypatch, point, capsys):
    fast, slow = half_back(federation)
    running = federation.start(federation.service())
    share_a_group(fast, slow)
    with federation.ledger() as ledger:
        assert [(row.arrival_group is None, row.version) for row in ledger.updates()] == [
            (False, 1), (False, 2), (False, None),
        ]  # fmt: skip
    assert len(fast.tasks) == 2  # it waits
    happened = crash_at(monkeypatch, point, 1)
    slow.train(slow.tasks[1])
    with pytest.raises(Crashed):
        running.result(DEADLINE_S)
    assert happened.is_set()
    assert federation.run().version == 3
    with federation.ledger() as ledger:
        first, second = ledger.updates_in(3)
        assert (first.participant_id, second.participant_id) == ("fast", "slow")
        assert first.arrival_group == second.arrival_group is not None
        states = len(ledger.states())
    monkeypatch.setenv("COLUMNS", "200")
    explain.command(federation.run_dir, 3)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[-3] for line in said if "fast" in line or "slow" in line] == [str(first.arrival_group)] * 2
    checks = {check.name: check for check in audit.verify(RunFolder(federation.run_dir))}
    assert f"updates 1 to 4 make 3 versions and {states} committed states, bit for bit" in checks
    assert all(check.holds for check in checks.values())
    assert same_bits(replay(federation.run_dir).parameters, federation.final())


def test_a_ledger_whose_groups_were_altered_is_found_out(federation):
    fast, slow = half_back(federation)
    running = federation.start(federation.service())
    share_a_group(fast, slow)
    slow.train(slow.tasks[1])
    assert running.result(DEADLINE_S).version == 3
    assert wrong(federation) == []
    for change, said in (
        ("arrival_group = arrival_group - 1 WHERE accepted_order = 4", "was made of several arrival groups"),
        ("version = 2 WHERE accepted_order = 3", "are in several versions"),
        ("arrival_group = NULL, version = 3 - accepted_order WHERE accepted_order < 3", "late updates are in other"),
        ("arrival_group = NULL WHERE accepted_order > 2", "has no arrival group whose updates came before"),
        ("staleness = staleness + 9 WHERE accepted_order = 4", "met 11, expected 2 to 2"),
        ("weight = weight * 2 WHERE accepted_order = 4", "has weight"),
    ):
        path = federation.run_dir / "ledger.sqlite"
        copy = path.read_bytes()
        with sqlite3.connect(path) as db:
            db.execute(f"UPDATE updates SET {change}")
        db.close()
        assert any(said in one for one in wrong(federation)), (change, wrong(federation))
        path.write_bytes(copy)
    assert wrong(federation) == []


def test_a_version_that_came_without_an_update_after_the_last_one_replays(federation):
    fast, slow = half_back(federation)
    third = federation.join("third", lambda p, task: None if len(p.tasks) == 1 else decline(p, task))
    federation.stop = StopSettings(max_versions=4)
    running = federation.start(federation.service())
    share_a_group(fast, slow)
    third.train(third.tasks[0])
    third.wait_until(lambda: len(third.receipts) == 1)
    decline(slow, slow.tasks[1])
    assert running.result(DEADLINE_S).version == 4
    with federation.ledger() as ledger:
        before, last = ledger.updates()[-2:]
        version = ledger.versions()[-1]
    assert [(row.participant_id, row.version) for row in (before, last)] == [("fast", 4), ("third", 3)]
    assert version.run_s > last.run_s, "the version came with the update, which shows nothing"
    assert wrong(federation) == []
    assert same_bits(replay(federation.run_dir).parameters, federation.final())
