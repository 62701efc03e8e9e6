"""Functions and classes of an app, in processes that `spawn` and `forkserver` make: by processes of our own."""

import os
import subprocess
import sys

import pytest

from fedmq.app.children import importable, without_settings
from fedmq.app.files import name_of

APP = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from helper import add

@dataclass
class Number:
    value: int

def square(number):
    return Number(add(number.value * number.value, 1))

class Result:
    num_examples, num_steps, metrics = 10, 1, {"loss": 1.0}
    def __init__(self, parameters):
        self.parameters = parameters

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        context = multiprocessing.get_context("METHOD")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            assert pool.submit(square, Number(3)).result(60) == Number(10)
        with context.Pool(1) as pool:
            assert pool.apply(square, (Number(4),)) == Number(17)
        return Result(parameters)

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    import numpy as np
    return {"w": np.zeros(3, np.float32)}
"""
TRAIN = """
import sys
from fedmq.app.app import load_app
if __name__ == "__main__":
    app = load_app(sys.argv[1])
    app.functions["build_trainer"]("a").train({}, None)
    print(app.functions["square"].__module__)
"""


@pytest.fixture
def module_of(tmp_path):
    """Return module_of("app.py", "spawn"), which trains in another process and returns the app's module's name."""
    (tmp_path / "app").mkdir()
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "app" / "helper.py").write_text("def add(a, b):\n    return a + b\n")

    def run(name, method):
        (tmp_path / "app" / name).write_text(APP.replace("METHOD", method))
        done = subprocess.run(
            [sys.executable, "-P", tmp_path / "train.py", tmp_path / "app" / name],
            env=importable(without_settings(os.environ)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_import_the_app_by_the_name_of_its_file(module_of, method):
    assert module_of("app.py", method) == "app"


@pytest.mark.parametrize("name", ["queue.py", "my-app.py", "größe 1.py"])
def test_an_app_whose_name_is_taken_or_none_is_found_by_its_path(module_of, tmp_path, name):
    assert module_of(name, "spawn") == name_of(tmp_path / "app" / name)


def test_neighbours_that_hide_what_is_installed_are_the_workers_too(module_of, tmp_path):
    (tmp_path / "app" / "iniconfig.py").write_text("ITS_OWN = True\n")
    (tmp_path / "app" / "helper.py").write_text("from iniconfig import ITS_OWN\ndef add(a, b):\n    return a + b\n")
    assert module_of("app.py", "spawn") == name_of(tmp_path / "app" / "app.py")


def test_doctor_tries_a_trainer_with_workers(tmp_path):
    (tmp_path / "helper.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "app.py").write_text(APP.replace("METHOD", "spawn"))
    (tmp_path / "federation.toml").write_text(
        '[run]\nrun_id = "r"\nstop = { max_versions = 1 }\n[strategy]\nname = "fedasync"\n'
        '[broker]\nurl = "amqp://127.0.0.1:1"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fedmq", "doctor", "-c", "federation.toml"],
        env=importable(without_settings(os.environ)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "training: one step as sensor-1 on 10 examples worked" in done.stdout, done.stdout + done.stderr
    assert "trainer: its process leaves after 300 s without a task, and the next task starts another" in done.stdout
