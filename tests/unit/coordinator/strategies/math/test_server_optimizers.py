from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.strategies.math.server_optimizers import (
    Adagrad,
    Adam,
    AmsGrad,
    AnyServerOptimizer,
    SgdMomentum,
    Yogi,
)
from tests.unit.coordinator.strategies.twins import FedOpt, model, update

ADAPTER = TypeAdapter(AnyServerOptimizer)


def run(optimizer: AnyServerOptimizer, start: list[float], deltas: list[list[float]]) -> np.ndarray:
    """x after one version for each delta, by FedBuff with a buffer of one."""
    strategy = FedBuff(buffer_size=1, server_optimizer=optimizer)
    parameters = model({"x": start}, dtype=np.float64)
    state = strategy.init(parameters)
    for delta in deltas:
        state = strategy.accumulate(state, update(model({"x": delta}, dtype=np.float64)), 0)
        state, parameters = strategy.aggregate(state, parameters)
    return parameters["x"]


def test_the_first_steps_are_what_they_are_by_hand() -> None:
    # v starts at tau² = 1, m at 0, and there is no bias correction.
    assert run(SgdMomentum(learning_rate=2.0, momentum=0.5), [0.0], [[1.0], [1.0]]) == [2.0 + 3.0]
    assert run(Adagrad(learning_rate=1.0, beta_1=0.0, tau=1.0), [0.0], [[3**0.5]]) == pytest.approx([3**0.5 / 3])
    # Adam: m = 0.5·2 = 1, v = 0.5·1 + 0.5·4 = 2.5
    assert run(Adam(1.0, 0.5, 0.5, 1.0), [0.0], [[2.0]]) == pytest.approx([1 / (2.5**0.5 + 1)])
    # Yogi: v = 1 - 0.5·4·sign(1 - 4) = 3;  with a small Δ̄: v = 1 - 0.5·0.25·sign(1 - 0.25) = 0.875
    assert run(Yogi(1.0, 0.5, 0.5, 1.0), [0.0], [[2.0]]) == pytest.approx([1 / (3**0.5 + 1)])
    assert run(Yogi(1.0, 0.5, 0.5, 1.0), [0.0], [[0.5]]) == pytest.approx([0.25 / (0.875**0.5 + 1)])
    # AMSGrad, from 0: m = 0.5·2 = 1, v = 0.5·4 = 2; then Δ̄ = 0: m = 0.5, v = 1, and v̂ stays 2
    expected = 1 / (2**0.5 + 1) + 0.5 / (2**0.5 + 1)
    assert run(AmsGrad(1.0, 0.5, 0.5, 1.0), [0.0], [[2.0], [0.0]]) == pytest.approx([expected])


def test_the_defaults_are_those_of_the_guide() -> None:
    assert SgdMomentum() == SgdMomentum(learning_rate=1.0, momentum=0.9)
    assert Adagrad() == Adagrad(learning_rate=0.1, beta_1=0.0, tau=0.001)
    assert Yogi() == Yogi(learning_rate=0.01, beta_1=0.9, beta_2=0.99, tau=0.001)
    assert Adam() == Adam(learning_rate=0.01, beta_1=0.9, beta_2=0.99, tau=0.001)
    assert AmsGrad() == AmsGrad(learning_rate=0.001, beta_1=0.9, beta_2=0.99, epsilon=1e-8)


def test_the_step_follows_the_mean_update() -> None:
    for optimizer in (SgdMomentum(), Adagrad(), Yogi(), Adam(), AmsGrad()):
        moved = run(optimizer, [1.0, 1.0, 1.0], [[0.5, -0.5, 0.0]])
        assert moved[0] > 1.0 > moved[1]
        assert moved[2] == 1.0


@given(
    st.sampled_from(["sgd", "adagrad", "yogi", "adam", "amsgrad"]),
    st.floats(0.001, 2),
    st.floats(0, 0.95),
    st.floats(0.1, 0.999),
    st.floats(1e-3, 1),
    st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_several_versions_equal_the_papers_algorithm(
    kind: str, eta: float, beta_1: float, beta_2: float, tau: float, deltas: list[list[float]]
) -> None:
    table: dict[str, object] = {"name": kind, "learning_rate": eta}
    table |= (
        {"momentum": beta_1} if kind == "sgd" else {"beta_1": beta_1, "epsilon" if kind == "amsgrad" else "tau": tau}
    )
    table |= {"beta_2": beta_2} if kind in {"adam", "yogi", "amsgrad"} else {}
    twin = FedOpt(kind, eta, beta_1, beta_2, tau)
    x = np.array([1.0, -2.0, 0.0])
    for delta in deltas:
        x = twin.step(x, np.array(delta))
    got = run(ADAPTER.validate_python(table), [1.0, -2.0, 0.0], deltas)
    np.testing.assert_allclose(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"name": "adamw"}, ()),
        ({"name": "sgd", "momentum": 1.0}, ("sgd", "momentum")),
        ({"name": "adam", "beta_3": 0.9}, ("adam", "beta_3")),
        ({"name": "yogi", "tau": 0}, ("yogi", "tau")),
        ({"name": "adagrad", "learning_rate": -1}, ("adagrad", "learning_rate")),
    ],
)
def test_mistakes_are_named_with_their_place(table: dict[str, object], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(table)
    assert caught.value.errors()[0]["loc"] == place
