import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.schemas.local.locks import FileLock, holders

PARENT = """
import ctypes, os, signal, sys
from pathlib import Path
from fedmq.schemas.local.locks import FileLock

lock = FileLock(Path(sys.argv[1]))
assert lock.take()
child = os.fork() if sys.argv[2] == "os.fork" else ctypes.CDLL(None).fork()
if child == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()  # until the test closes the pipe
    os._exit(0)
signal.pause()  # until the test kills it
"""


class Orphan:
    """A worker that was forked by a process that held the lock, and that has been killed since."""

    def __init__(self, lock: Path, fork: str) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(lock), fork], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._parent.stdout is not None
        self.pid = int(self._parent.stdout.readline())
        self._parent.kill()
        assert self._parent.wait(60) == -signal.SIGKILL
        os.kill(self.pid, 0)  # it lives

    def __enter__(self) -> "Orphan":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._parent.stdin, self._parent.stdout):
            assert pipe is not None
            pipe.close()


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    with Orphan(tmp_path / "lock", "os.fork"):
        lock = FileLock(tmp_path / "lock")
        assert lock.take()
        lock.close()


def test_a_child_that_a_library_forked_keeps_the_lock_and_is_named(tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "fork"):
        pytest.skip("this C library has no fork")
    with Orphan(tmp_path / "lock", "C") as orphan:
        lock = FileLock(tmp_path / "lock")
        assert not lock.take()
        lock.close()
        assert holders(tmp_path / "lock").startswith(f"process {orphan.pid} ({sys.executable} -c")


def test_a_lock_is_for_one_even_in_one_process_and_can_be_shared(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.take()
    assert not second.take()
    assert holders(tmp_path / "lock").startswith(f"process {os.getpid()} (")
    first.share()
    second.share()
    assert not second.take()
    first.close()
    assert second.take()
    second.close()
    second.close()
    assert "cannot be seen from here" in holders(tmp_path / "lock")
