import errno
import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedmq.participant.spool.spool import SentRecord, Spool
from fedmq.schemas.errors import SpoolError
from fedmq.schemas.local.clocks import Moment, age_s


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path, "sensor-1")) as opened:
        yield opened


NOW = Moment(wall_s=1_800_000_000.0, boot_s=5000.0, boot_id="boot-1")


def test_a_task_comes_back_as_it_was(tmp_path: Path) -> None:
    first = Spool(tmp_path, "sensor-1")
    first.write_task(b"\x00body\xff", NOW)
    first.close()
    with closing(Spool(tmp_path, "sensor-1")) as again:
        assert again.read_task() == (b"\x00body\xff", NOW)


def test_a_new_task_replaces_the_old_one_and_a_cleared_one_is_gone(spool: Spool) -> None:
    spool.write_task(b"old", NOW)
    spool.write_task(b"new", NOW)
    assert spool.read_task() == (b"new", NOW)
    spool.clear_task()
    spool.clear_task()
    assert spool.read_task() is None


def test_updates_are_listed_with_their_tasks_until_they_are_cleared(spool: Spool) -> None:
    spool.write_update("u1", "t1", "run-1", b"one")
    spool.write_update("u2", "t2", "run-1", b"two")
    assert spool.outbox() == {"u1": ("t1", "run-1"), "u2": ("t2", "run-1")}
    assert spool.read_update("u1")[1] == b"one"
    spool.clear_update("u1")
    assert spool.outbox() == {"u2": ("t2", "run-1")}


def test_what_is_remembered_comes_back(spool: Spool) -> None:
    assert spool.read_sent() == SentRecord({}, ())
    memory = SentRecord({"u1": ("t1", "run-1")}, ("t0",))
    spool.write_sent(memory)
    assert spool.read_sent() == memory


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "somebody else's"])
def test_a_damaged_file_is_set_aside_with_a_loud_line(
    spool: Spool, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spool.write_task(b"task body", NOW)
    spool.write_update("u1", "t1", "run-1", b"update body")
    spool.write_sent(SentRecord({"u1": ("t1", "run-1")}, ()))
    for path in (spool.folder / "task.fedmq", spool.folder / "outbox" / "u1.fedmq", spool.folder / "sent.json"):
        content = path.read_bytes()
        path.write_bytes(
            {
                "truncated": content[:-1],
                "empty": b"",
                "one bit": content[:-1] + bytes([content[-1] ^ 1]),
                "somebody else's": b"x" * len(content),
            }[damage]
        )
    with caplog.at_level(logging.ERROR):
        assert spool.read_task() is None
        assert spool.outbox() == {}
        assert spool.read_sent() == SentRecord({}, ())
    assert caplog.text.count("spool_file_set_aside") == 3
    assert len(list((spool.folder / "set-aside").iterdir())) == 3
    with pytest.raises(SpoolError, match="u1 cannot be read"):
        spool.read_update("u1")


def test_a_file_cut_off_by_a_crash_is_not_taken_for_the_real_one(spool: Spool, tmp_path: Path) -> None:
    spool.write_task(b"whole", NOW)
    (spool.folder / "task.fedmq.tmp").write_bytes(b"half")
    spool.close()
    with closing(Spool(tmp_path, "sensor-1")) as again:
        assert again.read_task() == (b"whole", NOW)
        assert not (again.folder / "task.fedmq.tmp").exists()


def test_a_second_process_with_the_same_id_is_refused(tmp_path: Path) -> None:
    first = Spool(tmp_path, "sensor-1")
    with pytest.raises(SpoolError, match="in use by another process"):
        Spool(tmp_path, "sensor-1")
    Spool(tmp_path, "sensor-2").close()
    first.close()
    Spool(tmp_path, "sensor-1").close()


def test_a_full_disk_is_a_spool_error_and_leaves_the_old_content(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.write_task(b"old", NOW)

    def full(_handle: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(SpoolError, match=r"cannot write .*task\.fedmq: No space left on device"):
            spool.write_task(b"new", NOW)
    assert spool.read_task() == (b"old", NOW)
    assert list(spool.folder.glob("*.tmp")) == []


def test_a_folder_that_cannot_be_made_is_a_spool_error(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    with pytest.raises(SpoolError, match="cannot make"):
        Spool(tmp_path / "spool", "sensor-1")


def later(wall_s: float, boot_s: float, boot_id: str = "boot-1") -> Moment:
    return Moment(NOW.wall_s + wall_s, NOW.boot_s + boot_s, boot_id)


def test_within_one_boot_a_changed_wall_clock_does_not_matter() -> None:
    assert age_s(NOW, later(wall_s=-1e9, boot_s=60.0)) == 60.0
    assert age_s(NOW, later(wall_s=1e9, boot_s=60.0)) == 60.0


def test_across_boots_the_wall_clock_counts_unless_it_cannot_be_right() -> None:
    assert age_s(NOW, later(wall_s=60.0, boot_s=-4990.0, boot_id="boot-2")) == 60.0
    assert age_s(NOW, later(wall_s=-60.0, boot_s=0.0, boot_id="boot-2")) is None
    never_set = Moment(wall_s=30.0, boot_s=30.0, boot_id="boot-0")
    assert age_s(never_set, NOW) is None


def test_the_trainers_own_folders_stay_for_the_newest_runs(spool: Spool, tmp_path: Path) -> None:
    for number in range(6):
        folder = spool.own_folder(f"run-{number}")
        (folder / "kept").write_text(str(number))
        os.utime(folder, (number, number))
        assert spool.own_folder(f"run-{number}") == folder
    own = tmp_path / "sensor-1" / "own"
    (own / "a link").symlink_to(tmp_path)
    assert sorted(path.name for path in own.iterdir()) == ["a link", "run-2", "run-3", "run-4", "run-5"]
    assert (own / "run-2" / "kept").read_text() == "2"
    assert own.stat().st_mode & 0o77 == 0
    spool.own_folder("run-6")
    assert sorted(path.name for path in own.iterdir()) == ["a link", "run-3", "run-4", "run-5", "run-6"]
