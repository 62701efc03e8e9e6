from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmq.coordinator.strategies import Port
from fedmq.coordinator.strategies.math import arithmetic
from tests.unit.coordinator.strategies.twins import Sent, model, play, update


def port(start: list[float], story: list[Sent], size: int, history: int, sigma: float, rho: float, beta: float):
    """Su, Li 2022, by their implementation's formula, with all models kept."""
    models, buffer, versions = [np.array(start)], [], []
    for u in story:
        delta = np.array(u.delta)
        moved = models[-1] - models[max(0, len(models) - 1 - min(u.tau, history))]
        lengths = np.linalg.norm(delta) * np.linalg.norm(moved)
        cos = delta @ moved / lengths if lengths > 1e-150 else 1.0
        buffer.append((u.q * (sigma * (1 + cos) / 2 + rho * beta / (u.tau + beta)), delta))
        if len(buffer) == size:
            total = sum(w for w, _ in buffer)
            models.append(models[-1] + sum(w * d for w, d in buffer) / total)
            versions.append(models[-1])
            buffer = []
    return versions


def test_agreement_and_freshness_by_hand() -> None:
    strategy = Port(buffer_size=1, similarity_weight=1.0, staleness_weight=1.0, beta=2.0)
    parameters = model({"x": [0.0, 0.0]})
    state = strategy.init(parameters)
    state, parameters = strategy.aggregate(
        strategy.accumulate(state, update({"x": [3.0, 0.0]}), 0), parameters
    )  # the model went along the first axis
    strategy = Port(buffer_size=3, similarity_weight=1.0, staleness_weight=1.0, beta=2.0)
    for delta in ([5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]):  # with it, across, against
        strategy.accumulate(state, update({"x": delta}), 1)
    assert state.coefficients == pytest.approx([1 + 2 / 3, 0.5 + 2 / 3, 0 + 2 / 3])
    assert sum(strategy.weights(state)) == pytest.approx(1.0)


def test_a_fresh_update_agrees_and_an_old_one_is_compared_with_the_oldest_kept() -> None:
    strategy = Port(buffer_size=1, staleness_weight=0.0, history=1)
    story = [Sent("a", [1.0, 0.0]), Sent("a", [0.0, 1.0]), Sent("a", [1.0, 0.0], tau=2)]
    state = strategy.init(model({"x": [0.0, 0.0]}))
    assert strategy.accumulate(state, update({"x": [-1.0, 0.0]}), 0).coefficients == [1.0]
    played = play(strategy, [0.0, 0.0], story)
    assert played.versions[-1].tolist() == [2.0, 1.0]  # alone in its buffer, whatever it weighs
    parameters = model({"x": [0.0, 0.0]})
    state = strategy.init(parameters)
    for delta in ([1.0, 0.0], [0.0, 1.0]):
        state, parameters = strategy.aggregate(strategy.accumulate(state, update({"x": delta}), 0), parameters)
    strategy.accumulate(state, update({"x": [0.0, 1.0]}), 9)  # the last version moved along the second axis
    assert state.coefficients == [1.0]
    assert len(state.versions) == 2


def test_an_update_is_compared_with_what_the_model_did_since_its_own_base() -> None:
    strategy = Port(buffer_size=1, staleness_weight=0.0, history=4)
    parameters = model({"x": [0.0, 0.0]})
    state = strategy.init(parameters)
    for delta in ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0]):
        state, parameters = strategy.aggregate(strategy.accumulate(state, update({"x": delta}), 0), parameters)
    for staleness, cosine in ((1, 1.0), (2, 0.5**0.5), (3, 2 / 5**0.5)):
        strategy.accumulate(state, update({"x": [1.0, 0.0]}), staleness)
        assert state.coefficients[-1] == pytest.approx((1 + cosine) / 2)


@given(
    st.lists(
        st.builds(
            Sent,
            who=st.just("p"),
            delta=st.lists(st.floats(-3, 3).filter(lambda d: d == 0 or abs(d) > 1e-3), min_size=2, max_size=2),
            tau=st.integers(0, 6),
            q=st.floats(0.1, 3),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.floats(0, 2),
    st.floats(0.1, 2),
)
def test_it_equals_its_formula(story, size: int, history: int, sigma: float, rho: float) -> None:
    strategy = Port(buffer_size=size, similarity_weight=sigma, staleness_weight=rho, beta=3.0, history=history)
    played = play(strategy, [1.0, -1.0], story)
    expected = port([1.0, -1.0], story, size, history, sigma, rho, 3.0)
    np.testing.assert_allclose(played.versions, expected, rtol=1e-5, atol=1e-5)


def test_statistics_have_no_say_in_the_direction() -> None:
    strategy = Port(buffer_size=1, staleness_weight=0.0)
    parameters = model({"x": [0.0], "moving_mean": [0.0]}, {"moving_mean"})
    state = strategy.accumulate(strategy.init(parameters), update({"x": [1.0], "moving_mean": [9.0]}), 0)
    state, parameters = strategy.aggregate(state, parameters)
    assert parameters["moving_mean"].tolist() == [9.0]
    assert strategy.accumulate(state, update({"x": [1.0], "moving_mean": [-9.0]}), 1).coefficients == [1.0]


def test_the_cosine_is_over_all_tensors_in_chunks_and_any_dtype() -> None:
    rng = np.random.default_rng(3)
    n = 3 * arithmetic.CHUNK_ELEMENTS // 2
    new = {"w": rng.normal(size=n).astype(np.float32), "h": rng.normal(size=5).astype(np.float16)}
    old = {name: np.zeros_like(x) for name, x in new.items()}
    delta = {name: (x + rng.normal(size=x.shape)).astype(x.dtype) for name, x in new.items()}
    one = np.concatenate([delta[name].astype(np.float64) for name in new])
    two = np.concatenate([new[name].astype(np.float64) for name in new])
    expected = one @ two / (np.linalg.norm(one) * np.linalg.norm(two))
    assert arithmetic.cosine(delta, new, old) == pytest.approx(expected, rel=1e-12)
    assert arithmetic.cosine(new, new, old) == pytest.approx(1.0)
    assert arithmetic.cosine(old, new, old) == arithmetic.cosine(new, old, old) == 1.0


def test_weights_that_are_both_zero_are_refused() -> None:
    with pytest.raises(ValidationError, match="are both 0"):
        Port(similarity_weight=0.0, staleness_weight=0.0)
