"""The cells that a study asks for first, and what ends it before any cell."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from fedmq.coordinator.strategies import FedAvg, FedBuff
from fedmq.schemas.errors import MissingExtra
from fedmq.studies.study import Contender, Study
from fedmq.studies.sweep.cell import Cell
from fedmq.studies.sweep.pool import _by_text
from fedmq.studies.sweep.tuning import Tuning
from tests.scenario.studies.federations import STEP, Quadratics, population, until

FEW, MANY = population(2, name="few"), population(4, name="many")


def first_batches(contender, tuning):
    """Return (population, label, seed) of the cells that each arm of a strategy asks for first.

    Nothing was tuned until then.
    """
    study = Study(
        "s", Quadratics(), [contender], [FEW, MANY], until(3), STEP, seeds=(1, 2), tuning=tuning,
    )  # fmt: skip
    tuned = {}
    batches = [next(arm) for arm in study._arms(contender, tuned, {})]
    assert tuned == {}
    return [{(c.population.name, c.label.split(" [")[0], c.seed) for c in batch.cells} for batch in batches]


def test_a_mistake_that_many_cells_share_is_said_once():
    a, b = (
        Cell("s", label, FedBuff(), FEW, Quadratics(), until(3), STEP, 0) for label in ("A [learning_rate 0.1]", "B")
    )
    other = replace(a, population=MANY)
    found = [(cell, f"{cell.label} on {cell.population.name}: too large") for cell in (a, b, other)]
    failed = [(cell, f"{cell.label} on few, seed 0: OSError: no") for cell in (a, b)]
    assert list(_by_text([*found, (b, "B on few: too small"), *failed])) == [
        "A on few, B on few and 1 more: too large", "B on few: too small", "A on few, B on few: OSError: no",
    ]  # fmt: skip


COMPARED = [{("few", "it", 1), ("few", "it", 2)}, {("many", "it", 1), ("many", "it", 2)}]


@pytest.mark.parametrize(
    ("tune", "tuning"),
    [(None, None), (None, Tuning(off=True)), ({}, Tuning()), ({"training.learning_rate": [0.2]}, None)],
)
def test_what_is_not_tuned_is_compared_at_once(tune, tuning):
    assert first_batches(Contender("it", FedBuff(), tune=tune), tuning) == COMPARED


def test_each_population_has_its_own_tuning_on_the_first_of_its_seeds():
    found = first_batches(Contender("it", FedAvg(cohort_size=2)), Tuning(seeds=(7, 8)))
    assert found == [{("few", "it", 7)}, {("many", "it", 7)}]


def test_one_population_may_be_tuned_on_for_all():
    found = first_batches(Contender("it", FedAvg(cohort_size=2)), Tuning(seeds=(7, 8), population="many"))
    assert found == [{("many", "it", 7)}]


@pytest.mark.parametrize("package", ["matplotlib", "pyarrow"])
def test_a_study_without_the_packages_of_its_report_is_refused_before_anything_is_made(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    study = Study("s", Quadratics(), [Contender("a", FedBuff())], [population(2)], until(4), STEP, tuning=None)
    with pytest.raises(MissingExtra, match=f"{package} is not installed.*a study's .*pip install 'fedmq.studies.'"):
        study.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
