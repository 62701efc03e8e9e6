"""Damage that a disk does to a checkpoint after its commit, and the next start."""

import shutil

import pytest

from fedmq.coordinator.audit import audit
from fedmq.coordinator.service.commits import commit
from fedmq.coordinator.settings import CommitSettings
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import LedgerError
from tests.integration.coordinator.federation import same_bits
from tests.integration.coordinator.test_crashes import Crashed, crash_at


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def remove(path):
    path.unlink()


def stopped_in_the_middle(federation, monkeypatch):
    """Kill a run. Return the name of its newest checkpoint."""
    crash_at(monkeypatch, "before-acks", 3)
    federation.join("p0")
    with pytest.raises(Crashed):
        federation.run()
    with federation.ledger() as ledger:
        assert 0 < ledger.accepted() < 15
        return ledger.checkpoints()[0].file


@pytest.mark.parametrize("lose", [remove, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"])
def test_a_folder_whose_ledger_is_lost_begins_no_new_run_over_the_checkpoints(federation, monkeypatch, tmp_path, lose):
    name = stopped_in_the_middle(federation, monkeypatch)
    monkeypatch.undo()
    whole = (federation.run_dir / "checkpoints" / name).read_bytes()
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in federation.run_dir.glob("ledger.sqlite*"):
        shutil.copy(path, kept)
        lose(path) if path.name == "ledger.sqlite" else remove(path)
    with pytest.raises(LedgerError, match=f"knows no run, but there are checkpoints of one, .*{name} the newest"):
        federation.run()
    assert (federation.run_dir / "checkpoints" / name).read_bytes() == whole
    for path in federation.run_dir.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copytree(kept, federation.run_dir, dirs_exist_ok=True)
    assert federation.run().version == 5
    assert same_bits(federation.final(), federation.replayed())


def test_a_run_whose_creation_was_cut_short_is_created_at_the_next_start(federation, monkeypatch):
    federation.join("p0")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "create", lambda *_: (_ for _ in ()).throw(Crashed))
        with pytest.raises(Crashed):
            federation.run()
    assert [path.name for path in (federation.run_dir / "checkpoints").iterdir()] == ["00000000-e0001.safetensors"]
    assert federation.run().version == 5


@pytest.mark.parametrize("damage", [flip, cut, remove])
@pytest.mark.parametrize("which", ["checkpoints", "copies"])
def test_damage_to_one_of_the_two_files_costs_nothing_and_is_mended_aloud(
    federation, monkeypatch, caplog, damage, which
):
    name = stopped_in_the_middle(federation, monkeypatch)
    path = federation.run_dir / which / name
    whole = path.read_bytes()
    damage(path)
    bad = {check.name for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds}
    assert bad == {f"checkpoint {name}" + (", its copy" if which == "copies" else "")}
    monkeypatch.setattr(commit.Committer, "commit", lambda *_: pytest.fail("the mended files are to be looked at"))
    if which == "copies" and damage is flip:
        return  # the start reads the first file only; the audit above has found the damage
    with pytest.raises(BaseException, match="the mended files"):
        federation.run()
    assert str(path) in caplog.text
    assert f"event=checkpoint_mended file={path}" in caplog.text
    assert path.read_bytes() == whole
    monkeypatch.undo()
    assert federation.run().version == 5
    assert same_bits(federation.final(), federation.replayed())


def test_the_second_file_may_lie_on_another_disk_and_move(federation, monkeypatch, tmp_path):
    federation.commit = CommitSettings(commit_interval_s=0.05, copy_dir=str(tmp_path / "disk"))
    name = stopped_in_the_middle(federation, monkeypatch)
    (place,) = (tmp_path / "disk").iterdir()
    assert [path.name for path in place.iterdir()] == [name]
    flip(federation.run_dir / "checkpoints" / name)
    federation.commit = CommitSettings(commit_interval_s=0.05, copy_dir=str(tmp_path / "newer"))
    monkeypatch.undo()
    assert federation.start(federation.service()).result(30).version == 5
    assert [path.name for path in place.iterdir()] == [name], "the old disk is not ours any more"
    (place,) = (tmp_path / "newer").iterdir()
    with federation.ledger() as ledger:
        assert [path.name for path in place.iterdir()] == [ledger.checkpoints()[0].file]
    assert same_bits(federation.final(), federation.replayed())


def test_one_file_is_kept_where_one_is_asked_for(federation):
    federation.commit = CommitSettings(commit_interval_s=0.05, checkpoint_copies=1)
    federation.join("p0")
    federation.run()
    assert not (federation.run_dir / "copies").exists()
    assert all(check.holds for check in audit.verify(RunFolder(federation.run_dir)))
