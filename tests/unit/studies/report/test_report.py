import math
import re
from dataclasses import replace

import numpy as np
import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report import page as report
from fedmq.studies.report.figures import _possible
from fedmq.studies.report.page import write_report
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.intervals import half_width_factor, mean_and_half_width, mean_text
from fedmq.studies.sweep.measures import (
    chance_share,
    common_target,
    cost_of,
    final_value,
    met_at_start,
    misplaced_share,
)
from fedmq.studies.sweep.tuning import Trial, Tuned

CELL = CellResult(
    key="k", strategy="A <&> B", population="phones", seed=0, finished="max_updates", detail="", diverged_s=None,
    time_s=2.0, versions=2, updates=4, bytes_up=40.0, bytes_down=80.0, discarded={}, dropouts=0, missed_arrivals=0,
    mean_staleness=0.5, staleness=[2, 2], tasks_out=[[0.0, 2], [2.0, 1]], weight=[0.5, 1.5], intended=[1.0, 1.0],
    accepted=[1, 3], task_s=[1.0, 2.0], cohorts=1, backend="numpy", digest="d", took_s=0.1,
    evaluations=[
        {"version": v, "time_s": float(v), "updates": 2 * v, "bytes_up": 20.0 * v, "bytes_down": 0.0,
         "metrics": {"accuracy": 0.1 + 0.3 * v}}
        for v in range(3)
    ],
)  # fmt: skip


def test_the_page_stands_alone_and_is_the_same_again(tmp_path):
    cells = [CELL, replace(CELL, strategy="C", seed=0), replace(CELL, seed=1), replace(CELL, strategy="C", seed=1)]
    page = write_report(tmp_path / "report.html", "a study", cells, "problem <x>").read_text()
    assert page == write_report(tmp_path / "again.html", "a study", cells, "problem <x>").read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert "A &lt;&amp;&gt; B" in page
    assert "problem &lt;x&gt;" in page


def test_a_page_is_written_where_everything_diverged_before_its_first_evaluation(tmp_path):
    empty = replace(CELL, finished="diverged", evaluations=[], staleness=[], tasks_out=[], weight=[0.0, 0.0], updates=0)
    assert "ended by diverged" in write_report(tmp_path / "report.html", "a study", [empty], "").read_text()


def with_losses(*losses, **fields):
    evaluations = [
        {**CELL.evaluations[0], "time_s": float(t), "updates": t, "metrics": {"loss": loss}}
        for t, loss in enumerate(losses)
    ]
    return replace(CELL, time_s=float(len(losses) - 1), evaluations=evaluations, **fields)


@pytest.mark.filterwarnings("error")
def test_runs_on_their_way_to_infinity_neither_break_a_page_nor_flatten_the_others(tmp_path):
    sound = [with_losses(*(8.0 / (1 + t) for t in range(60)), seed=s, population=p) for s in (0, 1) for p in "pq"]
    lost = [
        with_losses(*(8.0 * 10.0 ** (t * (4 + s)) for t in range(60)), strategy="lost", seed=s, population=p)
        for s in (0, 1)
        for p in "pq"
    ]
    page = write_report(tmp_path / "report.html", "a study", [*sound, *lost], "").read_text()
    powers = [int(power) for power in re.findall(r"10\^\{(-?\d+)\}", page)]
    assert "Values beyond 1,000,000 times the largest start are drawn at that limit." in page
    assert max(powers) <= 7, "the overview goes to 1e6 times the start, curves to 100 times"


@pytest.mark.filterwarnings("error")
def test_runs_that_only_become_worse_are_drawn(tmp_path):
    worse = with_losses(*(1 + 0.1 * t for t in range(30)))
    page = write_report(tmp_path / "report.html", "a study", [worse], "").read_text()
    assert ">3.5<" in page, "on the axis of the loss, which goes from 1 to 3.9"


def test_dollars_in_a_label_are_no_formula(tmp_path):
    page = write_report(tmp_path / "report.html", "a study", [replace(CELL, strategy="5 $\\x$ a GB")], "").read_text()
    assert page.count(">5 $\\x$ a GB<") >= 4, "tables and legends"


def test_a_label_that_our_font_has_no_glyphs_for_is_no_warning(tmp_path):
    page = write_report(tmp_path / "report.html", "a study", [replace(CELL, strategy="日本")], "").read_text()
    assert page.count(">日本<") >= 4


