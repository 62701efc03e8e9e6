from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies import FedAsync
from fedmq.coordinator.strategies.math.staleness_weights import Constant, Hinge, Polynomial
from tests.unit.coordinator.strategies import twins
from tests.unit.coordinator.strategies.twins import as_float64, assert_close, model, update


def version(strategy: FedAsync, parameters, local, tau: int = 0, q: float = 1.0):
    state = strategy.init(parameters)
    assert not strategy.ready(state, 0.0)
    state = strategy.accumulate(state, update(local, q), tau)
    assert strategy.ready(state, 0.0)
    weights = strategy.weights(state)
    state, new = strategy.aggregate(state, parameters)
    assert (state.count, strategy.weights(state)) == (0, ())
    return new, weights


def test_one_update_makes_what_it_makes_by_hand() -> None:
    strategy = FedAsync(alpha=0.5, staleness=Polynomial(0.5))
    # a = 0.5 · 1/2 = 0.25:  0.75·8 + 0.25·16
    new, weights = version(strategy, model({"x": [8.0]}), {"x": [16.0]}, tau=3)
    assert new["x"].tolist() == [10.0]
    assert weights == (0.25,)


def test_alpha_never_compounds() -> None:
    strategy = FedAsync(alpha=0.5, staleness=Hinge(a=1, b=0))
    parameters = model({"x": [0.0]})
    for expected in (8.0, 12.0, 14.0, 15.0):
        parameters, weights = version(strategy, parameters, {"x": [16.0]})
        assert weights == (0.5,)
        assert parameters["x"].tolist() == [expected]


def test_the_mixing_weight_is_capped_at_one() -> None:
    strategy = FedAsync(alpha=0.5, staleness=Constant())
    new, weights = version(strategy, model({"x": [1.0]}), {"x": [3.0]}, q=1.5)
    assert (new["x"].tolist(), weights) == ([2.5], (0.75,))
    new, weights = version(strategy, model({"x": [1.0]}), {"x": [3.0]}, q=7.0)
    assert (new["x"].tolist(), weights) == ([3.0], (1.0,))


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3),
    st.floats(0.01, 1),
    st.integers(0, 50),
    st.floats(0, 5),
)
def test_it_equals_the_papers_formula(x, y, alpha: float, tau: int, q: float) -> None:
    parameters, local = model({"w": x}), model({"w": y})
    new, weights = version(FedAsync(alpha, Polynomial(0.7)), parameters, local, tau, q)
    s = (1 + tau) ** -0.7
    assert_close(new, twins.fedasync(as_float64(parameters), as_float64(local), alpha, s, q), tolerance=3e-5)
    assert weights == pytest.approx((min(1.0, alpha * s * q),))
    low, high = np.minimum(parameters["w"], local["w"]), np.maximum(parameters["w"], local["w"])
    assert np.all(new["w"] >= low - 1e-4)
    assert np.all(new["w"] <= high + 1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_floating_dtype_with_unaligned_read_only_payloads(dtype: object) -> None:
    parameters = model({"w": np.array([1, 2, 3], dtype), "moving_mean": np.array(4, dtype)}, {"moving_mean"})
    local = model({n: twins.unaligned(np.asarray(x * 3, dtype)) for n, x in parameters.items()})
    new, _ = version(FedAsync(0.5), parameters, local)
    assert {x.dtype for x in new.values()} == {np.dtype(dtype)}
    assert new["w"].astype(np.float64).tolist() == [2.0, 4.0, 6.0]
    assert float(new["moving_mean"]) == 8.0
    assert parameters["w"].astype(np.float64).tolist() == [1.0, 2.0, 3.0]


def test_integers_are_carried_over() -> None:
    parameters = model({"w": [0.0], "steps": np.array([9])}, {"steps"})
    new, _ = version(FedAsync(), parameters, {"w": [1.0]})
    assert new["steps"] is parameters["steps"]
    assert new.non_trainable == {"steps"}


def test_a_second_update_before_aggregation_is_an_error() -> None:
    strategy = FedAsync()
    state = strategy.accumulate(strategy.init(model({"x": [0.0]})), update({"x": [1.0]}), 0)
    with pytest.raises(ValueError, match="a version of each"):
        strategy.accumulate(state, update({"x": [1.0]}), 0)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"y": [1.0, 2.0]}, r"missing \['x'\], unknown \['y'\]"),
        ({"x": [1.0, 2.0], "y": [1.0]}, r"missing \[\], unknown \['y'\]"),
        ({"x": [1.0]}, r"tensor 'x' has shape \(1,\), expected \(2,\)"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_update_of_another_model_is_refused_and_the_next_one_is_taken(payload, said: str, packed: bool) -> None:
    strategy = FedAsync(alpha=0.5)
    parameters = model({"x": [0.0, 0.0]})
    state, local = strategy.init(parameters), model(payload)
    with pytest.raises(ValueError, match=said):
        strategy.accumulate(state, update(local.packed() if packed else local), 0)
    assert not strategy.ready(state, 0.0)
    _, new = strategy.aggregate(strategy.accumulate(state, update({"x": [2.0, 4.0]}), 0), parameters)
    assert new["x"].tolist() == [1.0, 2.0]


def test_aggregating_nothing_gives_the_same_parameters() -> None:
    parameters = model({"x": [1.0]})
    strategy = FedAsync()
    assert strategy.aggregate(strategy.init(parameters), parameters)[1] is parameters


def test_it_asks_for_parameters_and_has_no_rounds() -> None:
    assert FedAsync().reply == "parameters"
    assert FedAsync().cohort is None
