from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmq.coordinator.strategies import Fadas
from tests.unit.coordinator.strategies import twins
from tests.unit.coordinator.strategies.twins import Sent, model, play, update

story_of = st.lists(
    st.builds(
        Sent,
        who=st.just("p"),
        delta=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
        tau=st.integers(0, 30),
        q=st.floats(0, 3),
    ),
    min_size=1,
    max_size=9,
)


def test_two_versions_are_what_they_are_by_hand() -> None:
    strategy = Fadas(buffer_size=2, learning_rate=0.5, delay_threshold=3, beta_1=0.5, beta_2=0.75, epsilon=1.0)
    story = [Sent("a", [4.0]), Sent("b", [12.0], tau=3), Sent("a", [0.0], tau=1), Sent("b", [0.0], tau=8)]
    # Δ̄ = 8: m = 4, v = v̂ = 16, η = 0.5;   Δ̄ = 0: m = 2, v = 12, v̂ = 16, η = min(0.5, 1/8)
    played = play(strategy, [1.0], story)
    assert played.versions[0].tolist() == [1.0 + 0.5 * 4 / 5]
    assert played.versions[1].tolist() == pytest.approx([1.4 + 0.125 * 2 / 5])
    assert played.weights == [(0.5, 0.5), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("threshold", "staleness", "rate"),
    [(None, 1000, 0.1), (4, 4, 0.1), (4, 5, 0.1), (4, 20, 0.05), (0, 0, 0.1), (0, 100, 0.01)],
)
def test_the_rate_falls_only_above_the_threshold_and_never_rises(
    threshold: int | None, staleness: int, rate: float
) -> None:
    assert Fadas(learning_rate=0.1, delay_threshold=threshold).rate(staleness) == rate


@pytest.mark.parametrize(("staleness", "rate"), [(4, 0.1), (5, 0.02), (20, 0.005)])
def test_the_rate_may_be_divided_by_the_largest_staleness_above_the_threshold(staleness: int, rate: float) -> None:
    assert Fadas(learning_rate=0.1, delay_threshold=4, late_rate="divide").rate(staleness) == pytest.approx(rate)
    with pytest.raises(ValidationError, match="late_rate = 'divide' has no effect without a delay_threshold"):
        Fadas(late_rate="divide")


@given(story_of, st.integers(1, 3), st.floats(1e-3, 2), st.none() | st.integers(0, 9), st.floats(0, 0.9))
def test_it_equals_the_papers_algorithm(story, size: int, eta: float, tau_c: int | None, beta_1: float) -> None:
    strategy = Fadas(buffer_size=size, learning_rate=eta, delay_threshold=tau_c, beta_1=beta_1, beta_2=0.9)
    played = play(strategy, [1.0, -1.0], story)
    expected = twins.fadas([1.0, -1.0], story, size, eta, tau_c, (beta_1, 0.9))
    np.testing.assert_allclose(played.versions, expected, rtol=1e-9, atol=1e-9)


def test_the_largest_staleness_is_of_one_buffer_and_refused_updates_do_not_count() -> None:
    strategy = Fadas(buffer_size=1, learning_rate=1.0, delay_threshold=1)
    parameters = model({"x": [0.0]})
    state = strategy.init(parameters)
    with pytest.raises(ValueError, match="carries other tensors"):
        strategy.accumulate(state, update({"y": [1.0]}), 50)
    assert state.highest_staleness == 0
    strategy.accumulate(state, update({"x": [1.0]}), 50)
    assert state.highest_staleness == 50
    strategy.aggregate(state, parameters)
    assert state.highest_staleness == 0


def test_statistics_take_the_plain_mean() -> None:
    parameters = model({"x": [0.0], "moving_mean": [1.0], "seed": np.array([3])}, {"moving_mean", "seed"})
    strategy = Fadas(buffer_size=1)
    state = strategy.accumulate(strategy.init(parameters), update({"x": [1.0], "moving_mean": [2.0]}), 0)
    _, new = strategy.aggregate(state, parameters)
    assert new["moving_mean"].tolist() == [3.0]
    assert new["seed"] is parameters["seed"]
    assert 0.0 < new["x"][0] < 0.01