def test_a_target_costs_what_the_first_evaluation_that_reached_it_had():
    reached = cost_of(CELL, TargetMetric(name="accuracy", value=0.35))
    assert reached == {"time_s": 1.0, "updates": 2.0, "bytes_up": 20.0, "bytes_down": 0.0}
    assert cost_of(CELL, TargetMetric(name="accuracy", value=0.9)) is None
    assert cost_of(CELL, TargetMetric(name="accuracy", value=0.2, mode="min")) == {
        "time_s": 0.0, "updates": 0.0, "bytes_up": 0.0, "bytes_down": 0.0,
    }  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_codecs_are_compared_by_bytes_to_the_target(tmp_path):
    target = TargetMetric(name="accuracy", value=0.35)
    rows = [{**row, "bytes_up": row["bytes_up"] / 50} for row in CELL.evaluations]
    cells = [CELL, replace(CELL, strategy="topk", bytes_up=0.8, evaluations=rows)]
    page = write_report(tmp_path / "report.html", "a study", cells, "", target=target).read_text()
    assert [row[6] for row in _cells_of(page, "fewer bytes up")] == ["1", "50"]
    assert "Bytes are of whole messages, on a logarithmic axis." in page
    alike = write_report(tmp_path / "alike.html", "a study", [CELL, replace(CELL, strategy="C")], "", target=target)
    assert "fewer bytes up" not in alike.read_text()
    assert "logarithmic" not in alike.read_text()


def _cells_of(page, head):
    """Return the rows of the page's table that has this column, as texts."""
    table = next(table for table in re.findall(r"<table.*?</table>", page, re.DOTALL) if head in table)
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in table.split("<tr")[2:]]
    return [[re.sub("<[^>]*>", "", cell).strip() for cell in row] for row in rows]


def test_without_a_target_it_is_one_that_all_cells_reached_and_none_had_at_its_start():
    worse = replace(CELL, evaluations=CELL.evaluations[:2])
    assert common_target([CELL, worse], ["accuracy"]) == TargetMetric(name="accuracy", value=0.38, mode="max")
    assert common_target([CELL], []) is None
    still = replace(CELL, evaluations=CELL.evaluations[:1])
    assert common_target([CELL, still], ["accuracy"]) is None


@pytest.mark.usefixtures("no_figures")
def test_a_target_that_a_cell_has_at_its_start_is_refused_aloud(tmp_path):
    target = TargetMetric(name="accuracy", value=0.05)
    assert met_at_start([CELL], target)
    page = write_report(tmp_path / "report.html", "a study", [CELL], "", target=target).read_text()
    assert "a cell has accuracy of at least 0.05 at its start" in page
    assert "reached by" not in page


def test_a_final_value_is_the_mean_over_the_last_tenth_of_the_run():
    late = [{**CELL.evaluations[0], "time_s": t, "metrics": {"accuracy": y}} for t, y in [(1, 9.0), (9.5, 1), (10, 2)]]
    assert final_value(replace(CELL, time_s=10.0, evaluations=late), "accuracy") == 1.5
    assert np.isnan(final_value(replace(CELL, finished="diverged"), "accuracy"))


def test_misplaced_weight_is_the_share_that_went_to_others_than_was_intended():
    assert misplaced_share(CELL) == 0.25
    assert misplaced_share(replace(CELL, intended=[0.5, 1.5])) == 0


def test_luck_alone_misplaces_weight_too():
    assert chance_share(replace(CELL, updates=1)) == pytest.approx(0.5)
    assert chance_share(replace(CELL, updates=2)) == pytest.approx(0.25), "as often halves as all with one"
    shares = np.array([0.1, 0.2, 0.7])
    draws = np.random.default_rng(1).multinomial(50, shares, 20_000) / 50
    by_hand = 0.5 * np.abs(draws - shares).sum(axis=1).mean()
    skewed = replace(CELL, intended=[1.0, 2.0, 7.0], weight=[1.0] * 3, updates=50)
    assert chance_share(skewed) == pytest.approx(by_hand, rel=0.02)


def tuned(best, *others, **fields):
    trials = tuple(Trial({"strategy.alpha": v}, (score,), None, "max_updates") for v, score in (best, *others))
    return Tuned("C", "phones", "accuracy", "max", trials, trials[0], seeds=(7,), **fields)


@pytest.mark.usefixtures("no_figures")
def test_a_grid_that_ended_at_its_edge_is_said_at_the_top_of_the_page(tmp_path):
    inside = tuned((0.2, 0.9), (0.1, 0.5), (0.4, 0.6), judged_on="kept back")
    page = write_report(tmp_path / "report.html", "a study", [replace(CELL, strategy="C")], "", tunings=[inside])
    assert "Tuned up to" not in page.read_text()
    assert "All trials ran on seed 7 alone: the best of many may be the luckiest. Trials were judged on kept back." in (
        page.read_text()
    )
    outside = tuned((0.4, 0.9), (0.2, 0.5), edges=("strategy.alpha",))
    page = write_report(tmp_path / "report.html", "a study", [replace(CELL, strategy="C")], "", tunings=[outside])
    text = page.read_text()
    said = "C on phones: strategy.alpha = 0.4 is the highest value that was tried"
    assert text.index("Tuned up to an edge.") < text.index(said) < text.index("<h2>")
    assert tuned((0.4, math.nan), (0.8, math.nan), edges=("strategy.alpha",)).doubts == [
        "no trial came to its end", "strategy.alpha = 0.4 is the lowest value that was tried",
    ]  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_what_was_tuned_on_which_seeds_is_said_with_its_spread(tmp_path):
    trials = (
        Trial({"strategy.alpha": 0.2}, (0.9, 0.8), None, "max_updates"),
        Trial({"strategy.alpha": 0.4}, (0.7, 0.98), None, "max_updates"),
        Trial({"strategy.alpha": 0.1}, (0.5,), None, "max_updates"),
    )
    found = Tuned("C", "phones", "accuracy", "max", trials, trials[0], seeds=(7, 8))
    page = write_report(tmp_path / "report.html", "a study", [replace(CELL, strategy="C")], "", tunings=[found])
    text = page.read_text()
    assert "All trials ran on seed 7, the best of them on 8 as well. Of these finalists the best one over all 2" in text
    assert "<td>3, 2 on 2 seeds</td><td>0.85 (0.8 to 0.9)</td>" in text
    assert "within one standard error of it: 0.4<" in text
    assert "<tr><td class=text>0.1</td><td>1</td><td>0.5</td><td>max_updates</td></tr>" in text


