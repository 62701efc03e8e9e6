"""A folder is kept for the coordinators of one broker and prefix."""

import subprocess
import sys

import pytest

from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import LedgerError


def test_coordinators_of_one_place_share_a_folder_and_those_of_another_are_refused(tmp_path):
    first, second, other = (RunFolder(tmp_path / "run") for _ in range(3))
    first.acquire("a with prefix x")
    second.acquire("a with prefix x")
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"works over a with prefix x has the run .* work over b with prefix x"):
            other.acquire("b with prefix x")
        first.release()
    second.release()
    other.acquire("b with prefix x")
    with pytest.raises(LedgerError, match="over b with"):
        first.acquire("a with prefix x")
    other.release()


def test_a_folder_may_be_taken_again(tmp_path):
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    folder.acquire("a")
    folder.acquire("b")
    folder.release()
    other.acquire("c")
    other.release()


def test_the_lock_goes_with_its_process(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from fedmq.coordinator.state.run_folder import RunFolder; "
        "RunFolder(Path(sys.argv[1])).acquire('a'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    folder = RunFolder(tmp_path)
    folder.acquire("b")
    folder.release()
