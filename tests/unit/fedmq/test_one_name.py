"""The one import name: a linked room is not loaded under a second one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("room", ["schemas", "broker_config", "coordinator", "participant", "studies"])
def test_a_linked_room_refuses_its_bare_name_and_says_the_right_one(room: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {room}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"ImportError: import fedmq.{room}, not {room}: " in done.stderr
