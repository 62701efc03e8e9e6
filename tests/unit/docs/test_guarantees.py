"""The table of features and guarantees in docs/guarantees.md has every feature, and each of its cells leads somewhere.

That the tests which it names exist is checked for all of docs (tools/check_prose.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from fedmq.coordinator.settings import CODECS, DownlinkSettings
from tests.chaos import test_features as over_rabbitmq
from tests.integration.front import test_features as with_studies
from tests.scenario.studies import test_codecs as in_cohorts
from tests.support.features import FEATURES

CHAPTER = (
    (Path(__file__).parents[3] / "docs" / "guarantees.md")
    .read_text()
    .split("## Each feature under each guarantee")[1]
    .split("\n## ")[0]
)
TABLE = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", CHAPTER, re.M)]
COLUMNS = TABLE[0][1:]
ROWS = {name: [cell.split() for cell in cells] for name, *cells in TABLE[2:]}
LETTERS = dict(re.findall(r"^- \*\*(\w)\*\*: ((?:.|\n  )*)", CHAPTER, re.M))
REASONS = dict(re.findall(r"^(\d+)\. (.*)", CHAPTER, re.M))
OF_THE_COMMAND_LINE = {"trainer's process"}
"""Rows of what every run by the command line has."""


def names_of(test) -> set[str]:
    """Return the features that a test is parametrized by, in this part of the suite."""
    (names,) = [mark.args[1] for mark in test.pytestmark if mark.name == "parametrize" and "name" in mark.args[0]]
    return {name if isinstance(name, str) else name[0] for name in names}


def test_every_codec_and_every_form_of_tasks_has_a_row():
    codecs = {f"uplink {name}" for name in (*CODECS, "zstd")} - {"uplink none"}
    forms = {f"downlink {name}" for name in get_args(DownlinkSettings.model_fields["codec"].annotation)}
    assert codecs | forms - {"downlink none"} <= ROWS.keys()


def test_the_rows_are_the_features_that_the_suites_run_with():
    assert ROWS.keys() - OF_THE_COMMAND_LINE == FEATURES.keys()
    assert {name for name, _ in over_rabbitmq.CELLS} == FEATURES.keys()
    assert set(over_rabbitmq.EVERYDAY) < set(over_rabbitmq.CELLS)


def test_each_cell_has_a_letter_or_a_reason_and_each_of_these_is_in_a_cell():
    used = {word for cells in ROWS.values() for cell in cells for word in cell}
    assert used == LETTERS.keys() | REASONS.keys()
    for name, cells in ROWS.items():
        assert len(cells) == len(COLUMNS), name
        assert all(cells), name
        assert all(cell[0] not in REASONS or len(cell) == 1 for cell in cells), name
    assert all("test_" in text for text in LETTERS.values())


def test_a_letter_is_in_the_rows_that_its_test_runs_with():
    cells = {letter: {n for n, row in ROWS.items() if any(letter in cell for cell in row)} for letter in LETTERS}
    test = with_studies.test_a_signed_deployment_with_any_feature_has_the_bits_and_bytes_of_its_study
    assert cells["S"] == names_of(test)
    test = in_cohorts.test_no_bit_of_a_codecs_study_depends_on_the_cohorts_that_are_trained_together
    assert cells["C"] == names_of(test)
    assert cells["F"] == FEATURES.keys() | OF_THE_COMMAND_LINE
