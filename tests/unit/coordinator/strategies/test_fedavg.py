from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies import FedAvg
from fedmq.coordinator.strategies.math.client_weights import ClientWeights
from fedmq.coordinator.strategies.math.server_optimizers import SgdMomentum
from fedmq.coordinator.strategies.protocol import Cohort
from tests.unit.coordinator.strategies import twins
from tests.unit.coordinator.strategies.twins import as_float64, assert_close, model, update


def version(strategy: FedAvg, parameters, locals_, qs):
    state = strategy.open_round(strategy.init(parameters), 0.0)
    for i, (local, q) in enumerate(zip(locals_, qs, strict=True)):
        state = strategy.accumulate(state, update(local, q, i), 0)
    weights = strategy.weights(state)
    state, new = strategy.aggregate(state, parameters)
    assert state.count == 0
    return new, weights


def test_a_round_of_two_makes_what_it_makes_by_hand() -> None:
    new, weights = version(FedAvg(cohort_size=2), model({"x": [99.0]}), [{"x": [1.0]}, {"x": [5.0]}], [3.0, 1.0])
    assert new["x"].tolist() == [2.0]
    assert weights == (0.75, 0.25)


def test_with_weights_by_examples_it_is_the_mean_over_examples() -> None:
    examples = {"a": 10, "b": 30, "c": 60}
    client_weights = ClientWeights("examples")
    for participant_id, n in examples.items():
        client_weights.observe(participant_id, n, {})
    qs = [client_weights.weight(p, n, {}) for p, n in examples.items()]
    new, weights = version(FedAvg(cohort_size=3), model({"x": [0.0]}), [{"x": [1.0]}, {"x": [2.0]}, {"x": [3.0]}], qs)
    assert weights == pytest.approx((0.1, 0.3, 0.6))
    assert new["x"].tolist() == pytest.approx([2.5])


@given(
    st.lists(
        st.tuples(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), st.floats(0.01, 5)),
        min_size=1,
        max_size=6,
    )
)
def test_it_equals_the_papers_formula(updates) -> None:
    locals_ = [model({"w": y}) for y, _ in updates]
    qs = [q for _, q in updates]
    new, weights = version(FedAvg(cohort_size=len(updates)), model({"w": [7.0] * 3}), locals_, qs)
    assert_close(new, twins.fedavg([as_float64(y) for y in locals_], qs), tolerance=1e-4)
    assert sum(weights) == pytest.approx(1.0)


def test_a_server_optimiser_steps_from_the_current_version_along_the_mean() -> None:
    strategy = FedAvg(cohort_size=2, server_optimizer=SgdMomentum(learning_rate=0.5, momentum=0.0))
    parameters = model({"w": [10.0], "moving_mean": [10.0]}, {"moving_mean"})
    locals_ = [{"w": [12.0], "moving_mean": [12.0]}, {"w": [16.0], "moving_mean": [16.0]}]
    new, _ = version(strategy, parameters, locals_, [1.0, 1.0])
    assert new["w"].tolist() == [12.0]
    assert new["moving_mean"].tolist() == [14.0]


def test_plain_sgd_with_rate_one_is_the_plain_average() -> None:
    locals_ = [{"w": [12.0, -3.0]}, {"w": [16.0, 5.0]}]
    strategies = [FedAvg(), FedAvg(server_optimizer=SgdMomentum(learning_rate=1.0, momentum=0.0))]
    for dtype in (np.float16, np.float32, np.float64):
        start = model({"w": [1.0, 2.0]}, dtype=dtype)
        made = [version(s, start, locals_, [1.0, 3.0])[0]["w"].tolist() for s in strategies]
        assert made == [[15.0, 3.0]] * 2


def test_a_round_ends_with_the_cohort_or_at_the_deadline_with_enough() -> None:
    strategy = FedAvg(cohort_size=3, round_deadline_s=10.0, min_updates=2)
    state = strategy.init(model({"x": [0.0]}))
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert not strategy.ready(state, now=1e9), "no round is open, so no deadline is near"
    state = strategy.open_round(state, 100.0)
    assert not strategy.ready(state, now=109.9)
    assert strategy.ready(state, now=110.0)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert strategy.ready(state, now=100.0)


def test_a_deadline_with_too_few_waits_and_can_be_extended() -> None:
    strategy = FedAvg(cohort_size=3, round_deadline_s=10.0, min_updates=2)
    state = strategy.open_round(strategy.init(model({"x": [0.0]})), 0.0)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert not strategy.ready(state, now=50.0)
    state = strategy.open_round(state, 50.0)
    strategy.accumulate(state, update({"x": [3.0]}), 0)
    assert not strategy.ready(state, now=59.0)
    assert strategy.ready(state, now=60.0)
    state, new = strategy.aggregate(state, model({"x": [0.0]}))
    assert new["x"].tolist() == [2.0]
    assert state.opened_at_s is None


def test_an_update_of_an_earlier_round_is_refused() -> None:
    strategy = FedAvg(cohort_size=2)
    state = strategy.open_round(strategy.init(model({"x": [0.0]})), 0.0)
    with pytest.raises(ValueError, match="of an earlier round"):
        strategy.accumulate(state, update({"x": [1.0]}), 1)
    assert state.count == 0


def test_weights_of_zero_keep_the_version() -> None:
    parameters = model({"x": [1.0]})
    new, weights = version(FedAvg(cohort_size=1), parameters, [{"x": [5.0]}], [0.0])
    assert (new["x"].tolist(), weights) == ([1.0], (0.0,))


def test_integers_are_carried_over_and_the_given_parameters_stay() -> None:
    parameters = model({"w": [1.0], "seed": np.array([7], np.int64)}, {"seed"})
    for x in parameters.values():
        x.flags.writeable = False
    new, _ = version(FedAvg(), parameters, [model({"w": twins.unaligned(np.array([5.0], np.float32))})], [2.0])
    assert new["seed"] is parameters["seed"]
    assert (new["w"].tolist(), parameters["w"].tolist()) == ([5.0], [1.0])


def test_it_asks_for_parameters_in_rounds_of_its_settings() -> None:
    strategy = FedAvg(cohort_size=8, over_selection=1.25, round_deadline_s=30.0, min_updates=4)
    assert strategy.reply == "parameters"
    assert strategy.cohort == Cohort(size=8, over_selection=1.25, deadline_s=30.0, min_updates=4)
