"""Strategies against the first one, seed by seed. Student's quantile at 0.975 is 12.706 for one degree of freedom and
4.303 for two."""

import csv
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report.page import write_report
from fedmq.studies.report.tables import COLUMNS, write_tables
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.differences import difference_rows, differences
from fedmq.studies.sweep.intervals import difference_text

BLANK = CellResult(
    key="k", strategy="A", population="phones", seed=0, finished="max_updates", detail="", diverged_s=None,
    time_s=10.0, versions=2, updates=4, bytes_up=40.0, bytes_down=80.0, discarded={}, dropouts=0, missed_arrivals=0,
    mean_staleness=0.5, staleness=[2, 2], tasks_out=[[0.0, 2], [2.0, 1]], weight=[0.5, 1.5], intended=[1.0, 1.0],
    accepted=[1, 3], task_s=[1.0, 2.0], cohorts=1, backend="numpy", digest="d", took_s=0.1, evaluations=[],
)  # fmt: skip
HALF = TargetMetric(name="accuracy", value=0.5)


def cell(strategy, seed, final, half_at_s=None, **fields):
    """A run of 10 s that ends at an accuracy of `final` and first reaches 0.5 after `half_at_s`.

    Each second has 2 updates, 20 bytes up and 40 down.
    """
    curve = [(0.0, 0.125), *([(half_at_s, 0.5)] if half_at_s is not None else []), (10.0, final)]
    evaluations = [
        {"version": i, "time_s": t, "updates": 2 * t, "bytes_up": 20 * t, "bytes_down": 40 * t,
         "metrics": {"accuracy": value}}
        for i, (t, value) in enumerate(curve)
    ]  # fmt: skip
    return replace(BLANK, strategy=strategy, seed=seed, evaluations=evaluations, **fields)


def against_a(*cells, target=None):
    """Return measure -> differences of B from A."""
    return {d.measure: d for d in differences(cells, "A", target)}


A = [cell("A", 0, 0.5, 4.0), cell("A", 1, 0.75, 5.0), cell("A", 2, 0.875, 6.0)]
B = [cell("B", 0, 0.625, 3.0), cell("B", 1, 1.0, 2.0), cell("B", 2, 1.25, 4.0)]


def test_differences_are_of_the_same_seeds_whatever_their_order():
    """The values 0.125, 0.25 and 0.375 have mean 1/4 and standard deviation 1/8."""
    found = against_a(*reversed(B), *A)["final"]
    assert (found.strategy, found.reference, found.values) == ("B", "A", (0.125, 0.25, 0.375))
    assert (found.paired, found.left_out, found.mean) == (3, 0, 0.25)
    half = 4.303 * 0.125 / 3**0.5
    assert found.interval == pytest.approx((0.25 - half, 0.25 + half))


def test_the_costs_of_a_target_are_compared_where_all_paired_seeds_reached_it():
    """B is sooner by 1, 3 and 2 s: mean -2, standard deviation 1."""
    found = against_a(*A, *B, target=HALF)
    assert found["time_s"].values == (-1.0, -3.0, -2.0)
    assert found["time_s"].interval == pytest.approx((-2 - 4.303 / 3**0.5, -2 + 4.303 / 3**0.5))
    means = {measure: found[measure].mean for measure in ("updates", "bytes_up", "bytes_down")}
    assert means == {"updates": -4, "bytes_up": -40, "bytes_down": -80}
    late = against_a(*A, *B[:2], cell("B", 2, 0.25), target=HALF)
    assert (late["time_s"].values, late["time_s"].mean, late["time_s"].interval) == ((), None, None)
    assert (late["time_s"].reached, late["time_s"].reference_reached, late["time_s"].paired) == (2, 3, 3)
    assert len(late["final"].values) == 3


@pytest.mark.parametrize("end", ["diverged", "stuck"])
def test_a_seed_in_which_either_run_failed_is_counted_and_not_paired(end):
    failed = replace(A[1], finished=end)
    for cells in ([A[0], failed, A[2], *B], [*A, B[0], replace(B[1], finished=end), B[2]]):
        found = against_a(*cells, target=HALF)
        assert (found["final"].values, found["final"].paired, found["final"].left_out) == ((0.125, 0.375), 2, 1)
        assert found["time_s"].values == (-1.0, -2.0), "the target that the failed one reached before is not counted"


