"""Only the newest epoch may write: a coordinator that was paused and deposed commits nothing and breaks nothing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedmq.coordinator.service.commits.commit import Committer
from fedmq.coordinator.service.commits.effects import Pending
from fedmq.coordinator.service.startup import open_core
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state.checkpoint_files import CheckpointFiles
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import CheckpointRow, CommitGroup, EpochRow
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.errors import Deposed, LedgerLocked
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

ZERO = CheckpointRow(0, "0.safetensors", "d0", 0, 0, {})
COMMIT = CommitSettings(checkpoint_copies=1)
RUN = RunSettings(run_id="r", stop=StopSettings(max_versions=9))


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    return folder


def active(folder, host="a", pid=1):
    ledger = Ledger(folder.ledger)
    ledger.take_over(host, pid, 100.0)
    return ledger


def opened(folder, ledger):
    return open_core(
        folder, ledger, run=RUN, strategy=FedBuff(buffer_size=2), training=TrainingConfig(),
        commit=COMMIT, initial_parameters=lambda: Parameters({"w": np.zeros(3, np.float32)}), evaluates=False,
    )  # fmt: skip


def files_of(folder):
    return CheckpointFiles(folder.checkpoints, None)


def files(folder):
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_epochs_count_up_and_say_who_had_them(folder):
    with active(folder) as first:
        assert first.newest_epoch() == EpochRow(1, "a", 1, 100.0, None)
        first.leave(107.0)
        assert first.newest_epoch() == EpochRow(1, "a", 1, 100.0, 107.0)
        with Ledger(folder.ledger) as second, LedgerReader(folder.ledger) as reader:
            assert second.take_over("b", 2, 111.0) == 2
            assert reader.newest_epoch() == EpochRow(2, "b", 2, 111.0, None)


def test_who_left_has_an_end_also_where_the_next_one_was_faster(folder):
    """A deposed coordinator may still note that it left: it does so after it gave the token back, and a standby that
    waits for the token takes over at once."""
    with active(folder) as first, active(folder, "b", 2) as second:
        first.leave(107.0)
        assert second._rows("SELECT epoch, ended_wall_s FROM epochs ORDER BY epoch") == [(1, 107.0), (2, None)]
        with pytest.raises(Deposed):
            first.check_epoch()


def test_every_write_of_a_deposed_coordinator_is_refused_and_writes_nothing(folder):
    with active(folder) as old, active(folder, "b", 2) as new:
        new.create("r", "uid", {}, 1.0, ZERO)
        before = list(new._db.iterdump())
        for write in (
            lambda: old.create("r", "uid", {}, 1.0, ZERO),
            lambda: old.resume({"x": 1}),
            lambda: old.commit(CommitGroup(finished="x"), CheckpointRow(1, "1.safetensors", "d", 1, 0, {}), 1.0, 1.0),
        ):
            with pytest.raises(Deposed, match=r"taken over by the coordinator with pid 2 on b \(epoch 2, since"):
                write()
        assert list(new._db.iterdump()) == before
        new.resume({"x": 2})


def test_a_deposed_coordinator_that_takes_over_again_writes_again(folder):
    with active(folder) as old, active(folder) as new:
        new.create("r", "uid", {}, 1.0, ZERO)
        assert old.take_over("a", 1, 1.0) == 3
        old.resume({})
        with pytest.raises(Deposed):
            new.resume({})


def test_a_ledger_that_somebody_else_has_locked_can_be_taken_over_later(folder):
    """The old coordinator may have been paused in the middle of its transaction."""
    with active(folder) as old, Ledger(folder.ledger) as new:
        new._db.execute("PRAGMA busy_timeout = 1")
        old._db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerLocked):
            new.take_over("b", 2, 1.0)
        assert new.epoch == 0
        old._db.execute("ROLLBACK")
        assert new.take_over("b", 2, 1.0) == 2


def test_two_that_make_the_ledger_at_once_make_one(folder):
    def make(_):
        with Ledger(folder.ledger) as ledger:
            return ledger.take_over("a", 1, 1.0)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [1, 2, 3, 4]


def test_a_commit_that_is_refused_takes_its_own_checkpoint_away_and_no_other(folder):
    with active(folder) as old, Ledger(folder.ledger) as new:
        core = opened(folder, old)
        committer = Committer(files_of(folder), old, 2)
        new.take_over("b", 2, 1.0)
        successor = opened(folder, new)
        Committer(files_of(folder), new, 2).commit(successor, Pending(arrays_changed=True), lambda: 1.0)
        with pytest.raises(Deposed):
            committer.commit(core, Pending(arrays_changed=True), lambda: 2.0)
        assert files(folder) == ["00000000-e0001.safetensors", "00000001-e0002.safetensors"]
        assert [row.file for row in new.checkpoints()] == files(folder)[::-1]


def test_a_start_that_was_paused_removes_nothing_of_a_newer_epoch(folder, monkeypatch):
    with active(folder) as old, Ledger(folder.ledger) as new:
        opened(folder, old)
        stale = old.checkpoints()
        (folder.checkpoints / "00000001-e0000.safetensors.tmp").touch()  # left by a crash
        (folder.checkpoints / "notes").touch()  # not ours
        new.take_over("b", 2, 1.0)
        Committer(files_of(folder), new, 1).commit(opened(folder, new), Pending(arrays_changed=True), lambda: 1.0)
        (folder.checkpoints / "00000002-e0002.safetensors.tmp").touch()  # the new coordinator is writing it
        assert files(folder) == ["00000001-e0002.safetensors", "00000002-e0002.safetensors.tmp"]
        (folder.checkpoints / "00000001-e0001.safetensors").touch()
        monkeypatch.setattr(old, "checkpoints", lambda: stale)
        Committer(files_of(folder), old, 1)
        assert files(folder) == ["00000001-e0002.safetensors", "00000002-e0002.safetensors.tmp"]
