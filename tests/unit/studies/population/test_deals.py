import os
from dataclasses import replace

import numpy as np
import pytest

from fedmq.schemas.errors import InputError
from fedmq.studies.population.deals import ByPosition, BySpeed, Dirichlet, Iid, Shards
from fedmq.studies.population.laws import Constant, LogNormal
from fedmq.studies.population.population import Compute, Population
from fedmq.studies.problems.classification import class_numbers, load_arrays
from fedmq.studies.problems.synthetic import Synthetic

LABELS = np.repeat(np.arange(10), 20)


def members(participants=10, examples=20, **fields):
    return Population(participants=participants, examples=Constant(value=examples), **fields).members(0)


@pytest.mark.parametrize(
    "deal",
    [Iid(), Dirichlet(alpha=0.1), Shards(), ByPosition(), ByPosition(skew=0.5), BySpeed(), BySpeed(skew=0.5)],
    ids=str,
)
def test_everybody_gets_as_many_rows_as_its_population_says_and_a_seed_repeats_them(deal):
    rows = deal.deal(LABELS, members(), 3)
    assert [len(r) for r in rows] == [20] * 10
    assert all(len(set(r.tolist())) == 20 for r in rows)
    again = deal.deal(LABELS, members(), 3)
    assert all((a == b).all() for a, b in zip(rows, again, strict=True))


def test_with_as_many_examples_as_there_are_rows_each_row_is_there_once():
    assert sorted(Iid().deal(LABELS, members(1, 200), 0)[0].tolist()) == list(range(200))
    assert len(Iid().deal(LABELS, members(1, 201), 0)[0]) == 201


def test_dirichlets_shares_are_around_the_classes_shares_of_all_data():
    labels = np.repeat([0, 1], [900, 100])
    near, far = (Dirichlet(alpha=alpha).deal(labels, members(40, 50), 0) for alpha in (1e6, 0.01))
    rare = [[int((labels[r] == 1).sum()) for r in rows] for rows in (near, far)]
    assert np.mean(rare[0]) == pytest.approx(5, abs=1.5)
    assert max(rare[0]) < 20
    assert set(rare[1]) <= {*range(5), *range(46, 51)}, "nearly all of one class"


@pytest.mark.parametrize("alpha", [1e-320, 5e-324])
def test_a_dirichlet_that_underflows_gives_each_participant_one_class_and_not_all_the_same(alpha):
    rows = Dirichlet(alpha=alpha).deal(LABELS, members(30, 15), 0)
    classes = [set(LABELS[r].tolist()) for r in rows]
    assert {len(own) for own in classes} == {1}
    assert len(set.union(*classes)) > 5


@pytest.mark.parametrize(("skew", "near"), [(1.0, 1.0), (0.0, 0.1), (0.5, 0.55)])
def test_a_skew_part_of_the_rows_is_of_the_neighbourhood(skew, near):
    rows = ByPosition(skew=skew, width=0.1).deal_at([0.0] * 50, LABELS, members(50, 20), 0)
    assert np.mean([(LABELS[r] == 0).mean() for r in rows]) == pytest.approx(near, abs=0.05)


def test_shards_of_the_sorted_rows_go_to_one_participant_each():
    rows = Shards(each=2).deal(LABELS, members(examples=20), 0)
    assert sorted(np.concatenate(rows).tolist()) == list(range(200))
    assert max(len(np.unique(LABELS[r])) for r in rows) <= 2
    with pytest.raises(InputError, match=r"10 participants with 21 shards each are 210 shards, of 200 examples"):
        Shards(each=21).deal(LABELS, members(), 0)


def test_by_speed_the_slowest_has_the_first_class_and_the_fastest_the_last():
    who = members(compute=Compute(task_s=Constant(value=1), slowness=LogNormal(median=1, sigma=1)))
    rows = BySpeed(width=0.1).deal(LABELS, who, 0)
    by_speed = np.argsort([-m.slowness for m in who])
    assert set(LABELS[rows[by_speed[0]]]) <= {0, 1}
    assert set(LABELS[rows[by_speed[-1]]]) <= {8, 9}
    means = [LABELS[rows[i]].mean() for i in by_speed]
    assert means == sorted(means)


def test_speed_is_by_slowness_and_by_seconds_an_example():
    def rows(**compute):
        slow, fast = Population(participants=2).members(0)
        own = [
            replace(slow, **{k: v[0] for k, v in compute.items()}),
            replace(fast, **{k: v[1] for k, v in compute.items()}),
        ]
        return [LABELS[r].mean() for r in BySpeed(width=0.1).deal(LABELS, [replace(m, examples=20) for m in own], 0)]

    first, second = rows(slowness=[2.0, 1.0], example_s=[0.0, 0.0])
    assert first < 3
    assert second > 6
    first, second = rows(slowness=[2.0, 1.0], example_s=[1.0, 5.0])
    assert first > 6
    assert second < 3


