"""Tasks that participants took, and tasks that were withdrawn: what a federation asks of its clients."""

import csv
import json
from dataclasses import replace

import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.coordinator.strategies import FedAvg
from fedmq.schemas.tensors import spec_of
from fedmq.studies.engine.message_sizes import task_bytes
from fedmq.studies.problems.quadratics import Quadratics
from fedmq.studies.report.page import write_report
from fedmq.studies.report.tables import write_tables
from fedmq.studies.simulate import simulate
from fedmq.studies.sweep.cell import Cell, read_cell, run_cell
from tests.scenario.studies.federations import STEP, fedbuff, population, until


def rounds(**fields):
    """Rounds of 2 updates from 5 tasks each: 3 of every round are withdrawn."""
    return FedAvg(cohort_size=2, over_selection=2.5, **fields)


def test_each_task_that_was_taken_and_each_that_was_withdrawn_is_counted():
    people = population(5, {"name": "exponential", "mean": 1})
    outcome = simulate(rounds(), Quadratics(), people, until(8, concurrency=5, evaluate_interval_s=0.0), STEP)
    assert outcome.finished == "max_updates"
    # The fourth round's tasks are withdrawn because the run is over, which counts for nobody.
    assert (outcome.tasks_issued, outcome.tasks_withdrawn) == (4 * 5, 3 * 3)
    assert [(e.tasks_issued, e.tasks_withdrawn) for e in outcome.evaluations] == [
        (0, 0), (5, 3), (10, 6), (15, 9), (20, 9),
    ]  # fmt: skip
    assert outcome.bytes_down == 20 * task_bytes(spec_of(outcome.parameters), "delta", STEP)


def test_without_rounds_none_is_withdrawn():
    outcome = simulate(fedbuff(2), Quadratics(), population(6), until(10, concurrency=3), STEP)
    assert (outcome.tasks_issued, outcome.tasks_withdrawn) == (12, 0)


@pytest.fixture
def cell(tmp_path):
    (tmp_path / "cells").mkdir()
    people = population(5, {"name": "exponential", "mean": 1})
    problem = Quadratics(start=3)
    return Cell("s", "rounds", rounds(), people, problem, until(8, concurrency=5), STEP, 1)


def test_tables_and_report_have_them(tmp_path, cell):
    result = run_cell(tmp_path, cell)
    write_tables(tmp_path, [result])
    with (tmp_path / "cells.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["tasks_issued"], row["tasks_withdrawn"]) == ("20", "9")
    with (tmp_path / "evaluations.csv").open() as file:
        assert [row["tasks_issued"] for row in csv.DictReader(file) if row["metric"] == "loss"][-1] == "20"
    metrics = [e["metrics"]["distance"] for e in result.evaluations]
    target = TargetMetric(name="distance", value=metrics[-1], mode="min")
    page = write_report(tmp_path / "report.html", "s", [result], "", target=target).read_text()
    assert "<td>20</td><td>9</td></tr>" in page, "tasks issued and withdrawn until the target"


def test_a_cell_of_an_earlier_state_has_none(tmp_path, cell):
    result = run_cell(tmp_path, cell)
    (path,) = (tmp_path / "cells").glob("*.json")
    fields = json.loads(path.read_text())
    for part in (fields, *fields["evaluations"]):
        del part["tasks_issued"], part["tasks_withdrawn"]
    path.write_text(json.dumps(fields))
    old = read_cell(tmp_path, cell)
    assert old == replace(result, tasks_issued=None, tasks_withdrawn=None, evaluations=fields["evaluations"])
    write_tables(tmp_path, [old])
    assert "tasks issued" in write_report(tmp_path / "report.html", "s", [old], "").read_text()
