"""The table of participants, as CSV and as Parquet."""

import csv
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from fedmq.studies.problems.quadratics import Quadratics
from fedmq.studies.report import tables
from fedmq.studies.sweep.cell import Cell, read_cell, run_cell
from tests.scenario.studies.federations import STEP, fedbuff, population, until

CELL = Cell(
    study="small",
    label="K = 2",
    strategy=fedbuff(2),
    population=population(3, examples={"name": "choice", "values": [2, 6]}),
    problem=Quadratics(),
    run=until(20, client_weights="examples"),
    training=STEP,
    seed=1,
)


@pytest.fixture
def result(tmp_path):
    (tmp_path / "cells").mkdir()
    return run_cell(tmp_path, CELL)


def test_the_table_of_participants_has_a_row_for_each_one_with_its_counts_and_shares(tmp_path, result, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)  # written in two parts
    tables.write_tables(tmp_path, [result])
    found = pq.read_table(tmp_path / "participants.parquet").to_pylist()
    assert [(row["strategy"], row["seed"], row["participant_id"]) for row in found] == [
        ("K = 2", 1, "p000000"),
        ("K = 2", 1, "p000001"),
        ("K = 2", 1, "p000002"),
    ]
    assert [row["accepted"] for row in found] == result.accepted
    assert sum(row["accepted"] for row in found) == 20
    assert [row["num_examples"] for row in found] == result.num_examples
    assert set(result.num_examples) <= {2, 6}
    assert [row["weight"] for row in found] == result.weight
    assert [row["intended_share"] for row in found] == pytest.approx(
        [n / sum(result.num_examples) for n in result.num_examples]
    )
    assert sum(row["weight_share"] for row in found) == pytest.approx(1)
    with (tmp_path / "participants.csv").open(newline="") as file:
        assert [float(row["weight"]) for row in csv.DictReader(file)] == result.weight


def test_a_cell_of_an_older_version_has_no_names_of_participants_and_is_read(tmp_path, result):
    (path,) = (tmp_path / "cells").iterdir()
    content = json.loads(path.read_text())
    del content["participant_ids"], content["num_examples"]
    path.write_text(json.dumps(content))
    old = read_cell(tmp_path, CELL)
    assert old == replace(result, participant_ids=[], num_examples=[])
    rows = list(tables.participant_rows([old]))
    assert [(row["participant"], row["participant_id"], row["num_examples"]) for row in rows] == [
        (0, None, None),
        (1, None, None),
        (2, None, None),
    ]
