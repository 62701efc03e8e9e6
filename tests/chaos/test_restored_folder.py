"""The run folder is put back from a backup, by the real command line, while participants and broker live on."""

import shutil
import sqlite3

import pytest

from fedmq.schemas.messages import update_id
from tests.support.full import FULL

pytestmark = pytest.mark.broker

LEASE = {"FEDMQ_RUN__LEASE_S": "600"}
"""A slot that waited for a lease would outlast the test."""


def tasks_of(ledger):
    """Return the participant of each task that was ever issued."""
    return dict(ledger._rows("SELECT task_id, participant_id FROM tasks"))


def stopped_copy(federation, coordinator, backup):
    coordinator.kill()
    shutil.copytree(federation.run_dir, backup)
    return federation.coordinator(**LEASE)


def living_copy(federation, coordinator, backup):
    """Copy as `docs/operations.md` says: the ledger by SQLite's backup, and then the files that it names."""
    backup.mkdir()
    source, target = (sqlite3.connect(folder / "ledger.sqlite") for folder in (federation.run_dir, backup))
    source.backup(target)
    for name in ("checkpoints", "copies", "archive"):
        shutil.copytree(federation.run_dir / name, backup / name)
    for one in (source, target):
        one.close()
    return coordinator


@pytest.mark.parametrize("copy", [living_copy, stopped_copy] if FULL else [living_copy])
def test_a_restored_folder_says_what_it_lost_goes_on_at_once_and_counts_no_update_twice(federation, copy):
    backup = federation.folder / "backup"
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator = federation.coordinator(**LEASE)
    coordinator.wait_for("event=version_made version=2 ")
    coordinator = copy(federation, coordinator, backup)
    coordinator.wait_for("event=version_made version=5 ")
    coordinator.kill()
    with federation.ledger() as ledger:
        past, lost_versions = tasks_of(ledger), ledger.version()
        accepted_then = {row.task_id for row in ledger.updates()}
    shutil.rmtree(federation.run_dir)
    shutil.copytree(backup, federation.run_dir)
    with federation.ledger() as ledger:
        version, kept = ledger.version(), {row.task_id for row in ledger.updates()}
        welcome = {task.task_id for task in ledger.open_tasks()}
        lost = past.keys() - (tasks_of(ledger).keys() - welcome)
    assert version < lost_versions
    assert accepted_then - kept
    last = federation.coordinator(**LEASE)
    assert last.ended() == 0
    assert [one.ended() for one in participants] == [0, 0]
    told = f"the folder was restored from a backup, or is a copy: it went on with version {version} after"
    assert told in last.wait_for("event=ledger_set_back run=r1 detail=").string
    for command in ("status", "verify") if FULL else ("status",):
        shown = federation.command(command, "runs/r1")
        assert shown.ended() == 0
        assert told in " ".join(shown.text.split())
    rows = federation.check(lost=[update_id("r1", task_id, past[task_id]) for task_id in lost])
    assert {row.task_id for row in rows} & lost <= welcome, "no update counts whose task the restored ledger lacks"
