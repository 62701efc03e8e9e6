"""Measures of finished cells, in exact small numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.sweep.measures import (
    chance_share,
    common_target,
    cost_of,
    favour,
    final_value,
    is_better_high,
    met_at_start,
    metrics_of,
    misplaced_share,
    on_one_grid,
    series,
)
from tests.unit.studies.sweep.test_differences import BLANK


def cell(*curve, metric="accuracy", **fields):
    """A run of 10 s with these (time, value). Each second has an update, ten bytes up and twenty down."""
    evaluations = [
        {"version": i, "time_s": t, "updates": t, "bytes_up": 10 * t, "bytes_down": 20 * t, "metrics": {metric: y}}
        for i, (t, y) in enumerate(curve)
    ]
    return replace(BLANK, evaluations=evaluations, **fields)


def test_a_final_value_is_the_mean_over_the_last_tenth_of_the_time_or_the_last_one_before_it():
    assert final_value(cell((0.0, 9.0), (8.9, 5.0), (9.0, 1.0), (10.0, 3.0)), "accuracy") == 2.0
    assert final_value(cell((0.0, 9.0), (5.0, 4.0)), "accuracy") == 4.0
    assert final_value(cell((9.0, 1.0), (9.5, math.inf), (10.0, 3.0)), "accuracy") == 2.0
    assert math.isnan(final_value(cell((9.0, 1.0), finished="diverged"), "accuracy"))
    assert math.isnan(final_value(cell((9.0, 1.0)), "loss"))
    assert math.isnan(final_value(cell(), "accuracy"))


def test_accuracies_and_their_like_are_to_be_high():
    assert [is_better_high(m) for m in ("accuracy", "top_5_accuracy", "auc", "f1", "precision", "iou")] == [True] * 6
    assert [is_better_high(m) for m in ("loss", "distance", "auc_loss")] == [False] * 3


def test_metrics_stand_in_the_order_of_what_is_most_asked_for():
    found = [cell((0.0, 1.0), metric=m) for m in ("zeta", "loss", "auc", "accuracy", "distance")]
    assert metrics_of(found) == ["accuracy", "distance", "loss", "auc", "zeta"]


@pytest.mark.parametrize(
    ("metric", "curves", "target"),
    [
        # The best start is 0.3, the worst final value 0.5: 0.3 + 0.95·0.2
        ("accuracy", [[0.1, 0.2, 0.9], [0.3, 0.5]], (0.49, "max")),
        # The best start is 1, the worst final value 0.5: 1 - 0.95·0.5 = 0.525, towards the start
        ("loss", [[2.0, 0.5], [1.0, 0.25]], (0.53, "min")),
        # A best value that a cell does not hold has no say
        ("accuracy", [[0.1, 0.9, 0.2], [0.3, 0.5]], None),
        ("accuracy", [[0.1, 0.9], [0.5, 0.4]], None),
        ("accuracy", [[0.1, 0.9], [0.9, 0.95]], None),
    ],
)
def test_a_common_target_lies_between_the_best_start_and_the_worst_final_value(metric, curves, target):
    cells = [cell(*enumerate(curve), metric=metric) for curve in curves]
    failed = [cell((0.0, 0.0), metric=metric, finished=end) for end in ("diverged", "stuck")]
    found = common_target([*cells, *failed], [metric])
    expected = None if target is None else TargetMetric(name=metric, value=target[0], mode=target[1])
    assert found == expected
    assert common_target(cells, []) is None


def jittering(jitter):
    """A run of 10 s with an evaluation each 0.1 s: an accuracy that rises from 0.1 to 0.6 in 5 s, with a jitter."""
    times = [t / 10 for t in range(101)]
    return cell(*((t, min(0.1 + 0.1 * t, 0.6) + jitter(i)) for i, t in enumerate(times)))


def test_a_lucky_evaluation_reaches_no_target():
    half = TargetMetric(name="accuracy", value=0.5, mode="max")
    assert cost_of(jittering(lambda _: 0), half)["time_s"] == 4.0, "a metric without jitter reaches it when it does"
    spike = jittering(lambda i: 0.4 if i == 5 else 0)
    assert cost_of(spike, half)["time_s"] == 4.0
    # Up and down by 0.2: evaluations above 0.5 begin at 2 s. The mean over the second from 3.6 s on is 0.5.
    assert 3.4 <= cost_of(jittering(lambda i: 0.2 * (-1) ** i), half)["time_s"] <= 4.0
    low = TargetMetric(name="accuracy", value=0.0, mode="min")
    assert cost_of(jittering(lambda i: -0.4 if i == 5 else 0), low) is None


def test_the_last_tenth_of_a_run_is_judged_as_a_whole():
    last = cell(*((t / 2, 0.5) for t in range(20)), (10.0, 0.9))
    assert final_value(last, "accuracy") == pytest.approx((0.5 + 0.5 + 0.9) / 3)
    assert cost_of(last, TargetMetric(name="accuracy", value=0.9)) is None
    assert cost_of(last, TargetMetric(name="accuracy", value=0.6))["time_s"] == 10.0
    ended = replace(last, finished="target")
    assert cost_of(ended, TargetMetric(name="accuracy", value=0.9))["time_s"] == 10.0, "it was this run's goal"


def test_every_finished_cell_reaches_the_target_that_the_report_chooses():
    draws = np.random.default_rng(3)
    for _ in range(50):
        cells = [jittering(lambda _: draws.normal(0, 0.1)) for _ in range(4)]
        target = common_target(cells, ["accuracy"])
        assert target is not None
        assert all(cost_of(r, target) is not None for r in cells)


def test_a_target_that_is_met_at_the_start_measures_nothing():
    high, low = (TargetMetric(name="accuracy", value=0.5, mode=mode) for mode in ("max", "min"))
    starts = {value: cell((0.0, value), (1.0, 0.5)) for value in (0.4, 0.5, 0.6)}
    assert [met_at_start([starts[v]], high) for v in starts] == [False, True, True]
    assert [met_at_start([starts[v]], low) for v in starts] == [True, True, False]
    assert met_at_start([starts[0.4], starts[0.6]], high)
    assert not met_at_start([cell()], high)


def test_a_target_costs_what_was_spent_at_the_first_evaluation_that_reached_it():
    run = cell((0.0, 0.9), (1.0, math.nan), (2.0, 0.5), (3.0, 0.25), (4.0, 0.75))  # windows of 1 s
    high, low = (TargetMetric(name="accuracy", value=v, mode=m) for v, m in ((0.95, "max"), (0.5, "min")))
    assert cost_of(run, low) == {"time_s": 2.0, "updates": 2.0, "bytes_up": 20.0, "bytes_down": 40.0}
    assert cost_of(run, high) is None
    assert cost_of(run, TargetMetric(name="accuracy", value=0.9, mode="max"))["time_s"] == 0.0
    assert cost_of(run, TargetMetric(name="loss", value=0.9, mode="max")) is None


def test_who_has_how_much_of_a_say():
    run = replace(BLANK, weight=[1.0, 3.0], intended=[2.0, 2.0])
    assert favour(run).tolist() == [0.5, 1.5]
    assert misplaced_share(run) == 0.25
    assert favour(replace(run, intended=[1.0, 3.0])).tolist() == [1.0, 1.0]
    assert misplaced_share(replace(run, intended=[1.0, 3.0])) == 0.0
    nothing = replace(run, weight=[0.0, 0.0])
    assert favour(nothing).tolist() == [0.0, 0.0]
    assert math.isnan(misplaced_share(nothing))


@pytest.mark.parametrize(
    ("intended", "updates", "share"),
    [
        ([1.0, 1.0], 2, 0.25),  # one participant has both draws with probability 1/2: half of the weight is misplaced
        ([1.0, 3.0], 1, 0.375),  # 1/4·3/4 + 3/4·1/4
        ([5.0], 3, 0.0),
        ([1.0, 1.0, 1.0], 1, 2 / 3),
    ],
)
def test_luck_alone_misplaces_a_part_of_the_weight(intended, updates, share):
    assert chance_share(replace(BLANK, intended=intended, updates=updates)) == pytest.approx(share)
    assert math.isnan(chance_share(replace(BLANK, intended=intended, updates=0)))


def test_a_value_holds_until_the_next_one():
    grid, values = on_one_grid([(np.arange(3.0), np.array([5.0, 6.0, 7.0])), (np.array([0.0, 2.0]), np.arange(2.0))], 3)
    assert (grid.tolist(), values.tolist()) == ([0.0, 1.0, 2.0], [[5.0, 6.0, 7.0], [0.0, 0.0, 1.0]])
    grid, values = on_one_grid([(np.array([1.0, 4.0]), np.ones(2)), (np.array([0.0, 3.0]), np.ones(2))], 2)
    assert grid.tolist() == [1.0, 3.0], "where all of them are"
    assert on_one_grid([(np.empty(0), np.empty(0))], 3)[1].size == 0


def test_a_series_is_over_what_it_is_asked_for_and_has_finite_values_alone():
    x, y = series(cell((0.0, 1.0), (1.0, math.nan), (2.0, 3.0)), "bytes_up", "accuracy")
    assert (x.tolist(), y.tolist()) == ([0.0, 20.0], [1.0, 3.0])