@pytest.mark.usefixtures("no_figures")
def test_an_overview_says_how_many_cells_it_leaves_out(tmp_path):
    lost = replace(CELL, seed=1, finished="diverged", diverged_s=1.25)
    elsewhere = [replace(r, population="servers") for r in (CELL, lost)]
    page = write_report(tmp_path / "report.html", "a study", [CELL, lost, *elsewhere], "").read_text()
    assert "2 cells that diverged are left out." in page


@pytest.mark.usefixtures("no_figures")
def test_the_same_bytes_are_promised_only_where_no_path_was_chosen_by_time(tmp_path):
    def page(backend):
        return write_report(tmp_path / "report.html", "a", [replace(CELL, backend=backend)], "").read_text()

    assert "Trained by: numpy (1 cell). The same settings and seeds give the same bytes." in page("numpy")
    measured = page("Keras, one step after the other (a participant took 2.00 ms vectorised, 1.00 ms by itself)")
    assert "Trained by: Keras, one step after the other (1 cell). The faster path was measured once" in measured


@pytest.mark.usefixtures("no_figures")
def test_a_study_is_called_untuned_aloud_and_each_failure_is_listed(tmp_path):
    failed = replace(CELL, seed=1, finished="diverged", diverged_s=1.25)
    page = write_report(tmp_path / "report.html", "a study", [CELL, failed], "").read_text()
    assert "Untuned: all strategies." in page
    assert "1 of 2 cells failed." in page
    assert "<td>1.25</td>" in page


def test_a_page_that_would_be_too_large_has_pictures_in_place_of_vectors(tmp_path, monkeypatch):
    whole = write_report(tmp_path / "whole.html", "a study", [CELL], "").stat().st_size
    monkeypatch.setattr(report, "LIMIT_BYTES", whole - 1)
    page = write_report(tmp_path / "report.html", "a study", [CELL], "").read_text()
    assert page.count("data:image/png") == 3
    assert "<svg" not in page


def test_means_come_with_students_interval():
    assert mean_text([2.0]) == "2"
    assert mean_text([1.0, 2.0, 3.0]) == "2 ± 2.5"
    assert mean_text([20000.0, 20010.0, 20020.0]) == "20,000 ± 25"
    assert mean_text([0.0, 400.0]) == "200 ± 2,500"
    assert mean_text([2e-5]) == "2e-05"
    assert mean_text([0.123456]) == "0.123"
    assert mean_text([999.6, 999.6]) == "1,000 ± 0"
    assert mean_text([1234567.0]) == "1,230,000"
    assert mean_text([0.1 + 0.2, 0.3]) == "0.3 ± 0", "sums that differ in their last bits"
    assert mean_text([]) == mean_text([float("nan"), 1.0]) == "-"
    mean, half = mean_and_half_width(np.array([[1.0], [2.0], [3.0]]))
    assert (mean[0], half[0]) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))
    quantiles = [half_width_factor(freedom + 1) * (freedom + 1) ** 0.5 for freedom in (9, 10, 11, 14, 29, 99)]
    assert quantiles == pytest.approx([2.262, 2.2281, 2.2010, 2.1448, 2.0452, 1.9842], abs=5e-4)


def test_a_band_of_few_seeds_stays_within_what_can_be():
    low, high = np.array([-0.4, 0.2]), np.array([1.3, 0.9])
    below, above = _possible("accuracy", np.array([[0.1, 0.5], [0.9, 0.6]]), low, high)
    assert (below.tolist(), above.tolist()) == ([0, 0.2], [1, 0.9])
    below, above = _possible("loss", np.array([[0.1, 0.5], [0.9, 0.6]]), low, high)
    assert (below.tolist(), above.tolist()) == ([0, 0.2], [1.3, 0.9])
    below, above = _possible("accuracy in %", np.array([[-1.0, 50.0]]), low, high)
    assert (below.tolist(), above.tolist()) == ([-0.4, 0.2], [1.3, 0.9])
    _, above = _possible("accuracy in %", np.array([[90.0, 99.0]]), low, np.array([110.0, 99.5]))
    assert above.tolist() == [100, 99.5]
