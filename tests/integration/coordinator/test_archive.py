"""The archive of accepted updates: its content, its replay, and the states that it saves."""

import errno
import os
from functools import partial

import pytest

from fedmq.coordinator.audit import audit
from fedmq.coordinator.service import service as services
from fedmq.coordinator.service.commits import commit as commits
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, StopSettings
from fedmq.coordinator.state import archive
from fedmq.coordinator.state.archive import Archive
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import Area, Ca2fl, Fadas, FedAsync, FedAvg, FedBuff, FedCompass, Port
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.local.clocks import Moment
from tests.integration.coordinator.federation import DEADLINE_S, FullDisk, delta, same_bits
from tests.integration.coordinator.test_crashes import Crashed, crash_at
from tests.integration.coordinator.test_damaged_checkpoints import flip

ON = ArchiveSettings(max_bytes=2**30)
STRATEGIES = [
    FedBuff(buffer_size=3, staleness=Polynomial(0.5)), FedAsync(), FedAvg(cohort_size=2, min_updates=1),
    Fadas(buffer_size=2), Port(buffer_size=2), Ca2fl(num_participants=4, buffer_size=3),
    Area(num_participants=4, buffer_size=2),
    FedCompass(num_participants=4, min_steps=1, max_steps=4, latest_factor=3.0),
]  # fmt: skip


@pytest.fixture
def federation(federation):
    federation.archive = ON
    return federation


def checks_of(federation):
    return {check.name: check for check in audit.verify(RunFolder(federation.run_dir))}


def killed(federation, monkeypatch, nth=4):
    """Kill a run after its nth commit. Return the newest checkpoint's two files."""
    crash_at(monkeypatch, "before-acks", nth)
    with pytest.raises(Crashed):
        federation.run()
    monkeypatch.undo()
    with federation.ledger() as ledger:
        name = ledger.checkpoints()[0].file
    return [federation.run_dir / which / name for which in ("checkpoints", "copies")]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_a_replay_of_the_archive_makes_every_committed_state_and_the_newest_one_where_both_its_files_are_damaged(
    federation, monkeypatch, strategy, caplog
):
    federation.strategy = strategy
    federation.stop = StopSettings(max_versions=8)
    for i in range(4):
        federation.join(f"p{i}")
    files = killed(federation, monkeypatch)
    with federation.ledger() as ledger:
        states, accepted = ledger.states(), ledger.accepted()
        assert accepted > 0
    for path in files:
        flip(path)
    assert federation.run().version == 8
    assert "event=checkpoint_rebuilt" in caplog.text
    assert "the same bit for bit" in caplog.text
    with federation.ledger() as ledger:
        assert states.items() <= ledger.states().items()
        count, committed = ledger.accepted(), len(ledger.states())
    checks = checks_of(federation)
    assert f"updates 1 to {count} make 8 versions and {committed} committed states, bit for bit" in checks
    assert all(check.holds for check in checks.values())


def test_what_was_made_again_is_the_very_file(federation, monkeypatch):
    federation.join("p0")
    files = killed(federation, monkeypatch)
    whole = files[0].read_bytes()
    flip(files[0])
    files[1].unlink()
    monkeypatch.setattr(commits.Committer, "commit", lambda *_: pytest.fail("the files are to be looked at"))
    with pytest.raises(BaseException, match="to be looked at"):
        federation.run()
    assert [path.read_bytes() for path in files] == [whole, whole]


@pytest.mark.parametrize("what", ["updates", "bases"])
def test_where_the_archive_is_damaged_too_the_coordinator_refuses_and_verify_says_where(federation, monkeypatch, what):
    """Older checkpoints are whole, and lack the damaged update."""
    federation.commit = CommitSettings(commit_interval_s=0.05, keep_checkpoints=1)
    federation.join("p0")
    for path in killed(federation, monkeypatch):
        flip(path)
    suffix = ".updates" if what == "updates" else ".safetensors"
    (path,) = (federation.run_dir / "archive").glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = audit.shown(next(check for name, check in checks_of(federation).items() if "were replayed" in name))
    assert str(path) in said
    with pytest.raises(CheckpointError, match=r"older checkpoints lack updates .* and no archive has them"):
        federation.run()


def test_the_archive_stays_within_its_limits_and_from_its_oldest_base_on_everything_replays(federation):
    federation.stop = StopSettings(max_updates=120)
    federation.commit = CommitSettings(commit_interval_s=0.05, commit_every_updates=8)
    for i in range(3):
        federation.join(f"p{i}")
    federation.archive = ArchiveSettings.model_construct(max_bytes=8_000, max_age_s=None)  # a small one
    federation.run()
    used = sum(path.stat().st_size for path in (federation.run_dir / "archive").iterdir())
    with federation.ledger() as ledger:
        first, newest = ledger.bases()[0], ledger.bases()[-1]
        assert first.accepted > 0
        assert newest.accepted > first.accepted
        assert {path.name for path in (federation.run_dir / "archive").iterdir()} >= ledger.archive_files()
    assert used < 8_000 + 2 * newest.num_bytes + 4000
    checks = checks_of(federation)
    assert checks[f"updates 1 to {first.accepted} were replayed"].left_out == "their tensors are not kept any more"
    assert [name for name in checks if name.startswith(f"updates {first.accepted + 1} to 120 make ")]
    assert all(check.holds for check in checks.values())


def test_what_is_too_old_goes_and_a_state_with_all_that_follows_stays(federation):
    federation.archive = ArchiveSettings(max_age_s=1e-6)
    federation.join("p0")
    federation.run()
    with federation.ledger() as ledger:
        (base,) = ledger.bases()
        assert base.accepted > 0
        assert len(ledger.archived(0, 15)) == 15 - base.accepted
    assert all(check.holds for check in checks_of(federation).values())


