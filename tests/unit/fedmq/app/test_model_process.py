"""The helper process with an app that needs no Keras: quick, and the protocol is the same."""

import os
import re
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from fedmq.app.app import load_app
from fedmq.app.model_process import ModelChild
from fedmq.app.model_worker import Helper
from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import Task, TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from tests.support.asking import ask_until

DEADLINE_S = 60

APP = """
import os, sys
import numpy as np
print("noise on standard output")

class Trainer:
    num_examples = 5
    def train(self, parameters, config):
        class Result:
            num_examples, num_steps, metrics = 5, 1, {}
        Result.parameters = {name: array + 1 for name, array in parameters.items()}
        return Result

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"w": np.arange(3, dtype="float32"), "n": np.int64(7)}

def evaluate(parameters):
    print("more noise")
    total = float(parameters["w"].sum())
    if total < 0:
        raise ValueError("below zero")
    if total == 0:
        return None
    if total == 500:
        return {"total": "much"}
    if total > 1000:
        os._exit(7)
    return {"total": total}
"""


HUNG = """
import subprocess, sys, threading

def initial_parameters():
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    print("started", other.pid, flush=True)
    threading.Event().wait()
"""
WORKER = "import sys; from fedmq.app import model_worker; model_worker.ORPHAN_S = 0.05; model_worker.main(sys.argv[1:])"


def test_a_worker_that_hangs_in_the_app_ends_when_its_parent_is_gone_with_what_the_app_started(tmp_path):
    (tmp_path / "app.py").write_text(HUNG)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WORKER, str(tmp_path / "app.py")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as worker:
        assert '"ready": true' in worker.stdout.readline()
        worker.stdin.write('{"initial": "nowhere"}\n')
        worker.stdin.flush()
        (other,) = re.findall(r"started (\d+)", worker.stderr.readline())
        assert psutil.pid_exists(int(other))
        worker.stdin.close()  # as the kernel does for a parent that was killed
        assert worker.wait(DEADLINE_S) == 1
        ask_until(lambda: not psutil.pid_exists(int(other)))


@pytest.fixture
def child(tmp_path):
    made = []

    def start(text=APP):
        (tmp_path / "app.py").write_text(textwrap.dedent(text))
        made.append(ModelChild(tmp_path / "app.py", tmp_path / "model"))
        return made[-1]

    yield start
    for one in made:
        one.close()


def evaluated(child, version, values):
    arrived = threading.Event()
    results = []

    def on_result(result):
        results.append(result)
        arrived.set()

    child.submit(version, Parameters({"w": np.array(values, "float32")}), on_result)
    assert arrived.wait(DEADLINE_S)
    return results[0]


def test_initial_parameters_and_evaluations_come_from_the_child(child):
    one = child()
    one.ready()
    assert (one.evaluates, one.exports) == (True, False)
    initial = one.initial()
    assert np.array_equal(initial["w"], [0, 1, 2])
    assert (initial["n"].dtype, initial["n"].shape) == (np.int64, ())
    assert spec_of(one.outline()) == spec_of(initial)
    result = evaluated(one, 3, [1, 2])
    assert (result.version, dict(result.metrics)) == (3, {"total": 3.0})


def test_children_of_two_coordinators_in_one_folder_give_each_its_first_version(child):
    """A coordinator and its standby may begin a run at the same time. One took the other's file away."""
    pair = [child(), child()]
    for one in pair:
        one.ready()
    asked = [one._ask for one in pair]
    written = threading.Barrier(2)

    def both(number):
        def ask(request):
            answer = asked[number](request)
            written.wait(DEADLINE_S)  # both files are written before one is read
            return answer

        return ask

    for number, one in enumerate(pair):
        one._ask = both(number)
    with ThreadPoolExecutor(2) as pool:
        for first in pool.map(lambda one: one.initial(), pair):
            assert np.array_equal(first["w"], [0, 1, 2])
    assert not list(pair[0]._work_dir.glob("*.safetensors"))


def test_a_failing_evaluation_is_a_result_and_a_dead_child_is_started_again(child):
    one = child()
    one.ready()
    assert evaluated(one, 1, [-1]).detail.startswith("AppError: evaluate in ")
    assert evaluated(one, 1, [0]).detail.endswith("app.py returned None, expected a dict name -> number")
    assert "gave {'total': 'much'}, expected numbers" in evaluated(one, 1, [500]).detail
    gone = evaluated(one, 2, [2000])
    assert "ended with status 7" in gone.detail
    assert not gone.metrics
    assert dict(evaluated(one, 3, [4]).metrics) == {"total": 4.0}


