"""The lock of a folder: held by one process, or shared by several, until they end, however that happens.

Rules
1. The lock is flock's. It goes with the process that took it, also if that is killed.
2. A forked child inherits an flock, and would hold it after its parent's death: a data loader's worker would keep its
   participant from starting again. Each child of `os.fork`, and so each of `multiprocessing`, gives the lock up before
   it runs anything else.
3. A child that other code forked (a C library) cannot do that. Whoever is refused is told which processes have the file
   open: /proc names them, if they are this user's and on this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from fedmq.schemas.local.files import open_in_place
from fedmq.schemas.redaction import redacted

_MOST_NAMED = 4
_COMMAND_CHARS = 120
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """A file that this process locks. Its content is the owner's."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it if it is missing; nothing is locked yet. Raises OSError."""
        self.path = path
        self.handle: int | None = open_in_place(path)
        _held.add(self)

    def take(self) -> bool:
        """Lock the file for this process alone; False if another one has it. Raises OSError."""
        assert self.handle is not None
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Lock the file together with others; an exclusive lock of this process becomes a shared one."""
        assert self.handle is not None
        fcntl.flock(self.handle, fcntl.LOCK_SH)

    def in_place(self) -> bool:
        """False if the file was moved, replaced or removed, and a new process would lock another one."""
        assert self.handle is not None
        try:
            found = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a disk that does not answer has lost nothing yet
            return True
        ours = os.fstat(self.handle)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        """Give the lock up. Idempotent."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def _give_up_in_child() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_give_up_in_child)


def holding(path: Path) -> list[int]:
    """Return the pids of the processes that have the file open, as far as /proc shows them. It takes no lock."""
    with contextlib.suppress(OSError):
        file = path.stat()
        return [pid for pid in _processes() if _has_open(pid, file)]
    return []


def holders(path: Path) -> str:
    """Name the processes that have the file open: "process 4711 (python -m fedmq ...)", for an error text."""
    found = holding(path)
    if not found:
        return "a process that cannot be seen from here (another user's, another container's or another machine's)"
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return ", ".join(f"process {pid} ({_command(pid)})" for pid in found[:_MOST_NAMED]) + more


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def _has_open(pid: int, file: os.stat_result) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as handles:
        for handle in handles:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                opened = handle.stat()
                if (opened.st_dev, opened.st_ino) == (file.st_dev, file.st_ino):
                    return True
    return False


def _command(pid: int) -> str:
    """Return the command line in short, without secrets, on one line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"
    text = "".join(c if c.isprintable() else "?" for c in redacted(words))
    return text if len(text) <= _COMMAND_CHARS else f"{text[:_COMMAND_CHARS]}..."
