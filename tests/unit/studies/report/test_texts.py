"""Labels are text wherever a study shows them."""

import csv
from dataclasses import replace

import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report.page import write_report
from fedmq.studies.report.tables import write_tables
from fedmq.studies.report.texts import as_text
from tests.unit.studies.report.test_report import CELL


@pytest.mark.parametrize(
    "text", ["FedBuff, K = 10", "5 % a day", "α = 0.1", "(a) plain", "[x]", "_x", "<b>", "", "a = -1", "10;20", "a; b"]
)
def test_plain_texts_stand_in_a_csv_as_they_are(text):
    assert as_text(text) == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1+1", "%x", '"=1"', "'=1"])
def test_a_text_that_a_spreadsheet_may_take_for_a_formula_has_an_apostrophe_before_it(text):
    assert as_text(text) == f"'{text}"
    assert as_text(f"a;{text}").endswith(f"'{text}"), "a spreadsheet may split at the semicolon"


def test_each_part_is_looked_at_by_itself():
    assert as_text("a|=2; -3") == "a|'=2;' -3"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", r"a\u001b[31mred"),
        ("\t=1", r"'\t=1"),
        ("a\n+1", r"a\n+1"),
        ("a\u202eb", r"a\u202eb"),
        ("é", "é"),
    ],
)
def test_what_does_not_print_is_an_escape(text, shown):
    assert as_text(text) == shown


def test_numbers_stay_numbers():
    assert [as_text(value) for value in (-1.5, -1, None, True)] == [-1.5, -1, None, True]


def test_a_label_is_no_formula_in_a_csv_and_itself_in_parquet(tmp_path):
    import pyarrow.parquet as pq

    label = '=HYPERLINK("http://x";1);=1+1'
    write_tables(tmp_path, [replace(CELL, strategy=label, detail="-x")])
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["strategy"] == "'=HYPERLINK(\"http://x\";1);'=1+1"
    assert row["detail"] == "'-x"
    assert pq.read_table(tmp_path / "cells.parquet")["strategy"].to_pylist() == [label]


@pytest.mark.filterwarnings("error")
def test_a_label_is_text_in_each_place_of_a_page(tmp_path):
    label = "_$\\frac{1}{0$ <b>\x1b[31m\nx"
    measured = [e | {"metrics": e["metrics"] | {"$\\x{$": 1.0}} for e in CELL.evaluations]
    cells = [replace(CELL, strategy=label, population=p, seed=s, evaluations=measured) for p in "pq" for s in (0, 1)]
    page = write_report(tmp_path / "report.html", "a study", cells, "settings\nof two lines").read_text()
    shown = "_$\\frac{1}{0$ &lt;b&gt;\\u001b[31m\\nx"
    assert page.count(shown) == 2 * 2 + 1 + 2 * 3 + 2, "outcomes and targets, the overview, legends, titles"
    assert page.count(">$\\x{$<") == 2, "axes of the curves of both populations"
    assert "\x1b" not in page
    assert "<b>" not in page
    assert "settings\nof two lines" in page


@pytest.mark.usefixtures("no_figures")
def test_advice_names_what_is_there(tmp_path):
    target = TargetMetric(name="accuracy", value=0.05)

    def page(source):
        path = write_report(tmp_path / "report.html", "a study", [CELL], "", target=target, source=source)
        return path.read_text()

    assert "out of that file" in page("file")
    assert "Name one with <code>target</code> in the study's file." in page("file")
    assert "Study(target=…)" in page("code")
    assert "study's file." not in page("code")
    of_run = page("run")
    assert "those of the run's federation file, and the defaults of the other strategies" in of_run
    assert "fedmq study --from-run RUN STUDY.toml" in of_run
    assert "that file" not in of_run
