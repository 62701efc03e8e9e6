"""docs/studies.md names every key of a study's file."""

import re
from pathlib import Path

import pytest

from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.deals import BySpeed, Dirichlet, Shards
from fedmq.studies.population.laws import Choice, Empirical, Mixture, Part, Shifted
from fedmq.studies.population.partial_work import PartialWork
from fedmq.studies.population.population import Availability, Compute, Correlation, Dropout, Network, Population
from fedmq.studies.problems.quadratics import Quadratics
from fedmq.studies.problems.synthetic import Synthetic
from fedmq.studies.sweep.tuning import Tuning
from fedmq.study.app_problem import AppProblem
from fedmq.study.file import SoftmaxProblem, StudyFile, StudyStrategy

NAMED = set(re.findall(r"`(\w+)[`\s]", (Path(__file__).parents[3] / "docs" / "studies.md").read_text()))
TABLES = (
    StudyFile, StudyStrategy, Population, Compute, Network, Dropout, Availability, Correlation, StudyRun, Tuning,
    Quadratics, SoftmaxProblem, Synthetic, AppProblem, Dirichlet, Shards, BySpeed,
    Choice, Empirical, Mixture, Part, Shifted, PartialWork,
)  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_every_key_of_a_studys_file_is_on_its_page(table):
    assert set(table.model_fields) - NAMED - {"name", "strategies", "populations"} == set()
