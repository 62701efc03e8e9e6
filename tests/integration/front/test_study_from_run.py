"""fedmq study --from-run: other strategies on the participants of a recorded run."""

import json
from collections import Counter

import pytest

from fedmq.cli.cli import main
from fedmq.coordinator.settings import StopSettings
from fedmq.studies.simulate import simulate
from fedmq.study.file import load_study
from fedmq.study.from_run import population_table
from tests.integration.coordinator.federation import Federation

APP = """
import numpy as np

def initial_parameters():
    return {"w": np.zeros(3, "float32")}

def evaluate(parameters):
    return {"loss": float(((parameters["w"] - 1) ** 2).sum())}

class Result:
    num_steps, metrics = 1, {}
    def __init__(self, parameters, num_examples):
        self.parameters, self.num_examples = parameters, num_examples

class Trainer:
    def __init__(self, number):
        self.number, self.num_examples = number, 10 + number
    def train(self, parameters, config):
        return Result({"w": parameters["w"] * np.float32(0.5) + np.float32(0.5)}, self.num_examples)

def build_trainer(participant_id):
    return Trainer(["p0", "p1", "p2"].index(participant_id))
"""
FEDERATION = """
[run]
run_id = "r1"
concurrency = 3
[run.stop]
max_updates = 20
[strategy]
name = "fedbuff"
buffer_size = 3
staleness = {name = "polynomial", a = 0.5}
"""
STUDY = """
name = "what-if"
tuning = false
[problem]
name = "app"
app = "app.py"
[run]
stop = {max_updates = 20}
[[strategies]]
label = "as it ran"
strategy = {name = "fedbuff", buffer_size = 3, staleness = {name = "polynomial", a = 0.5}}
[[strategies]]
label = "each by itself"
strategy = {name = "fedasync"}
"""


@pytest.fixture
def recorded(tmp_path):
    """Return the folder of a finished run of p0, p1 and p2 with its files beside it, and the staleness in the run."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    (tmp_path / "study.toml").write_text(STUDY)
    federation = Federation(tmp_path / "runs" / "r1")
    federation.stop = StopSettings(max_updates=20)
    try:
        for i in range(3):
            federation.join(f"p{i}")
        federation.run()
        with federation.ledger() as ledger:
            yield tmp_path, Counter(row.staleness for row in ledger.updates())
    finally:
        federation.close()


def study(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["study", *map(str, arguments), "-j", "1"])
    return ended.value.code or 0


def cells(folder):
    found = [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]
    return {cell["strategy"]: cell for cell in found}


def test_the_runs_own_app_and_settings_say_what_other_strategies_make_of_its_participants(recorded, capsys):
    folder, staleness = recorded
    options = ("--from-run", folder / "runs" / "r1", "--config", folder / "federation.toml", "--order", "recorded")
    assert study(*options) == 0
    said = capsys.readouterr().out
    assert "Untuned: step sizes are those of the run's federation file" in said
    page = (folder / "runs" / "r1-what-if" / "report.html").read_text()
    assert "study's file." not in page, "there is none"
    found = cells(folder / "runs" / "r1-what-if")
    assert set(found) == {"as it ran: fedbuff", "FedAsync", "FedBuff, K = 1", "FedAvg of 1"}
    own = found["as it ran: fedbuff"]
    assert own["updates"] == 20
    assert {tau: n for tau, n in enumerate(own["staleness"]) if n} == staleness
    assert own["evaluations"][-1]["metrics"]["loss"] < 3
    assert found["FedAsync"]["versions"] == 20


def test_a_studys_file_takes_the_run_in_the_place_of_its_populations(recorded):
    folder, staleness = recorded
    study, _ = load_study(folder / "study.toml", [population_table(folder / "runs" / "r1", "recorded")])
    own, each = (
        simulate(cell.strategy, cell.problem, cell.population, cell.run, cell.training) for cell in study.cells()
    )
    assert Counter(own.updates.staleness) == staleness
    assert sum(each.updates.staleness) > sum(own.updates.staleness)
    assert list(each.updates.time_s) == list(own.updates.time_s)


def test_what_is_missing_is_said_at_once(recorded, tmp_path, capsys):
    folder, _ = recorded
    run = folder / "runs" / "r1"
    assert study() == 2
    assert study("--from-run", run) == 2
    assert study("--from-run", folder / "nowhere", folder / "study.toml") == 1
    (folder / "federation.toml").write_text(FEDERATION.replace('"r1"', '"r2"'))
    assert study("--from-run", run, "--config", folder / "federation.toml") == 2
    said = capsys.readouterr().err
    for part in ("needs a study's file", "or --config for the run's own app", "no ledger", "run_id is 'r2'"):
        assert part in said
