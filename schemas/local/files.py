"""Files and folders of our own: closed to other users, and opened only if they are what they must be.

Rules
1. A folder that fedmq makes has mode 0700 and a file 0600, whatever the umask is. A folder of an older version that is
   open to others is closed, with its files, and the log says so.
2. A file is opened without waiting: a FIFO would wait for its other end. A link is not followed. The descriptor is
   then asked what it is: a regular file with one name, no larger than its reader expects.
3. A file that an operator names (`initial`, a trace) may be a link. A folder that an operator names may lie behind one.
4. Everything else raises UnfitFile, which is an OSError: whoever handles a bad disk handles it too.
5. `parse_json` raises ValueError for everything that is no JSON of a sane depth.

SQLite opens its files by name. `check_plain` looks at them before; between the look and the opening only a process that
may write into the folder could change them.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import mmap
import os
import stat
import time
from pathlib import Path
from typing import Any, BinaryIO

from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

FOLDER_MODE = 0o700
FILE_MODE = 0o600
_OTHERS = 0o077
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
MAPPED_BYTES = 1024 * 1024
"""Size above which `content` maps a file and does not read it: a model need not be in RAM to be looked at."""


class UnfitFile(OSError):
    """A file that is not the plain file of a bounded size that was expected. `strerror` says what it is."""


# Folders


def make_folder(path: Path) -> None:
    """Make the folder, and its parents that are missing, for this user alone. Close it if it is open to others.

    Raises OSError if the disk refuses, and UnfitFile if something else has its name, also a link to a folder.
    """
    missing = []
    for folder in (path, *path.parents):
        if os.path.lexists(folder):
            break
        missing.append(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process has just made it
            os.mkdir(folder, FOLDER_MODE)
            folder.chmod(FOLDER_MODE)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _unfit(path, f"it is {_kind(found)}, expected a folder. Move it away")
    if found.st_mode & _OTHERS:
        _close_to_others(path, found)


def _close_to_others(path: Path, found: os.stat_result) -> None:
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    try:
        path.chmod(FOLDER_MODE)
    except OSError as error:
        log.warning(
            "folder_open_to_others", folder=path, mode=mode, error=error,
            detail="its owner should close it: chmod -R go-rwx",
        )  # fmt: skip
        return
    with os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                tighten(Path(entry.path))
    log.warning("folder_closed_to_others", folder=path, mode=mode, now=f"{FOLDER_MODE:04o}")


def tighten(path: Path) -> None:
    """Give a regular file of ours the mode 0600 if it is open to others. Everything else stays as it is.

    Raises OSError if that is refused.
    """
    found = path.lstat()
    if stat.S_ISREG(found.st_mode) and found.st_mode & _OTHERS and found.st_nlink == 1:
        path.chmod(FILE_MODE)


# Reading


def check_plain(path: Path, *, missing_ok: bool = True) -> bool:
    """Return True if the path is a regular file with one name, False if there is nothing. Raises UnfitFile."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        if missing_ok:
            return False
        raise
    _check(path, found)
    return True


def open_to_read(path: Path, most_bytes: int, *, named_by_user: bool = False) -> BinaryIO:
    """Open a file of at most `most_bytes`. With `named_by_user` it may be a link to one, or have several names.

    Raises FileNotFoundError, another OSError, or UnfitFile.
    """
    if not named_by_user:
        _check(path, path.lstat())
        if stat.S_ISLNK(path.parent.lstat().st_mode) and path.parent.name in OUR_FOLDERS:
            raise _unfit(path, f"its folder {path.parent.name}/ is a link")
    handle = os.open(path, os.O_RDONLY | (_SAFELY & ~os.O_NOFOLLOW if named_by_user else _SAFELY))
    try:
        found = os.fstat(handle)
        _check(path, found, any_names=named_by_user)
        if found.st_size > most_bytes:
            raise _unfit(path, f"it has {found.st_size} bytes, expected at most {most_bytes}")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


OUR_FOLDERS = ("checkpoints", "copies", "archive", "model", "outbox", "memory", "next", "frozen")
"""Folders that fedmq makes inside a folder that an operator may have named: none of them is ever a link."""


def read_bytes(path: Path, most_bytes: int, *, named_by_user: bool = False) -> bytes:
    """Return the file's content. Raises OSError as `open_to_read` does."""
    with open_to_read(path, most_bytes, named_by_user=named_by_user) as file:
        return file.read(_size(file))  # a read of `most_bytes` would take as much memory


