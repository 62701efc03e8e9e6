from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.strategies.math.server_optimizers import Adam, SgdMomentum
from fedmq.coordinator.strategies.math.staleness_weights import Constant, Polynomial
from tests.unit.coordinator.strategies import twins
from tests.unit.coordinator.strategies.twins import as_float64, assert_close, model, update


def version(strategy: FedBuff, parameters, deltas, taus=None, qs=None):
    """The next version and the ledger's weights, from these updates."""
    state = strategy.init(parameters)
    for i, delta in enumerate(deltas):
        payload = delta if hasattr(delta, "averaged") else model(delta)
        state = strategy.accumulate(state, update(payload, qs[i] if qs else 1.0, i), taus[i] if taus else 0)
    weights = strategy.weights(state)
    state, new = strategy.aggregate(state, parameters)
    assert state.count == 0
    return new, weights


def test_a_buffer_of_two_by_hand() -> None:
    strategy = FedBuff(buffer_size=2, server_learning_rate=0.5, staleness=Polynomial(0.5))
    # 10 + 0.5 · 1/2 · (1·2·4 + 0.5·1·(-8)) = 10 + 0.25·4
    new, weights = version(strategy, model({"x": [10.0]}), [{"x": [4.0]}, {"x": [-8.0]}], taus=[0, 3], qs=[2.0, 1.0])
    assert new["x"].tolist() == [11.0]
    assert weights == (0.5, 0.125)


def test_the_divisor_is_k_and_not_the_sum_of_staleness_weights() -> None:
    deltas = [{"x": [8.0]}, {"x": [8.0]}]
    by_count, _ = version(FedBuff(buffer_size=2), model({"x": [0.0]}), deltas, taus=[3, 3])
    assert by_count["x"].tolist() == [4.0]
    by_weights, weights = version(FedBuff(buffer_size=2, normalize="weights"), model({"x": [0.0]}), deltas, taus=[3, 3])
    assert by_weights["x"].tolist() == [8.0]
    assert weights == (0.5, 0.5)


def test_the_delta_is_added_to_the_current_version_whatever_it_started_from() -> None:
    strategy = FedBuff(buffer_size=1, staleness=Constant())
    parameters = model({"x": [0.0]})
    for expected in (1.0, 2.0, 3.0):  # each participant started from 0 and came to 1
        parameters, _ = version(strategy, parameters, [{"x": [1.0]}], taus=[int(expected) - 1])
        assert parameters["x"].tolist() == [expected]


def test_it_is_ready_at_k_updates_and_time_does_not_matter() -> None:
    strategy = FedBuff(buffer_size=2)
    state = strategy.init(model({"x": [0.0]}))
    assert not strategy.ready(state, now=1e9)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert not strategy.ready(state, now=1e9)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert strategy.ready(state, now=0.0)


def test_it_asks_for_deltas_and_has_no_rounds() -> None:
    assert FedBuff().reply == "delta"
    assert FedBuff().cohort is None


numbers = st.floats(-10, 10, width=32)
one_update = st.tuples(
    st.lists(numbers, min_size=4, max_size=4), st.lists(numbers, min_size=2, max_size=2), st.integers(0, 30),
    st.floats(0, 5),
)  # fmt: skip


@given(st.lists(one_update, min_size=1, max_size=6), st.floats(0.01, 2), st.floats(0.1, 2))
def test_it_equals_the_papers_formula(updates, rate: float, a: float) -> None:
    parameters = model({"w": [[1.0, -2.0], [3.0, 0.5]], "b": [0.0, 100.0]})
    deltas = [model({"w": np.array(w, np.float32).reshape(2, 2), "b": b}) for w, b, _, _ in updates]
    taus, qs = [u[2] for u in updates], [u[3] for u in updates]
    strategy = FedBuff(buffer_size=len(updates), server_learning_rate=rate, staleness=Polynomial(a))
    new, weights = version(strategy, parameters, deltas, taus, qs)
    s = [(1 + tau) ** -a for tau in taus]
    assert_close(new, twins.fedbuff(as_float64(parameters), [as_float64(d) for d in deltas], s, qs, rate), 1e-4)
    assert weights == pytest.approx([rate * si * qi / len(updates) for si, qi in zip(s, qs, strict=True)])


@given(st.lists(one_update, min_size=1, max_size=6), st.data())
def test_the_order_of_arrival_changes_rounding_only(updates, data: st.DataObject) -> None:
    parameters = model({"w": [0.0] * 4})
    order = data.draw(st.permutations(range(len(updates))))
    strategy = FedBuff(buffer_size=len(updates))

    def of(indices):
        chosen = [updates[i] for i in indices]
        new, _ = version(
            strategy, parameters, [{"w": u[0]} for u in chosen], [u[2] for u in chosen], [u[3] for u in chosen]
        )
        return new

    straight = of(range(len(updates)))
    assert straight["w"].tobytes() == of(range(len(updates)))["w"].tobytes()
    assert_close(of(order), as_float64(straight), tolerance=1e-4)


