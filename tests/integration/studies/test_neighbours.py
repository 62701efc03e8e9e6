"""A study in a folder whose modules have the names of fedmq's own rooms."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

NEIGHBOURS = ("schemas", "broker_config", "coordinator", "participant")
APP = """
import numpy as np

import broker_config, coordinator, participant, schemas, studies

WHOSE = [module.WHOSE for module in (broker_config, coordinator, participant, schemas, studies)]


class Result:
    def __init__(self, parameters):
        self.parameters, self.num_examples, self.num_steps, self.metrics = parameters, 10, 1, {}


class Trainer:
    num_examples = 10

    def train(self, parameters, config):
        return Result({"w": parameters["w"] + np.float32(1)})


def build_trainer(participant_id):
    return Trainer()


def initial_parameters():
    return {"w": np.zeros(2, np.float32)}


def evaluate(parameters):
    return {"of_the_user": WHOSE.count("the user's"), "w": parameters["w"][0]}
"""
STUDIES = """
from dataclasses import dataclass

import numpy as np

import fedmq
from fedmq.studies.problems.lazy_training import Trained

WHOSE = "the user's"


class Federation:
    evaluates = True

    def __init__(self, members):
        self.initial = fedmq.Parameters({"w": np.zeros(2)})
        self.num_examples = [m.examples for m in members]
        self.backend = self
        self.name = "one step up"

    def train(self, jobs):
        return [Trained(fedmq.Parameters({"w": job.base["w"] + 1}), 10, 1, {}) for job in jobs]

    def evaluate(self, parameters):
        import schemas
        return {"of_the_user": float(schemas.WHOSE == WHOSE), "w": float(parameters["w"][0])}


@dataclass(frozen=True)
class Own:
    def deal(self, members, seed):
        return Federation(members)
"""
SCRIPT = """
import fedmq
import schemas, studies

study = fedmq.Study(
    "own",
    studies.Own(),
    [fedmq.Contender("fives", fedmq.FedBuff(buffer_size=2))],
    [fedmq.Population(participants=3, compute={"task_s": {"name": "exponential", "mean": 1}})],
    fedmq.StudyRun(concurrency=2, stop={"max_updates": 4}),
    seeds=range(4),
    tuning=None,
)
if __name__ == "__main__":
    study.run("out", workers=2)
"""
FILE = """
name = "own"
seeds = 4
tuning = false
[problem]
name = "app"
app = "app.py"
[run]
concurrency = 2
stop = { max_updates = 4 }
[[strategies]]
label = "twos"
strategy = { name = "fedbuff", buffer_size = 2 }
[[populations]]
participants = 3
compute = { task_s = { name = "exponential", mean = 1 } }
"""
COMMAND = [str(Path(sys.executable).with_name("fedmq")), "study", "study.toml", "-o", "out", "-j", "2"]


@pytest.fixture
def folder(tmp_path):
    for name in NEIGHBOURS:
        (tmp_path / f"{name}.py").write_text('WHOSE = "the user\'s"\n')
    for name, text in (("app.py", APP), ("studies.py", STUDIES), ("script.py", SCRIPT), ("study.toml", FILE)):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "modules"),
    [
        (COMMAND, 5),
        ([sys.executable, "-m", "fedmq", *COMMAND[1:]], 5),
        ([sys.executable, "script.py"], 1),
    ],
    ids=["the command", "python -m fedmq", "a script of the user's"],
)
def test_a_study_beside_modules_of_fedmqs_names_runs_in_every_process(folder, command, modules):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (folder / "out" / "evaluations.csv").open() as file:
        values = {(row["seed"], row["metric"], row["version"]): float(row["value"]) for row in csv.DictReader(file)}
    for seed in "0123":
        assert values[seed, "of_the_user", "2"] == modules
        assert values[seed, "w", "2"] > 0
