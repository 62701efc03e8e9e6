"""Tuning, with one participant alone on a quadratic: with step η·η_g an update leaves 1 - η·η_g of its distance."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedmq.coordinator.settings import TargetMetric
from fedmq.coordinator.strategies import FedAsync, FedAvg, FedBuff
from fedmq.demo.data import SAMPLE
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.laws import Constant
from fedmq.studies.problems.classification import Softmax, load_arrays, validated
from fedmq.studies.problems.quadratics import QuadraticFederation
from fedmq.studies.sweep.cell import Cell, run_cell
from fedmq.studies.sweep.grids import server_step_of, with_values
from fedmq.studies.sweep.measures import tuned_metric
from fedmq.studies.sweep.tuning import Trial, Tuned, Tuning, tune
from tests.scenario.studies.federations import Given, fedbuff, population, until

UPDATES = 6
OPTIMUM = 3.0


@dataclass
class Curved:
    """A quadratic with a curvature for each seed; 1 if none is given."""

    curvatures: dict[int, float] = field(default_factory=dict)

    def deal(self, members, seed):
        return QuadraticFederation(np.array([self.curvatures.get(seed, 1.0)]), np.array([[OPTIMUM]]))


def cell(strategy, run=None, problem=None) -> Cell:
    return Cell(
        "s",
        "it",
        strategy,
        population(1),
        problem or Curved(),
        run or until(UPDATES),
        TrainingConfig(learning_rate=0.1),
        0,
    )


def tuned(folder, strategy, given=None, run=None, problem=None, **options):
    (folder / "cells").mkdir(exist_ok=True)
    trials = tune(cell(strategy, run, problem), Tuning(metric="loss", **options), given)
    results, batches = None, []
    while True:
        try:
            batch = next(trials) if results is None else trials.send(results)
        except StopIteration as end:
            return end.value, batches
        batches.append(batch.cells)
        results = [run_cell(folder, c) for c in batch.cells]


def loss(step: float, curvature: float = 1.0) -> float:
    return 0.5 * curvature * (OPTIMUM * (1 - step * curvature) ** UPDATES) ** 2


def test_a_grid_grows_until_its_best_value_has_others_on_both_sides(tmp_path):
    found, batches = tuned(tmp_path, FedAvg(cohort_size=1))
    rates = [trial.values["training.learning_rate"] for trial in found.trials]
    assert rates == [0.0316, 0.1, 0.316, 1.0, 3.16]
    assert [t.score for t in found.trials[:4]] == pytest.approx([loss(rate) for rate in rates[:4]])
    assert math.isnan(found.trials[4].score), "its steps are so large that it explodes"
    assert found.best.values == {"training.learning_rate": 1.0}
    assert found.best.score == 0
    assert found.edges == ()
    assert [len(cells) for cells in batches] == [3, 3 * 4, 1, 4, 1], "3.16 is none of the best three"
    assert [len(t.scores) for t in found.trials] == [5, 5, 5, 5, 1]
    assert [{c.seed for c in cells} for cells in batches[:2]] == [{1_000_000}, set(range(1_000_001, 1_000_005))]


def test_both_steps_are_tuned_together_and_an_edge_that_still_wins_is_said(tmp_path):
    found, _ = tuned(tmp_path, fedbuff(1), extend=0)
    assert len(found.trials) == 9
    assert found.best.values == {"training.learning_rate": 0.316, "strategy.server_learning_rate": 3.16}
    assert found.best.score == pytest.approx(loss(0.316 * 3.16))
    assert found.edges == ("training.learning_rate", "strategy.server_learning_rate")
    assert "learning_rate = 0.316" in found.deploy
    assert "server_learning_rate = 3.16" in found.deploy


def test_listed_values_are_taken_as_they_are_and_a_trial_that_diverges_loses(tmp_path):
    path = "training.learning_rate"
    found, batches = tuned(tmp_path, fedbuff(1), {path: [0.5, 1e200]})
    assert [(t.values[path], t.finished) for t in found.trials] == [(0.5, "max_updates"), (1e200, "diverged")]
    assert math.isnan(found.trials[1].score)
    assert found.best.values == {path: 0.5}
    assert [len(cells) for cells in batches] == [2, 4], "the one that diverged is no finalist"


def test_the_best_on_all_seeds_wins_among_the_best_on_the_first(tmp_path):
    path = "training.learning_rate"
    curved = Curved({8: 1.6, 9: 1.7})
    found, batches = tuned(
        tmp_path, FedAvg(cohort_size=1), {path: [0.4, 0.6, 0.8, 1.0]}, problem=curved, seeds=(7, 8, 9), finalists=2
    )
    assert [[(c.training.learning_rate, c.seed) for c in cells] for cells in batches] == [
        [(0.4, 7), (0.6, 7), (0.8, 7), (1.0, 7)],
        [(1.0, 8), (1.0, 9), (0.8, 8), (0.8, 9)],
    ]
    assert [t.values[path] for t in found.finalists] == [0.8, 1.0]
    assert found.best.values == {path: 0.8}, "1.0 was perfect on the first seed; 0.6 would be better than both"
    assert found.best.scores == pytest.approx((loss(0.8), loss(0.8, 1.6), loss(0.8, 1.7)))
    assert found.best.score == pytest.approx(math.fsum(found.best.scores) / 3)
    alone, batches = tuned(tmp_path, FedAvg(cohort_size=1), {path: [0.8, 1.0]}, problem=curved, seeds=(7,))
    assert (alone.best.values, len(batches)) == ({path: 1.0}, 1)


def test_a_finalist_that_diverges_makes_room_for_the_next_one(tmp_path):
    path = "training.learning_rate"
    found, batches = tuned(
        tmp_path, FedAvg(cohort_size=1), {path: [0.001, 0.01, 0.1, 1]}, problem=Curved({8: 100.0}), seeds=(7, 8),
        finalists=1,
    )  # fmt: skip
    rates = [[c.training.learning_rate for c in cells] for cells in batches]
    assert rates == [[0.001, 0.01, 0.1, 1], [1], [0.1], [0.01]]
    assert [len(t.scores) for t in found.trials] == [1, 2, 2, 2]
    assert found.best.values == {path: 0.01}
    assert found.trials[3].finished == "max_updates, diverged"
    assert math.isnan(found.trials[3].extremes[1])


def test_where_every_trial_diverges_the_grid_goes_to_smaller_steps_and_says_so(tmp_path):
    found, _ = tuned(tmp_path, FedAvg(cohort_size=1), problem=Curved(dict.fromkeys((7, 8), 1e60)), seeds=(7, 8))
    assert [t.values["training.learning_rate"] for t in found.trials] == [0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316]
    assert found.finalists == []
    assert found.best.values == {"training.learning_rate": 0.001}
    assert found.doubts[0] == "no trial came to its end"


def test_finalists_within_one_standard_error_of_the_best_are_as_good():
    # It is worse than the best by 0, 0.05 and 0.2: mean 0.083, standard deviation 0.104, standard error 0.060.
    best, worse = Trial({"a": 1}, (1.0, 2.0, 3.0), None, ""), Trial({"a": 2}, (1.0, 2.05, 3.2), None, "")
    # It is worse by 0.3, 0 and -0.15: mean 0.05, standard error 0.13.
    as_good, unknown = Trial({"a": 3}, (1.3, 2.0, 2.85), None, ""), Trial({"a": 4}, (0.9,), None, "")
    trials = (best, worse, as_good, unknown)
    assert Tuned("s", "it", "loss", "min", trials, best, seeds=(7, 8, 9)).as_good == [as_good]
    upside_down = tuple(Trial(t.values, tuple(-s for s in t.scores), None, "") for t in trials)
    assert Tuned("s", "it", "accuracy", "max", upside_down, upside_down[0], seeds=(7, 8, 9)).as_good == [upside_down[2]]


def test_step_sizes_are_chosen_by_what_tells_most(tmp_path):
    def measured(*names):
        return [SimpleNamespace(evaluations=[{"metrics": dict.fromkeys(names, 1.0)}])]

    assert tuned_metric(measured("accuracy", "loss")) == "loss"
    assert tuned_metric(measured("loss", "distance")) == "distance"
    assert tuned_metric(measured("auc", "accuracy")) == "accuracy"
    assert tuned_metric(measured()) is None


def test_where_a_run_has_a_target_the_soonest_wins(tmp_path):
    target = TargetMetric(name="distance", value=0.5, mode="min")
    run = StudyRun(stop={"max_updates": UPDATES, "target": target}, concurrency=1)
    found, _ = tuned(tmp_path, fedbuff(1), {"training.learning_rate": [0.1, 0.5, 0.6, 0.9]}, run=run)
    assert [t.reached_s for t in found.trials] == [None, 3.0, 2.0, 1.0]
    assert found.best.values["training.learning_rate"] == 0.9


def test_a_target_that_one_seed_did_not_reach_was_not_reached(tmp_path):
    target = TargetMetric(name="distance", value=0.5, mode="min")
    run = StudyRun(stop={"max_updates": UPDATES, "target": target}, concurrency=1)
    given, curved = {"training.learning_rate": [0.6, 0.9]}, Curved({8: 0.01, 9: 0.7})
    found, _ = tuned(tmp_path, FedAvg(cohort_size=1), given, run=run, problem=curved, seeds=(7, 8))
    assert [(t.reached_s, t.finished) for t in found.trials] == [(None, "target, max_updates")] * 2
    found, _ = tuned(tmp_path, FedAvg(cohort_size=1), given, run=run, problem=curved, seeds=(7, 9))
    assert [(t.reached_s, t.finished) for t in found.trials] == [(3.0, "target"), (1.5, "target")]


@pytest.mark.parametrize(("mode", "best"), [("min", 0.5), ("max", 0.1)])
def test_the_best_is_the_lowest_or_the_highest_as_the_mode_says(tmp_path, mode, best):
    found, _ = tuned(tmp_path, FedAvg(cohort_size=1), {"training.learning_rate": [0.5, 0.1, 0.2]}, mode=mode)
    assert found.best.values == {"training.learning_rate": best}
    assert found.mode == mode


@pytest.mark.parametrize(
    ("strategy", "path"),
    [
        (FedAsync(), "strategy.alpha"),
        (FedBuff(), "strategy.server_learning_rate"),
        (FedBuff(server_optimizer={"name": "adam"}), "strategy.server_optimizer.learning_rate"),
        (FedAvg(), None),
    ],
)
def test_the_step_of_a_server_is_found_by_its_name(strategy, path):
    assert server_step_of(strategy) == path


def test_a_mixing_rate_is_tried_up_to_one(tmp_path):
    found, _ = tuned(tmp_path, FedAsync(alpha=0.6), extend=3)
    assert sorted({t.values["strategy.alpha"] for t in found.trials})[-1] == 1.0


def test_what_a_strategy_refuses_is_no_trial():
    assert with_values(cell(FedAsync()), {"strategy.alpha": 1.5}) is None
    assert with_values(replace(cell(FedAsync())), {"strategy.staleness.a": 2.0}).strategy.staleness.a == 2.0


def test_trials_are_judged_on_training_examples_that_nobody_trains_on():
    data = Softmax(data=str(SAMPLE))
    problem, said = data.for_tuning(0.1)
    assert (said, problem.validation_part) == ("10% of the training examples, kept from all participants", 0.1)
    members = population(3, examples=Constant(value=40)).members(5)
    whole, trial = data.deal(members, 5), problem.deal(members, 5)
    x, y, *test = load_arrays(SAMPLE)
    left_x, _, kept_x, kept_y = validated((x, y, *test), 0.1, 5)
    assert len(kept_x) == len(kept_y) == round(0.1 * len(x))
    together = np.concatenate([left_x, kept_x]).reshape(len(x), -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, x.reshape(len(x), -1)))
    assert trial.num_examples == whole.num_examples == [40] * 3
    assert trial.evaluate(trial.initial) != whole.evaluate(whole.initial)


def test_the_trials_problem_is_not_the_comparisons(tmp_path):
    class Both(Given):
        def for_tuning(self, part):
            return Given(QuadraticFederation(np.array([1.0]), np.array([[-OPTIMUM]]))), f"{part} of them"

    federation = QuadraticFederation(np.array([1.0]), np.array([[OPTIMUM]]))
    compared = replace(cell(FedAvg(cohort_size=1)), problem=Both(federation))
    trials = tune(compared, Tuning(learning_rate=[0.1]), None)
    assert {c.problem.federation.optima[0, 0] for c in next(trials).cells} == {-OPTIMUM}
    (own,) = {id(c.problem) for c in next(tune(compared, Tuning(validation_part=0), None)).cells}
    assert own == id(compared.problem)