def read_text(path: Path, most_bytes: int, *, named_by_user: bool = False, errors: str = "strict") -> str:
    """Return the file's text. Raises OSError, and UnicodeDecodeError (a ValueError)."""
    return decoded(read_bytes(path, most_bytes, named_by_user=named_by_user), errors)


def read_json(path: Path, most_bytes: int, *, named_by_user: bool = False) -> Any:
    """Return the file's content. Raises OSError, and ValueError if it is no JSON."""
    return parse_json(decoded(read_bytes(path, most_bytes, named_by_user=named_by_user)))


_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def is_marked(written: bytes) -> bool:
    """Return True if a file with this content begins with a byte order mark."""
    return written.startswith((codecs.BOM_UTF8, *_UTF_16))


def decoded(written: bytes, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, or in UTF-16 if it begins with that byte order mark. A mark is no text.

    Raises UnicodeDecodeError (a ValueError).
    """
    return written.decode("utf-16" if written.startswith(_UTF_16) else "utf-8-sig", errors)


def tail(path: Path, most_bytes: int) -> str:
    """Return the end of a log, of any length; empty if it cannot be read."""
    try:
        with open_to_read(path, 2**63 - 1) as file:
            file.seek(max(0, _size(file) - most_bytes))
            return file.read(most_bytes).decode(errors="replace")
    except OSError:
        return ""


def content(path: Path, most_bytes: int) -> bytes | memoryview:
    """Return the file's content, mapped if it is large. Raises OSError as `open_to_read` does."""
    with open_to_read(path, most_bytes) as file:
        size = _size(file)
        if size <= MAPPED_BYTES:
            return file.read(size)
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def parse_json(text: str | bytes | bytearray | memoryview) -> Any:
    """Parse JSON. Raises ValueError if it is none, is nested too deeply to be read, or is no UTF-8."""
    try:
        return json.loads(text if isinstance(text, str) else bytes(text).decode())  # json takes surrogates in bytes
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


# Writing


def open_new(path: Path) -> BinaryIO:
    """Make the file anew, for this user alone. Whatever had its name is removed. Raises OSError."""
    remove(path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, FILE_MODE)
    return os.fdopen(_private(handle), "wb")


def open_in_place(path: Path, *, append: bool = False) -> int:
    """Open the file for reading and writing in place, and make it if it is missing. Return the descriptor.

    Raises OSError, and UnfitFile if it is no plain file.
    """
    with contextlib.suppress(FileNotFoundError):
        _check(path, path.lstat())
    flags = os.O_RDWR | os.O_CREAT | _SAFELY | (os.O_APPEND if append else 0)
    handle = os.open(path, flags, FILE_MODE)
    try:
        _check(path, os.fstat(handle))
        return _private(handle)
    except BaseException:
        os.close(handle)
        raise


def open_log(path: Path) -> BinaryIO:
    """Open a file to append to, for this user alone. Raises OSError, and UnfitFile if it is no plain file."""
    return os.fdopen(open_in_place(path, append=True), "ab")


def write_private(path: Path, text: str) -> None:
    """Write a small file for this user alone, in place of whatever has its name. Raises OSError."""
    with open_new(path) as file:
        file.write(text.encode())


def remove(path: Path) -> None:
    """Remove a file or a link; a folder that has the file's name is moved aside. Idempotent. Raises OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # POSIX: EPERM, Linux: EISDIR
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise
        aside = path.with_name(f"{path.name}.set-aside-{time.time_ns()}")
        log.error("folder_set_aside", folder=path, moved_to=aside, why="it has the name of a file")
        path.rename(aside)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _private(handle: int) -> int:
    if stat.S_IMODE(os.fstat(handle).st_mode) != FILE_MODE:
        with contextlib.suppress(PermissionError):  # somebody else's file that we may write
            os.fchmod(handle, FILE_MODE)
    return handle


def _check(path: Path, found: os.stat_result, *, any_names: bool = False) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _unfit(path, f"it is {_kind(found)}, expected a regular file. Move it away")
    if found.st_nlink > 1 and not any_names:
        raise _unfit(path, f"it has {found.st_nlink} names (hard links), expected one. Put a copy in its place")


def _kind(found: os.stat_result) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no regular file")


def _unfit(path: Path, why: str) -> UnfitFile:
    return UnfitFile(errno.EINVAL, why, str(path))
