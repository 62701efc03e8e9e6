"""Facts of theory about asynchronous aggregation, and the same from the engine with the deployment's own core."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedmq.coordinator.strategies import Area, Ca2fl, FedAsync, FedAvg, Scaffold
from fedmq.coordinator.strategies.math.staleness_weights import Constant as NoStaleness
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.population.laws import Constant, Exponential, HalfNormal
from fedmq.studies.problems.quadratics import QuadraticFederation, Quadratics, weighted_mean
from tests.scenario.studies.federations import STEP, Given, fedbuff, population, simulate, until

LAWS = [Constant(value=1), Exponential(mean=1), HalfNormal(mean=1)]
by_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)


class Path(QuadraticFederation):
    """Keep the model of every version."""

    def __init__(self, curvatures, optima, num_examples=None) -> None:
        super().__init__(np.array(curvatures, float), np.array(optima, float), num_examples)
        self.versions: list[np.ndarray] = []

    def evaluate(self, parameters):
        self.versions.append(parameters["x"])
        return {}

    def mean(self, skip: float = 0.2) -> np.ndarray:
        return np.mean(self.versions[int(skip * len(self.versions)) :], axis=0)


class Durations:
    """A population in which participant i takes `task_s` times slowness[i], on average slowness[i] seconds."""

    def __init__(self, law, slowness) -> None:
        self.population = population(len(slowness), law)
        self.slowness = slowness

    def members(self, seed):
        return [replace(m, slowness=s) for m, s in zip(self.population.members(seed), self.slowness, strict=True)]

    def __getattr__(self, name):
        return getattr(self.population, name)


@by_law
@pytest.mark.parametrize(("concurrency", "buffer_size"), [(40, 4), (10, 3)])
def test_mean_staleness_is_concurrency_less_one_over_the_buffer_size(law, concurrency, buffer_size):
    run = until(5000, concurrency=concurrency)
    outcome = simulate(fedbuff(buffer_size), Quadratics(), population(100, law), run, STEP)
    settled = np.asarray(outcome.updates.staleness)[-4000:]
    assert settled.mean() == pytest.approx((concurrency - 1) / buffer_size, rel=0.01)


# The speeds have no common period, and the curvatures and optima make every bias show.
SLOWNESS = [1.0, math.sqrt(2), math.sqrt(7), math.sqrt(17)]
CURVATURES = [1.0, 0.5, 1.5, 1.0]
OPTIMA = [[0.0, 3.0], [1.0, 0.0], [2.0, 1.0], [6.0, -2.0]]


@pytest.mark.parametrize(("law", "within"), [(LAWS[0], 0.01), (LAWS[1], 0.04), (LAWS[2], 0.04)])
def test_fedbuff_settles_at_the_speed_biased_optimum_after_several_local_steps(law, within):
    path = Path(CURVATURES, OPTIMA)
    training = TrainingConfig(learning_rate=0.3, epochs=4)
    run = until(8000, concurrency=4, evaluate_interval_s=0.0)
    simulate(fedbuff(2, server_learning_rate=0.05), Given(path), Durations(law, SLOWNESS), run, training)
    expected = path.speed_biased(1 / np.array(SLOWNESS), 0.3, 4)
    bias = np.linalg.norm(expected - path.optimum())
    assert bias > 1
    assert np.linalg.norm(path.mean() - expected) < within * bias


@pytest.mark.parametrize("law", LAWS[:2], ids=lambda law: law.name)
@pytest.mark.parametrize("corrected", ["area", "ca2fl"])
def test_area_and_ca2fl_settle_at_the_unbiased_optimum_whatever_the_speeds(law, corrected):
    path = Path(CURVATURES, OPTIMA)
    strategy = (
        Area(buffer_size=2, num_participants=4)
        if corrected == "area"
        else Ca2fl(buffer_size=2, num_participants=4, server_learning_rate=0.1)
    )
    run = until(6000, concurrency=4, evaluate_interval_s=0.0)
    simulate(strategy, Given(path), Durations(law, SLOWNESS), run, TrainingConfig(learning_rate=0.1))
    speed_biased = path.speed_biased(1 / np.array(SLOWNESS), 0.1, 1)
    bias = np.linalg.norm(speed_biased - path.optimum())
    assert np.linalg.norm(path.mean(0.5) - path.optimum()) < 0.01 * bias


def drift(path, strategy, updates, law=LAWS[0]):
    """Return the last version's distance from the unbiased optimum, in parts of the distance of FedAvg's limit."""
    training = TrainingConfig(learning_rate=0.3, epochs=10)
    simulate(strategy, Given(path), Durations(law, SLOWNESS), until(updates, evaluate_interval_s=0.0), training)
    drifted = path.speed_biased(np.ones(4), 0.3, 10)
    return np.linalg.norm(path.versions[-1] - path.optimum()) / np.linalg.norm(drifted - path.optimum())


def test_scaffold_reaches_the_optimum_after_ten_local_steps_where_fedavg_drifts():
    fedavg = drift(Path(CURVATURES, OPTIMA), FedAvg(cohort_size=4), 400)
    scaffold = drift(Path(CURVATURES, OPTIMA), Scaffold(num_participants=4, cohort_size=4), 400)
    assert fedavg == pytest.approx(1, abs=1e-9)
    assert scaffold < 1e-9


@pytest.mark.parametrize("law", LAWS[:2], ids=lambda law: law.name)
def test_scaffold_without_rounds_reaches_the_same_optimum_whatever_the_speeds(law):
    strategy = Scaffold(num_participants=4, buffer_size=2, server_learning_rate=0.1)
    assert drift(Path(CURVATURES, OPTIMA), strategy, 2000, law) < 1e-6


def test_scaffold_with_a_part_of_the_participants_in_each_round_forgets_no_control_variate():
    strategy = Scaffold(num_participants=4, cohort_size=2, server_learning_rate=0.3)
    assert drift(Path(CURVATURES, OPTIMA), strategy, 2000) < 1e-6


@pytest.mark.parametrize(
    ("strategy", "weighted"),
    [
        (FedAvg(cohort_size=4), True),
        (Ca2fl(num_participants=4, buffer_size=2, server_learning_rate=0.1), True),
        (Area(num_participants=4, buffer_size=2), True),
        (Scaffold(num_participants=4, cohort_size=4, server_learning_rate=0.3), False),
        (Scaffold(num_participants=4, buffer_size=2, server_learning_rate=0.3), False),
    ],
    ids=repr,
)
def test_client_weights_move_the_optimum_of_ca2fl_and_area_at_any_speeds_and_of_scaffold_not_at_all(strategy, weighted):
    path = Path(CURVATURES, OPTIMA, [1, 2, 3, 10])
    run = until(3000, concurrency=4, client_weights="examples", evaluate_interval_s=0.0)
    simulate(strategy, Given(path), Durations(LAWS[0], SLOWNESS), run, TrainingConfig(learning_rate=0.1))
    by_examples = weighted_mean(np.array([1, 2, 3, 10]) * path.curvatures, path.optima)
    assert np.linalg.norm(by_examples - path.optimum()) > 2
    assert np.linalg.norm(path.versions[-1] - (by_examples if weighted else path.optimum())) < 1e-6


@pytest.mark.parametrize(("law", "within"), [(LAWS[0], 0.005), (LAWS[1], 0.04)])
@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_fedasync_on_participants_that_train_to_the_end_has_the_mean_of_their_optima_by_speed(law, within, alpha):
    path = Path([1.0] * 4, OPTIMA)
    run = until(6000, concurrency=4, evaluate_interval_s=0.0)
    strategy = FedAsync(alpha=alpha, staleness=NoStaleness())
    simulate(strategy, Given(path), Durations(law, SLOWNESS), run, TrainingConfig(learning_rate=1.0))
    rates = 1 / np.array(SLOWNESS)
    expected = rates @ np.array(OPTIMA) / rates.sum()
    assert np.linalg.norm(path.mean() - expected) < within * np.linalg.norm(expected - path.optimum())


def test_weighting_stale_updates_down_makes_the_speed_bias_worse():
    def bias(staleness):
        path = Path([1.0] * 4, OPTIMA)
        run = until(4000, concurrency=4, evaluate_interval_s=0.0)
        strategy = FedAsync(alpha=0.1, staleness=staleness)
        simulate(strategy, Given(path), Durations(LAWS[0], SLOWNESS), run, TrainingConfig(learning_rate=1.0))
        return np.linalg.norm(path.mean() - path.optimum())

    assert bias(Polynomial(1.0)) > 1.3 * bias(NoStaleness())


@pytest.mark.parametrize(("cohort", "ratio", "rounds"), [(10, 2.357, 400), (100, 3.443, 200)])
def test_a_synchronous_round_takes_the_slowest_ones_time_and_as_many_async_updates_the_mean(cohort, ratio, rounds):
    people = population(cohort, HalfNormal(mean=1))
    strategy = FedAvg(cohort_size=cohort, round_deadline_s=1e6)
    sync_s = simulate(strategy, Quadratics(), people, until(max_versions=rounds), STEP).time_s / rounds
    run = until(5000, concurrency=cohort)
    times = simulate(fedbuff(cohort), Quadratics(), people, run, STEP).updates.time_s
    # At the end no tasks go out, because the run could not use them any more.
    async_s = (times[-cohort] - times[cohort]) / (len(times) - 2 * cohort) * cohort
    assert sync_s / async_s == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("staleness", [0, 1, 3, 8])
def test_delayed_gradient_descent_is_stable_up_to_the_known_step(staleness):
    threshold = 2 * math.sin(math.pi / (2 * (2 * staleness + 1)))

    def distance(step):
        path = Path([1.0] * (staleness + 1), [[1.0]] * (staleness + 1))
        run = until(1500, concurrency=staleness + 1, evaluate_interval_s=0.0)
        outcome = simulate(fedbuff(1), Given(path), population(staleness + 1), run, TrainingConfig(learning_rate=step))
        assert set(outcome.updates.staleness[staleness:]) == {staleness}
        return max(abs(x[0] - 1) for x in path.versions[-50:])

    assert distance(0.96 * threshold) < 0.2
    assert distance(1.04 * threshold) > 5