def test_a_data_file_that_does_not_fit_is_refused_with_what_it_has(tmp_path):
    def refused(match, **arrays):
        x, y = np.zeros((4, 2), np.float32), np.arange(4)
        np.savez(tmp_path / "data.npz", **{"x_train": x, "y_train": y, "x_test": x, "y_test": y} | arrays)
        with pytest.raises(InputError, match=match):
            class_numbers(load_arrays(tmp_path / "data.npz")[1])

    refused(r"x_train is \[4, 2\] and y_train \[3\]", y_train=np.arange(3))
    refused(r"not finite numbers", x_test=np.full((4, 2), np.nan))
    refused(r"a row of x_train is \(3,\), of x_test \(2,\)", x_train=np.zeros((4, 3)))
    refused(r"labels are \[4, 10\] of float64, expected one class number", y_train=np.zeros((4, 10)))
    refused(r"labels go from -1 to 2", y_train=np.arange(-1, 3))
    (tmp_path / "data.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_arrays(tmp_path / "data.npz")


def test_synthetic_inputs_lie_around_means_with_the_deviation_beta():
    (x, y), rows, test = Synthetic(alpha=0.0, beta=3.0, features=4, classes=3).examples(members(400, 9), 0)
    assert [len(r) for r in rows] == [9] * 400
    assert (len(x), len(y), len(test[0])) == (3600, 3600, 400)
    centers = np.array([x[r].mean() for r in rows])
    # The mean of N(B, 1) over 4 features and 9 examples, with B ~ N(0, 3²), and the noise of Σ.
    noise = 1 / 4 + np.mean(np.arange(1, 5) ** -1.2) / 36
    assert centers.std() == pytest.approx(np.sqrt(9 + noise), rel=0.1)
    within = np.mean([x[r].var(axis=0, ddof=1) for r in rows], axis=0)
    np.testing.assert_allclose(within, np.arange(1, 5) ** -1.2, rtol=0.1)


def test_synthetic_iid_has_one_model_for_all_and_otherwise_each_has_its_own():
    def shares_of_class_1(problem):
        (_, y), rows, _ = problem.examples(members(200, 50), 0)
        return np.array([y[r].mean() for r in rows])

    assert shares_of_class_1(Synthetic(iid=True, features=5, classes=2)).std() < 0.1
    assert shares_of_class_1(Synthetic(alpha=1, beta=5, features=5, classes=2)).std() > 0.3
    assert Synthetic().deal(members(), 0).num_examples == [20] * 10


def test_synthetic_keeps_back_a_part_of_all_for_the_test():
    (x, _), _, (x_test, _) = Synthetic(test_part=0.25, features=3, classes=2).examples(members(5, 30), 0)
    assert (len(x), len(x_test)) == (150, 50)
    (_, _), _, (x_test, _) = Synthetic(test_part=0.1).examples(members(2, 1), 0)
    assert len(x_test) == 2, "at least one of each"


def test_synthetic_iid_inputs_lie_around_0_whatever_beta_is():
    (x, _), rows, _ = Synthetic(iid=True, beta=9.0, features=4, classes=2).examples(members(50, 400), 0)
    centers = np.array([x[r].mean(axis=0) for r in rows])
    assert np.abs(centers).max() < 0.3


def test_synthetics_alpha_moves_all_classes_alike_and_so_no_label():
    """The authors' generator does the same: all entries of a participant's model have one mean."""
    (x, y), _, _ = Synthetic(alpha=0.0).examples(members(20, 50), 0)
    (same_x, same_y), _, _ = Synthetic(alpha=50.0).examples(members(20, 50), 0)
    assert (x == same_x).all()
    assert (y == same_y).all()


@pytest.mark.parametrize("deal", [Iid(), Dirichlet(), Shards(), ByPosition(), BySpeed()], ids=str)
def test_more_examples_than_a_study_can_hold_are_refused_before_any_is_drawn(deal):
    with pytest.raises(InputError, match=r"examples are 1e\+10 for 10 participants, allowed are 268,435,456 for all"):
        deal.deal(LABELS, members(examples=1e9), 0)


def test_the_same_goes_for_examples_that_are_made():
    with pytest.raises(InputError, match="a law with smaller numbers"):
        Synthetic().examples(members(examples=1e9), 0)


def test_a_data_file_that_nobody_writes_to_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(InputError, match="it is a FIFO"):
        load_arrays(tmp_path / "data.npz")