class Clocks:
    """A twentieth of a day goes by with each task. After more than half a day the wall clock is set."""

    def __init__(self, set_by_s, boots):
        self.set_by_s, self.boots, self.days = set_by_s, boots, 0.0

    def train(self, p, task):
        self.days = len(p.tasks) / 20
        p.train(task)

    def now(self):
        is_set = self.days > 0.55
        day_s, boot_id = 86_400 * self.days, "second" if is_set and self.boots else "first"
        return Moment(1.8e9 + day_s + (self.set_by_s if is_set else 0), day_s, boot_id)


@pytest.mark.parametrize(
    ("set_by_s", "boots", "forgets"),
    [(3e7, False, False), (-3e7, False, False), (3e7, True, True), (-3e7, True, False)],
    ids=["forward", "back", "forward over a boot", "back over a boot"],
)
def test_a_clock_that_was_set_makes_nothing_old_within_one_boot(federation, monkeypatch, set_by_s, boots, forgets):
    clocks = Clocks(set_by_s, boots)
    monkeypatch.setattr(services, "Archive", partial(Archive, now=clocks.now))
    federation.archive = ArchiveSettings(max_age_s=86_400)
    federation.concurrency = 1
    federation.join("p0", clocks.train)
    federation.run()
    assert clocks.now().boot_id == ("second" if boots else "first")
    with federation.ledger() as ledger:
        bases = [base.accepted for base in ledger.bases()]
        assert bases[0] > 0 if forgets else bases[0] == 0 and len(bases) > 2
        assert len(ledger.archived(0, 15)) == 15 - bases[0]
    assert all(check.holds for check in checks_of(federation).values())


def test_what_was_accepted_while_it_was_off_is_named(federation):
    service = federation.service(archive=None)
    p = federation.join("p0", lambda p, task: len(p.tasks) < 5 and p.train(task))
    running = federation.start(service)
    p.wait_until(lambda: len(p.tasks) == 5)
    service.stop()
    assert running.result(DEADLINE_S).accepted == 4
    federation.join("p1")
    federation.run()
    checks = checks_of(federation)
    assert checks["updates 1 to 4 were replayed"].left_out
    assert "updates 5 to 15 make 4 versions" in " ".join(checks)


def test_a_full_disk_makes_the_archive_wait_with_its_commit(federation, monkeypatch):
    monkeypatch.setattr(commits, "RETRY_FIRST_S", 0.01)
    real, disk = archive._write_all, FullDisk()

    def write_all(file, data):
        try:
            disk.refuse_where_full()
        except OSError:
            os.write(file, data[:3])
            raise
        real(file, data)

    monkeypatch.setattr(archive, "_write_all", write_all)
    p = federation.join("p0", disk.train)
    running = federation.start(federation.service())
    disk.wait_until_refused(3)
    assert len(p.receipts) <= 4
    disk.room()
    assert running.result(DEADLINE_S).version == 5
    assert all(check.holds for check in checks_of(federation).values())
    assert "updates 1 to 15 make 5 versions" in " ".join(checks_of(federation))


@pytest.mark.parametrize("point", ["after-checkpoint", "after-ledger"])
def test_what_a_crash_leaves_of_the_archive_does_not_count(federation, monkeypatch, point):
    crash_at(monkeypatch, point, 3)
    federation.join("p0")
    with pytest.raises(Crashed):
        federation.run()
    monkeypatch.undo()
    federation.run()
    assert "updates 1 to 15 make 5 versions" in " ".join(checks_of(federation))
    assert same_bits(federation.final(), federation.replayed())
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        rows = ledger.archived(0, 15)
        for row, update in zip(rows, ledger.updates(), strict=True):
            assert same_bits(archive.read_update(federation.run_dir / "archive", row), delta(update.task_id))


def failing_sync(monkeypatch, federation, lose):
    """Let the archive's third sync fail. If `lose`, the system drops the file's end as well. Return the list of the
    files whose sync failed; a second sync of one fails the test."""
    monkeypatch.setattr(commits, "RETRY_FIRST_S", 0.01)
    real, syncs, failed = os.fsync, [0], []

    def fsync(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if not path.endswith(".updates"):
            return real(handle)
        assert path not in failed, "a file whose sync failed is synced again"
        syncs[0] += 1
        if syncs[0] == 3:
            failed.append(path)
            if lose:
                with open(path, "r+b") as file:
                    file.truncate(os.path.getsize(path) - 5)
            raise OSError(errno.EIO, "Input/output error")
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    federation.join("p0")
    return failed


def test_after_a_sync_that_failed_the_archive_goes_on_in_another_file(federation, monkeypatch, caplog):
    failed = failing_sync(monkeypatch, federation, lose=False)
    assert federation.run().version == 5
    assert len(failed) == 1
    assert "event=archive_goes_on" in caplog.text
    with federation.ledger() as ledger:
        assert len({row.file for row in ledger.archived(0, 15)}) == 2
    assert all(check.holds for check in checks_of(federation).values())
    assert "updates 1 to 15 make 5 versions" in " ".join(checks_of(federation))


def test_what_a_failed_sync_lost_was_not_acked_and_comes_again(federation, monkeypatch):
    failing_sync(monkeypatch, federation, lose=True)
    with pytest.raises(CheckpointError, match=r"has lost them: update \d+ is damaged .* None of them was acked"):
        federation.run()
    with federation.ledger() as ledger:
        assert 0 < ledger.accepted() < 15
    assert federation.run().version == 5
    assert "updates 1 to 15 make 5 versions" in " ".join(checks_of(federation))
    assert same_bits(federation.final(), federation.replayed())
