"""SIGTERM ends a command and all that it has started, whatever it is doing."""

import signal
import socket
import subprocess
import sys

import psutil
import pytest

from tests.support.full import FULL

APP = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import numpy as np

def sleep(seconds):
    print("asleep", flush=True)
    time.sleep(seconds)

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        if METHOD == "subprocess":
            import subprocess
            subprocess.run(["sleep", "1000"])
        if METHOD == "executor":
            with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
                list(pool.map(sleep, [1000, 1000]))
        with get_context(METHOD).Pool(2) as pool:
            pool.map(sleep, [1000, 1000])

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"w": np.zeros(3, np.float32)}
"""
FEDERATION = """
[run]
run_id = "r1"
stop = { max_versions = 1 }
[strategy]
name = "fedasync"
"""

PROCESSES = {"executor": 5, "spawn": 5, "forkserver": 6, "subprocess": 3}
"""The command, the process that loads the app, and what the trainer starts there."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "app.py").write_text(APP.replace("METHOD", '"spawn"'))
    return tmp_path


@pytest.fixture
def deaf_broker():
    """The URL of a port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"amqp://127.0.0.1:{listener.getsockname()[1]}", listener


def processes_in(folder):
    """The processes that work in this folder: those of a command that was started there, and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_workers(folder, count):
    while len(found := processes_in(folder)) < count:
        psutil.wait_procs(found, 0.05)
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["executor", "spawn", "forkserver", "subprocess"] if FULL else ["executor"])
def test_a_doctor_in_mid_training_leaves_no_process_behind(terminal, folder, method):
    (folder / "app.py").write_text(APP.replace("METHOD", repr(method)))
    doctor = terminal("doctor", "--config", "federation.toml", "--broker", "amqp://127.0.0.1:1")
    before = wait_for_workers(folder, PROCESSES[method])
    doctor.send(signal.SIGTERM)
    assert doctor.ended() == 128 + signal.SIGTERM, doctor.text
    assert "Traceback" not in doctor.text
    psutil.wait_procs(before, 10)  # multiprocessing's two servers end after their users
    assert processes_in(folder) == []


@pytest.mark.parametrize("role", ["coordinator", "participant"])
def test_a_role_that_connects_leaves_without_a_traceback(terminal, folder, deaf_broker, role):
    url, listener = deaf_broker
    process = terminal(role, "--config", "federation.toml", FEDMQ_BROKER_URL=url)
    connection, _ = listener.accept()
    with connection:
        assert connection.recv(4) == b"AMQP"
        process.send(signal.SIGTERM)
        assert process.ended() == 0
    assert "Traceback" not in process.text
    assert "ERROR" not in process.text
    assert processes_in(folder) == []


INTERRUPTED = """
import importlib.abc, os, runpy, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["status", "--watch", "nowhere"]
runpy.run_module("fedmq", run_name="__main__")
"""
MODULES = ["fedmq.cli.cli", "fedmq.cli.signals", "fedmq.schemas.local.leaving", "typer", "fedmq.views.status"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", MODULES if FULL else MODULES[:1] + MODULES[-1:])
def test_a_signal_while_a_command_is_loaded_leaves_no_traceback(tmp_path, module, number):
    code = INTERRUPTED.format(module=module, number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in {-number, 128 + number}, done.stderr
    assert done.stderr == ""
