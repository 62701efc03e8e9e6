"""Runs that explode without becoming infinite."""

import json
from dataclasses import asdict

import pytest

from fedmq.studies.sweep.cell import judged
from fedmq.studies.sweep.explosion import explosion_of
from tests.unit.studies.sweep.test_measures import cell


def exploded(*values, metric="loss", time_s=10.0):
    """Explosion of a run with these values, a second apart."""
    return explosion_of(cell(*((float(t), y) for t, y in enumerate(values)), metric=metric).evaluations, time_s)


def test_a_run_has_diverged_when_its_loss_went_beyond_a_thousand_times_its_start_and_stayed():
    found = exploded(2.0, 1.0, 5000.0, 3.0, 3000.0, 1e6, 1e9)
    assert found == (4.0, "loss was 2 at the start and stayed above 2,000")
    assert exploded(2.0, 2001.0) == (1.0, "loss was 2 at the start and stayed above 2,000")
    assert exploded(2.0, 2000.0) is None, "not above it"
    assert exploded(2.0, 1e9, 3.0) is None, "it recovered"


def test_the_last_tenth_of_the_run_must_be_beyond():
    rising = [1.0] * 9 + [1e5, 1e9]
    assert exploded(*rising) == (9.0, "loss was 1 at the start and stayed above 1,000")
    assert exploded(*[1.0] * 10, 1e9) is None, "the evaluation at 9 s is within the last tenth"


@pytest.mark.parametrize(("start", "last", "diverged"), [(0.0, 9.0, False), (1e-6, 9.0, False), (0.0, 11.0, True)])
def test_a_start_near_nothing_is_no_measure(start, last, diverged):
    assert (exploded(start, last) is not None) == diverged


def test_only_metrics_that_are_known_to_be_small_have_a_say():
    for metric in ("loss", "distance", "head_loss", "mse"):
        assert exploded(1.0, 1e6, metric=metric) is not None
    for metric in ("reward", "accuracy", "perplexity"):
        assert exploded(1.0, 1e6, metric=metric) is None
    assert exploded(float("nan"), 1e6) is None
    assert explosion_of([], 1.0) is None


def test_the_cells_verdict_keeps_the_reason():
    run = cell((0.0, 1.0), (10.0, 1e5), metric="loss", finished="max_updates", detail="")
    assert judged(cell((0.0, 1.0), (10.0, 2.0), metric="loss")).finished != "diverged"
    found = judged(run)
    assert (found.finished, found.diverged_s) == ("diverged", 10.0)
    assert found.detail == "loss was 1 at the start and stayed above 1,000"
    assert judged(found) == found
    assert json.dumps(asdict(found))