def test_submitting_never_waits_for_the_evaluation_and_only_the_newest_waits(child, tmp_path):
    os.mkfifo(tmp_path / "gate")
    one = child(
        APP.replace(
            "    total = ",
            f"    open({str(tmp_path / 'gate')!r}).read()  # blocks until somebody opens it\n    total = ",
        )
    )
    one.ready()
    results, arrived = [], threading.Semaphore(0)

    def on_result(result):
        results.append((result.version, dict(result.metrics), result.detail))
        arrived.release()

    begun = threading.Event()
    real = one._evaluated
    one._evaluated = lambda wanted: (begun.set(), real(wanted))[1]
    one.submit(1, Parameters({"w": np.array([1], "float32")}), on_result)
    assert begun.wait(DEADLINE_S)
    for version in (2, 3):
        one.submit(version, Parameters({"w": np.array([version], "float32")}), on_result)
    assert arrived.acquire(blocking=False)
    assert results == [(2, {}, "superseded by version 3")]
    for _ in range(2):
        (tmp_path / "gate").write_text("")
        assert arrived.acquire(timeout=DEADLINE_S)
    assert results[1:] == [(1, {"total": 1.0}, ""), (3, {"total": 3.0}, "")]


TASK = Task(
    task_id="t", run_id="r", participant_id="sensor-1", base_version=0, reply="delta", training=TrainingConfig(),
    lease_s=1.0,
)  # fmt: skip


def test_a_task_is_done_as_its_participant_does_it(child):
    one = child()
    assert one.hello("sensor-1") == (5, ("delta", "parameters", "change"))
    update, payload = one.train(TASK, Parameters({"w": np.arange(3, dtype="float32"), "n": np.int64(7)}))
    assert (update.task_id, update.num_examples, update.num_steps) == ("t", 5, 1)
    assert {name: array.tolist() for name, array in payload.items()} == {"w": [1, 1, 1]}


def test_a_result_that_a_participant_would_decline_is_told_in_its_words(child):
    none = child(APP.replace("metrics = 5, 1, {}", "metrics = 0, 1, {}"))
    with pytest.raises(AppError, match="train returned num_examples=0, expected an integer of at least 1"):
        none.train(TASK, Parameters({"w": np.arange(3, dtype="float32")}))


def test_a_child_that_is_killed_is_started_again_at_the_next_question(child):
    one = child()
    one.ready()
    one.kill()
    assert one.evaluate(Parameters({"w": np.array([4], "float32")})) == {"total": 4.0}


def test_an_app_that_cannot_be_loaded_is_refused(child):
    with pytest.raises(AppError, match="fails when it is loaded: RuntimeError: broken"):
        child("raise RuntimeError('broken')").ready()


def test_an_app_without_a_model_is_refused(child):
    with pytest.raises(AppError, match="no function build_model, which is needed for the first version"):
        child("def load_data(participant_id): pass").ready()


def test_a_child_that_dies_while_loading_is_reported_with_its_last_words(child):
    with pytest.raises(AppError, match=r"(?s)ended with status 3.*last words"):
        child("import os\nos.write(2, b'last words')\nos._exit(3)").ready()


def test_parameters_keep_their_flags_in_a_file(tmp_path):
    given = Parameters({"a": np.zeros((2, 0), "float16"), "b": np.ones(3)}, {"b"})
    write_parameters(tmp_path / "p.safetensors", given)
    found = read_parameters(tmp_path / "p.safetensors")
    assert list(found) == ["a", "b"]
    assert found.non_trainable == {"b"}
    assert found["a"].shape == (2, 0)


def test_an_export_that_dies_halfway_leaves_no_model_that_looks_finished(tmp_path, monkeypatch):
    class Model:
        def save(self, target):
            target.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "app.py").write_text("def build_model():\n    return None\n")
    monkeypatch.setitem(
        sys.modules,
        "fedmq.participant.training.keras.model",
        SimpleNamespace(set_parameters=lambda *_: None, built_model=lambda build: build()),
    )
    helper = Helper(load_app(tmp_path / "app.py"))
    monkeypatch.setattr(helper, "_app", SimpleNamespace(need=lambda *_: Model, functions={}, get=lambda _: None))
    write_parameters(tmp_path / "final.safetensors", Parameters({"w": np.zeros(1, "float32")}))
    request = {"export": str(tmp_path / "final.safetensors"), "to": str(tmp_path / "final")}
    with pytest.raises(KeyboardInterrupt):
        helper.answer(request)
    assert not (tmp_path / "final.keras").exists()
    monkeypatch.setattr(Model, "save", lambda self, target: target.write_text("whole"))
    helper.answer(request)
    assert (tmp_path / "final.keras").read_text() == "whole"
