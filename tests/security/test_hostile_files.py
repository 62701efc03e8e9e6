"""Files that somebody else has put into our folders: our own error, or set aside; no hang, no traceback, no giant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.app.parameter_files import write_parameters
from fedmq.coordinator.settings import ArchiveSettings, StopSettings
from fedmq.schemas.parameters import Parameters
from tests.integration.coordinator.federation import Federation, initial
from tests.support.full import FULL

ROOT = Path(__file__).parents[2]
DEADLINE_S = 100.0
LEAST = {"spool": 300, "initial": 60, "trace": 30, "run": 700 if FULL else 250}
"""Number of cases that each room has at least: a table that has shrunk is no success."""


@pytest.mark.parametrize("room", LEAST)
def test_whatever_lies_in_our_folders_is_our_own_error_or_set_aside(tmp_path: Path, room: str) -> None:
    if room == "run":
        make_run(tmp_path / "good")
    with (tmp_path / "log").open("w") as log:
        tried = subprocess.Popen(
            [sys.executable, "-m", "tests.security.hostile", room, str(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "FEDMQ_TF_THREADS": "1"},
        )  # fmt: skip
        try:
            said, _ = tried.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            tried.kill()
            said, _ = tried.communicate()
            pytest.fail(f"it hangs: {said.splitlines()[-1]}")
    cases = [json.loads(line) for line in said.splitlines()]
    assert tried.returncode == 0, (cases[-1:], (tmp_path / "log").read_text()[-3000:])
    done = [case for case in cases if case["outcome"] != "begun"]
    assert len(done) * 2 == len(cases)
    assert len(done) >= LEAST[room]
    raw = [f"{case['kind']}, {case['form']}: {case['text']}" for case in done if case["outcome"] == "RAW"]
    assert not raw, f"{len(raw)} of {len(done)}: " + "\n".join(raw[:5])
    assert "Traceback" not in (tmp_path / "log").read_text()


def make_run(folder: Path) -> None:
    """Make a run that stopped between two versions, with everything that a run folder may hold but a final model."""
    federation = Federation(folder)
    federation.stop = StopSettings(max_versions=3)
    federation.archive = ArchiveSettings(max_bytes=2**20)
    p0 = federation.join("p0", lambda p, task: p.train(task) if len(p.tasks) <= 7 else None)
    service = federation.service()
    running = federation.start(service)
    p0.wait_until(lambda: len(p0.receipts) == 7)
    service.stop()
    assert running.result(DEADLINE_S).finished is None
    federation.close()
    write_parameters(folder / "final.safetensors", Parameters(initial()))