def test_a_seed_that_only_one_has_is_counted_and_not_paired():
    found = against_a(A[0], A[1], B[1], B[2])["final"]
    assert (found.values, found.paired, found.left_out) == ((0.25,), 1, 2)
    assert (found.mean, found.interval) == (0.25, None), "one seed has no interval"
    alone = against_a(A[0], B[1], target=HALF)
    assert {(d.mean, d.paired, d.left_out) for d in alone.values()} == {(None, 0, 2)}


def test_a_run_in_which_the_metric_was_not_measured_is_not_paired():
    found = against_a(*A, *B[:2], replace(B[2], evaluations=[]))["final"]
    assert (found.values, found.left_out) == ((0.125, 0.25), 1)


def test_differences_are_written_to_the_digit_that_their_interval_has():
    """The values 0.2 and 0.25 give 0.225 ± 12.706 · 0.025."""
    assert difference_text([0.2, 0.25]) == "+0.23 ± 0.32"
    assert difference_text([-0.2, -0.25]) == "-0.23 ± 0.32"
    assert difference_text([-1.0, 1.0]) == "+0 ± 13"
    assert difference_text([20000.0, 20010.0, 20020.0]) == "+20,000 ± 25"
    assert difference_text([0.001, 0.001, 0.001]) == "+0.001 ± 0"
    assert difference_text([0.1 + 0.2, 0.3, 0.3]) == "+0.3 ± 0", "the last bits of sums are no spread"
    assert difference_text([1e-9, 3e-9]) == "+2e-09 ± 1.3e-08"
    assert difference_text([-0.125]) == "-0.125"
    assert difference_text([1.23449, 1.23451]) == "+1.23 ± 0.00013"
    assert difference_text([]) == "-"


def test_the_tables_have_each_measure_of_each_strategy_in_its_own_units(tmp_path):
    elsewhere = [replace(r, population="servers") for r in (A[0], B[0])]
    write_tables(tmp_path, [*A, *B, *elsewhere], target=HALF)
    with (tmp_path / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS["differences"])
    assert [(r["population"], r["measure"]) for r in rows] == [
        (population, measure)
        for population in ("phones", "servers")
        for measure in ("final", "time_s", "updates", "bytes_up", "bytes_down")
    ]
    assert [(r["difference"], r["low"], r["seeds_paired"]) for r in rows[5:7]] == [
        ("0.125", "", "1"),
        ("-1.0", "", "1"),
    ]
    parquet = pq.read_table(tmp_path / "differences.parquet").to_pylist()
    assert [row["difference"] for row in parquet] == [float(r["difference"]) for r in rows]
    assert parquet[5]["high"] is parquet[0]["target"] is parquet[0]["reached"] is None


def test_without_a_target_its_own_is_taken_and_one_that_is_met_at_the_start_is_not():
    """The worst of the best values is 0.5 and the start is 0.125: 0.125 + 0.95 · 0.375 = 0.48."""
    assert [row["target"] for row in difference_rows([*A, *B], None)] == [None, *[0.48] * 4]
    assert [row["measure"] for row in difference_rows([*A, *B], TargetMetric(name="accuracy", value=0.1))] == ["final"]


@pytest.mark.usefixtures("no_figures")
def test_the_report_has_them_below_the_final_values_and_says_what_they_are(tmp_path):
    def page(*cells, target=HALF):
        return write_report(tmp_path / "report.html", "a study", cells, "", target=target).read_text()

    text = page(*A, *B)
    row = (
        "<td>3 of 3</td><td>+0.25 ± 0.31</td><td>-2.0 ± 2.5</td><td>-4.0 ± 5.0</td><td>-0.000040 ± 0.000050</td>"
        "<td>-0.000080 ± 0.000099</td>"
    )
    assert text.index("Final values: means") < text.index("against A") < text.index(row) < text.index("reached by")
    assert "strategy minus A (the first strategy of the study), with its 95 % confidence interval" in text
    assert "The 5 intervals are not corrected for their number" in text
    assert "not paired" not in text
    assert "Not reached" not in text
    text = page(*A, replace(B[0], finished="diverged"), B[1], cell("B", 2, 0.25))
    assert "<td>2 of 3</td><td>-0.2 ± 5.6</td><td>not reached: 1 and 2 of 2</td><td>-</td><td>-</td><td>-</td>" in text
    assert "Seeds in which either run failed or has no value are not paired." in text
    text = page(A[0], B[0], target=None)
    assert "<td>1 of 1</td><td>+0.125</td><td>-1</td><td>-2</td>" in text
    assert "One paired seed has no interval." in text
    assert "corrected" not in text
    assert "against A" not in page(*A)
