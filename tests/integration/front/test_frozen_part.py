"""A model with a frozen part by the command line, over RabbitMQ: killed on both sides, and replayed bit for bit."""

import hashlib
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.full import in_full

EXAMPLE = Path(__file__).parents[3] / "examples" / "transfer"
APP = """
import time
from pathlib import Path
import numpy as np

BASE = np.load(Path(__file__).with_name("backbone.npz"))["base"]
class Result:
    num_examples, num_steps, metrics = 10, 1, {"loss": 0.5}
    def __init__(self, parameters):
        self.parameters = parameters
class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        time.sleep(0.05)
        assert (parameters["base"] == BASE).all()
        return Result({n: a if n == "base" else a + np.float32(config.seed % 7) for n, a in parameters.items()})
def build_trainer(participant_id):
    return Trainer()
def initial_parameters():
    return {"base": BASE, "w": np.zeros(50, np.float32)}
def frozen(parameters):
    return ["base"]
"""
FEDERATION = """
app = "app.py"
[files]
"backbone.npz" = "{digest}"
[run]
run_id = "r1"
lease_s = 20
participant_timeout_s = 5
decline_backoff_s = 1
[run.stop]
max_versions = {versions}
[strategy]
name = "fedbuff"
buffer_size = 2
[training]
learning_rate = 0.003
[archive]
max_bytes = 100_000_000
[participant]
hello_interval_s = 1
"""
CONFIG = ("--config", "federation.toml")


def write(folder: Path, *, example: bool, versions: int) -> None:
    if example:
        for name in ("app.py", "model.py", "backbone.npz"):
            shutil.copy(EXAMPLE / name, folder / name)
    else:
        (folder / "app.py").write_text(APP)
        np.savez(folder / "backbone.npz", base=np.linspace(0, 1, 30_000, dtype=np.float32))
    digest = hashlib.sha256((folder / "backbone.npz").read_bytes()).hexdigest()
    (folder / "federation.toml").write_text(FEDERATION.format(digest=digest, versions=versions))


@pytest.mark.broker
@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", [False, pytest.param(True, marks=in_full("the same with a small app"))])
def test_a_run_that_is_killed_on_both_sides_ends_whole_and_verifies(terminal, tmp_path, amqp_url, prefix, example):
    write(tmp_path, example=example, versions=12)
    env = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    coordinator = terminal("coordinator", *CONFIG, **env)
    stays, dies = (terminal("participant", *CONFIG, "--id", f"sensor-{i}", **env) for i in (1, 2))
    dies.wait_for("event=started participant=sensor-2")
    coordinator.wait_for("event=version_made version=3 ")
    assert coordinator.kill() == -signal.SIGKILL
    coordinator = terminal("coordinator", *CONFIG, **env)
    coordinator.wait_for("event=run_resumed")
    coordinator.wait_for("event=version_made", times=2)
    assert dies.kill() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "spool" / "sensor-2")
    terminal("participant", *CONFIG, "--id", "sensor-2", **env)
    assert coordinator.ended() == 0, coordinator.text
    assert stays.ended() == 0  # the other one may come back when all is over, and waits for the next run
    verified = terminal("verify", "runs/r1")
    assert verified.ended() == 0, verified.text
    assert "frozen part" in verified.text
    final = load_file(tmp_path / "runs" / "r1" / "final.safetensors")
    with np.load(tmp_path / "backbone.npz") as weights:
        frozen = [weights[name] for name in weights.files]
    assert all(any(np.array_equal(one, array) for array in final.values()) for one in frozen)
    checkpoints = list((tmp_path / "runs" / "r1" / "checkpoints").glob("*.safetensors"))
    assert checkpoints
    assert all(file.stat().st_size < 30_000 for file in checkpoints)


def test_a_participant_with_another_file_or_none_is_told_in_one_sentence(terminal, tmp_path):
    write(tmp_path, example=False, versions=1)
    wanted = hashlib.sha256((tmp_path / "backbone.npz").read_bytes()).hexdigest()
    np.savez(tmp_path / "backbone.npz", base=np.zeros(3))
    other = terminal("participant", *CONFIG, "--id", "sensor-1")
    assert other.ended() == 2
    said = " ".join(other.text.split())
    assert "backbone.npz is not the federation's file: its SHA-256 is " in said
    assert f"and [files] says {wanted}. Copy it from the coordinator's machine" in said
    (tmp_path / "backbone.npz").unlink()
    none = terminal("coordinator", *CONFIG)
    assert none.ended() == 2
    assert "backbone.npz, which [files] names, and it cannot be read" in " ".join(none.text.split())
