"""Unfreezing by the command line, over RabbitMQ: killed on both sides around the version, and replayed bit for bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmq.studies.engine.replay import replay

APP = """
import time
import numpy as np
class Result:
    num_examples, num_steps, metrics = 10, 1, {"loss": 0.5}
    def __init__(self, parameters):
        self.parameters = parameters
class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        time.sleep(0.05)
        moves = set(parameters) - parameters.non_trainable
        return Result({n: a + np.float32(config.seed % 7 if n in moves else 0) for n, a in parameters.items()})
def build_trainer(participant_id):
    return Trainer()
def initial_parameters():
    return {"base": np.linspace(0, 1, 30_000, dtype=np.float32), "w": np.zeros(50, np.float32)}
def frozen(parameters):
    return ["base"]
"""
FEDERATION = """
app = "app.py"
[run]
run_id = "r1"
lease_s = 20
participant_timeout_s = 5
decline_backoff_s = 1
[run.stop]
max_versions = 14
[strategy]
name = "fedbuff"
buffer_size = 2
server_optimizer = { name = "adam" }
[training]
learning_rate = 0.003
unfreeze = [{ version = 7, tensors = ["ba*"] }]
[archive]
max_bytes = 100_000_000
[participant]
hello_interval_s = 1
"""
CONFIG = ("--config", "federation.toml")


def write(folder: Path, federation: str = FEDERATION) -> None:
    (folder / "app.py").write_text(APP)
    (folder / "federation.toml").write_text(federation)


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_a_run_that_is_killed_around_its_unfreezing_ends_whole_and_replays(terminal, tmp_path, amqp_url, prefix):
    write(tmp_path)
    env = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    coordinator = terminal("coordinator", *CONFIG, **env)
    stays, dies = (terminal("participant", *CONFIG, "--id", f"sensor-{i}", **env) for i in (1, 2))
    dies.wait_for("event=started participant=sensor-2")
    coordinator.wait_for("event=version_made version=6 ")
    assert coordinator.kill() == -signal.SIGKILL
    standby = terminal("coordinator", *CONFIG, **env)
    standby.wait_for("event=run_resumed")
    standby.wait_for("event=tensors_unfrozen version=7 tensors=1 first=base")
    assert dies.kill() == -signal.SIGKILL
    assert standby.kill() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "spool" / "sensor-2")
    last = terminal("coordinator", *CONFIG, **env)
    terminal("participant", *CONFIG, "--id", "sensor-2", **env)
    assert last.ended() == 0, last.text
    assert stays.ended() == 0
    verified = terminal("verify", "runs/r1")
    assert verified.ended() == 0, verified.text
    assert "frozen part" in verified.text
    final = load_file(tmp_path / "runs" / "r1" / "final.safetensors")
    assert not np.array_equal(final["base"], np.linspace(0, 1, 30_000, dtype=np.float32))
    again = replay(tmp_path / "runs" / "r1").parameters
    assert all(again[name].tobytes() == final[name].tobytes() for name in final)


def test_what_is_wrong_with_a_schedule_is_told_with_its_key(terminal, tmp_path):
    write(tmp_path, FEDERATION.replace('"fedbuff"\nbuffer_size = 2\nserver_optimizer = { name = "adam" }', '"port"'))
    refused = terminal("coordinator", *CONFIG)
    assert refused.ended() == 2
    assert "training.unfreeze: leave it out: the state of port cannot grow" in " ".join(refused.text.split())
    write(tmp_path, FEDERATION.replace("ba*", "bsae"))
    refused = terminal("coordinator", *CONFIG, FEDMQ_BROKER_URL="amqp://127.0.0.1:1/")
    assert refused.ended() == 2
    said = " ".join(refused.text.split())
    assert "training.unfreeze.0.tensors: 'bsae' matches none of the 1 frozen tensors" in said
    assert "did you mean base?" in said
