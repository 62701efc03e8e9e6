"""The process that trains, seen from the command line: what an idle participant takes, and what outlives whom."""

import signal

import psutil
import pytest

from tests.integration.front.test_signals import processes_in

CONFIG = ("--config", "federation.toml")
FEDERATION = """
[run]
run_id = "r1"
[run.stop]
max_versions = 1000
[strategy]
name = "fedasync"
[participant]
hello_interval_s = 1
keep_trainer_s = 1
"""
MODEL = """
import numpy as np

def initial_parameters():
    return {"000/dense/kernel": np.zeros((4, 2), "float32"), "001/dense/bias": np.zeros(2, "float32")}
"""
KERAS_APP = """
import keras
import numpy as np

def build_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model

def load_data(participant_id):
    return np.zeros((8, 4), "float32"), np.zeros((8, 2), "float32")
"""
ENDLESS = """
import subprocess

class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        sleeper = subprocess.Popen(["sleep", "1000"])
        print("asleep", flush=True)
        sleeper.wait()

def build_trainer(participant_id):
    return Trainer()
"""
IDLE_MB = 90


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "app.py").write_text(MODEL)
    return tmp_path


@pytest.mark.broker
def test_a_keras_participant_without_a_task_takes_less_than_90_mb(terminal, folder, amqp_url, prefix):
    (folder / "trains.py").write_text(KERAS_APP)
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    coordinator = terminal("coordinator", *CONFIG, **url)
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", "--set", "app=trains.py", **url)
    coordinator.wait_for("event=update_accepted participant=sensor-1")
    process = psutil.Process(participant.pid)
    assert max(child.memory_info().rss for child in process.children()) > 2 * IDLE_MB * 1e6, "TensorFlow is there"
    coordinator.send(signal.SIGTERM)
    assert coordinator.ended() == 0
    participant.wait_for("event=trainer_process_left participant=sensor-1")
    assert process.children(recursive=True) == []
    assert process.memory_info().rss < IDLE_MB * 1e6
    participant.send(signal.SIGTERM)
    assert participant.ended() == 0
    assert "Traceback" not in participant.text


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_nothing_of_a_training_outlives_its_participant(terminal, folder, amqp_url, prefix, number):
    (folder / "trains.py").write_text(ENDLESS)
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    coordinator = terminal("coordinator", *CONFIG, **url)
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", "--set", "app=trains.py", **url)
    participant.wait_for("^asleep$")
    mine = {coordinator.pid, *(child.pid for child in psutil.Process(coordinator.pid).children())}
    before = [one for one in processes_in(folder) if one.pid not in mine]
    assert sorted(one.name() for one in before)[-2:] == ["sh", "sleep"], "the watchdog, and the trainer's own process"
    participant.send(number)
    assert participant.ended() == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert psutil.wait_procs(before, 10)[1] == []
    coordinator.send(signal.SIGTERM)
    assert coordinator.ended() == 0
    assert processes_in(folder) == []