def test_a_server_optimiser_gets_the_mean_update_and_leaves_non_trainable_tensors_alone() -> None:
    strategy = FedBuff(
        buffer_size=2, staleness=Constant(), server_optimizer=SgdMomentum(learning_rate=10.0, momentum=0.0)
    )
    parameters = model({"w": [0.0], "moving_mean": [0.0]}, {"moving_mean"})
    new, weights = version(
        strategy, parameters, [{"w": [1.0], "moving_mean": [1.0]}, {"w": [3.0], "moving_mean": [3.0]}]
    )
    assert new["w"].tolist() == [20.0]
    assert new["moving_mean"].tolist() == [2.0]
    assert weights == (0.5, 0.5)
    assert new.non_trainable == {"moving_mean"}


def test_non_trainable_tensors_ignore_the_server_learning_rate_and_integers_are_carried_over() -> None:
    parameters = model(
        {"w": [0.0], "variance": [1.0], "seed": np.array([7], np.uint32), "flag": np.array(True)}, {"variance", "seed"}
    )
    strategy = FedBuff(buffer_size=1, server_learning_rate=0.5)
    new, _ = version(strategy, parameters, [{"w": [1.0], "variance": [1.0]}])
    assert (new["w"].tolist(), new["variance"].tolist()) == ([0.5], [2.0])
    assert new["seed"] is parameters["seed"]
    assert new["flag"] is parameters["flag"]
    assert list(new) == list(parameters)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_floating_dtype_keeps_its_dtype_and_sums_in_a_wider_one(dtype: object) -> None:
    # A thousand steps of 2^-11 each are lost against 1 in float16, but not in the accumulator.
    parameters = model({"x": np.ones((), dtype)})
    delta = model({"x": twins.unaligned(np.asarray(2.0**-11, dtype))})
    strategy = FedBuff(buffer_size=1024, server_learning_rate=1024.0)
    new, _ = version(strategy, parameters, [delta] * 1024)
    assert new["x"].dtype == dtype
    assert float(new["x"]) == 1.5


def test_float64_is_exact_where_float32_would_not_be() -> None:
    parameters = model({"x": [1.0]}, dtype=np.float64)
    new, _ = version(FedBuff(buffer_size=1), parameters, [model({"x": [2.0**-40]}, dtype=np.float64)])
    assert new["x"].tolist() == [1.0 + 2.0**-40]


def test_the_given_parameters_and_the_payload_are_never_changed() -> None:
    parameters = model({"x": [1.0, 2.0], "n": np.array([3])})
    for x in parameters.values():
        x.flags.writeable = False
    strategy = FedBuff(buffer_size=1, server_optimizer=Adam())
    new, _ = version(strategy, parameters, [model({"x": twins.unaligned(np.array([1.0, 1.0], np.float32))})])
    assert parameters["x"].tolist() == [1.0, 2.0]
    assert not np.shares_memory(new["x"], parameters["x"])
    assert new["x"].flags.writeable


def test_weights_of_zero_move_nothing() -> None:
    for normalize in ("count", "weights"):
        strategy = FedBuff(buffer_size=1, normalize=normalize)
        new, weights = version(strategy, model({"x": [1.0]}), [{"x": [5.0]}], qs=[0.0])
        assert new["x"].tolist() == [1.0]
        assert weights == (0.0,)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"y": [1.0]}, r"missing \['x'\], unknown \['y'\]"),
        ({"x": [1.0], "y": [1.0]}, r"unknown \['y'\]"),
        ({"x": [[1.0]]}, r"shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_a_payload_that_does_not_fit_leaves_the_buffer_as_it_was(payload: dict, said: str) -> None:
    strategy = FedBuff(buffer_size=2)
    state = strategy.init(model({"x": [0.0]}))
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    with pytest.raises(ValueError, match=said):
        strategy.accumulate(state, update(payload), 0)
    assert state.count == 1
    assert state.sums["x"].tolist() == [1.0]


@pytest.mark.parametrize("q", [float("nan"), float("inf"), -1.0])
def test_a_client_weight_that_is_not_a_finite_positive_number_is_refused(q: float) -> None:
    strategy = FedBuff(buffer_size=2)
    state = strategy.init(model({"x": [0.0]}))
    with pytest.raises(ValueError, match="expected a finite number"):
        strategy.accumulate(state, update({"x": [1.0]}, q), 0)
