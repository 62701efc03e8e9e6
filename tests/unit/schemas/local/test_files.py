import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.schemas.local import files
from fedmq.schemas.local.durable import write_whole
from fedmq.schemas.local.files import UnfitFile


def mode_of(path: Path) -> str:
    return f"{stat.S_IMODE(path.lstat().st_mode):04o}"


@pytest.fixture(params=["0000", "0022", "0777"])
def umask(request: pytest.FixtureRequest) -> Iterator[str]:
    before = os.umask(int(request.param, 8))
    yield request.param
    os.umask(before)


def test_everything_that_is_made_is_this_users_alone_whatever_the_umask(tmp_path: Path, umask: str) -> None:
    folder = tmp_path / "a" / "b"
    files.make_folder(folder)
    write_whole(folder / "whole", [b"x"])
    with files.open_log(folder / "log") as log:
        log.write(b"x")
    os.close(files.open_in_place(folder / "in place"))
    files.write_private(folder / "private", "x")
    assert {mode_of(path) for path in (tmp_path / "a", folder)} == {"0700"}
    assert {path.name: mode_of(path) for path in folder.iterdir()} == dict.fromkeys(
        ["whole", "log", "in place", "private"], "0600"
    )


def test_a_folder_of_an_older_version_is_closed_with_its_files_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "run"
    old.mkdir()
    (old / "ledger.sqlite").touch()
    (old / "inside").mkdir()
    (tmp_path / "theirs").touch()
    for path, mode in ((old, 0o755), (old / "ledger.sqlite", 0o644), (tmp_path / "theirs", 0o644)):
        path.chmod(mode)
    (old / "link").symlink_to(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING):
        files.make_folder(old)
    assert (mode_of(old), mode_of(old / "ledger.sqlite")) == ("0700", "0600")
    assert mode_of(tmp_path / "theirs") == "0644", "a link in it leads to somebody else's file"
    assert f"event=folder_closed_to_others folder={old} mode=0755 now=0700" in caplog.text
    caplog.clear()
    files.make_folder(old)
    assert caplog.text == ""


def test_a_file_in_place_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "lock").chmod(0o666)
    os.close(files.open_in_place(tmp_path / "lock"))
    assert mode_of(tmp_path / "lock") == "0600"


def hostile(path: Path, form: str) -> None:
    """Put something that is no plain file there."""
    target = path.with_name("target")
    if form == "link":
        target.write_bytes(b"x")
        path.symlink_to(target)
    elif form == "dangling link":
        path.symlink_to(target)
    elif form == "link to itself":
        path.symlink_to(path)
    elif form == "hard link":
        target.write_bytes(b"x")
        path.hardlink_to(target)
    elif form == "folder":
        path.mkdir()
    elif form == "FIFO":
        os.mkfifo(path)
    elif form == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket has to be short
            one.bind(path.name)
            os.chdir(here)
    elif form == "link to a device":
        path.symlink_to("/dev/zero")
    elif form == "sparse giant":
        with path.open("wb") as file:
            file.truncate(2**42)


FORMS = {
    "link": "a link",
    "dangling link": "a link",
    "link to itself": "a link",
    "hard link": "2 names",
    "folder": "a folder",
    "FIFO": "a FIFO",
    "socket": "a socket",
    "link to a device": "a link",
    "sparse giant": "has 4398046511104 bytes, expected at most 1000",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_no_plain_file_of_the_expected_size_is_not_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "file"
    hostile(path, form)
    for read in (files.read_bytes, files.content, files.read_text, files.read_json):
        with pytest.raises(UnfitFile, match=FORMS[form]):
            read(path, 1000)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "sparse giant"])
def test_a_file_that_is_no_plain_file_is_not_written_in_place(tmp_path: Path, form: str) -> None:
    path = tmp_path / "file"
    hostile(path, form)
    for opened in (files.open_in_place, files.open_log):
        with pytest.raises(UnfitFile, match=FORMS[form]):
            opened(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_file_takes_the_place_of_whatever_lay_beside_it(tmp_path: Path, form: str) -> None:
    hostile(tmp_path / "file.tmp", form)
    write_whole(tmp_path / "file", [b"new"])
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_bytes() == b"x"


def test_a_file_that_an_operator_names_may_be_a_link_and_still_no_fifo_or_giant(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("data")
    assert files.read_json(tmp_path / "link", 1000, named_by_user=True) == {}
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to fifo").symlink_to("fifo")
    for name in ("fifo", "to fifo"):
        with pytest.raises(UnfitFile, match="a FIFO"):
            files.read_json(tmp_path / name, 1000, named_by_user=True)


def test_a_folder_of_ours_is_never_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    with pytest.raises(UnfitFile, match="a link, expected a folder"):
        files.make_folder(tmp_path / "checkpoints")
    with pytest.raises(UnfitFile, match="its folder checkpoints/ is a link"):
        files.read_bytes(tmp_path / "checkpoints" / "file", 1000)
    files.make_folder(tmp_path / "checkpoints" / "below")  # what lies above the folder is the operator's


def test_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "none", 1000)
    assert files.check_plain(tmp_path / "none") is False


@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff", b"", b"{", b'"\xed\xa0\x80"', b"9" * 5000]
)
def test_json_that_cannot_be_read_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  what the parser says
        files.parse_json(text)


def test_a_folder_with_the_name_of_a_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "inside").touch()
    files.remove(tmp_path / "file")
    [aside] = tmp_path.iterdir()
    assert aside.name.startswith("file.set-aside-")
    assert (aside / "inside").exists()
    assert "folder_set_aside" in caplog.text


def test_the_end_of_a_log_is_read_whatever_its_length(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(2**40)
        file.seek(0, os.SEEK_END)
        file.write(b"the end\n")
    assert files.tail(tmp_path / "log", 8) == "the end\n"
    os.mkfifo(tmp_path / "fifo")
    assert files.tail(tmp_path / "fifo", 8) == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, encoding):
    path = tmp_path / "file.json"
    path.write_bytes('{"größe": 1}'.encode(encoding))
    assert files.read_json(path, 100) == {"größe": 1}
    assert files.read_text(path, 100) == '{"größe": 1}'
