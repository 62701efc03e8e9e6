from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmq.coordinator.strategies import FedNova
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.coordinator.strategies.protocol import Cohort
from tests.unit.coordinator.strategies.twins import Sent, model, play, update


def norm_of(rho: float, steps: int) -> float:
    """Return ‖a‖₁, the number of times that the gradients are added to the parameters, by playing the momentum."""
    counts = np.zeros(steps)
    momentum = np.zeros(steps)
    for step in range(steps):
        momentum = rho * momentum
        momentum[step] += 1
        counts += momentum
    return float(counts.sum())


def fednova(start: list[float], story: list[Sent], rho: float) -> np.ndarray:
    """Wang et al. 2020, for one round."""
    p = [u.q / sum(v.q for v in story) for u in story]
    a = [norm_of(rho, u.num_steps) for u in story]
    tau_eff = sum(pi * ai for pi, ai in zip(p, a, strict=True))
    normalized = sum(pi * np.array(u.delta) / ai for pi, u, ai in zip(p, story, a, strict=True))
    return np.array(start) + tau_eff * normalized


def test_a_round_of_two_makes_what_it_makes_by_hand() -> None:
    story = [Sent("a", [8.0], num_steps=4, q=3.0), Sent("b", [1.0], num_steps=1, q=1.0)]
    # p = 3/4, 1/4; per step 2 and 1; tau_eff = 3 + 1/4
    played = play(FedNova(cohort_size=2), [10.0], story)
    assert played.versions[0].tolist() == [10.0 + 3.25 * (0.75 * 2 + 0.25 * 1)]
    assert played.weights == [(3.25 * 0.75 / 4, 3.25 * 0.25)]


def test_with_equal_steps_it_is_the_mean_of_the_deltas() -> None:
    story = [Sent("a", [8.0], num_steps=5), Sent("b", [2.0], num_steps=5)]
    assert play(FedNova(cohort_size=2), [0.0], story).versions[0].tolist() == pytest.approx([5.0])


@given(
    st.lists(
        st.builds(
            Sent,
            who=st.just("p"),
            delta=st.lists(st.floats(-9, 9), min_size=2, max_size=2),
            q=st.floats(0.01, 4),
            num_steps=st.integers(10, 40),  # no a_i is more than ten times another one, which would be cut
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([0.0, 0.5, 0.9]),
)
def test_it_equals_the_papers_formula(story, rho: float) -> None:
    played = play(FedNova(cohort_size=len(story), local_momentum=rho), [1.0, -1.0], story)
    np.testing.assert_allclose(played.versions[0], fednova([1.0, -1.0], story, rho), rtol=1e-9, atol=1e-9)


def test_the_norm_of_an_update_without_steps_is_one() -> None:
    assert FedNova().norm(0) == FedNova().norm(1) == FedNova(local_momentum=0.9).norm(1) == pytest.approx(1.0)
    assert FedNova().norm(7) == 7.0


def test_statistics_are_averaged_plainly() -> None:
    parameters = model({"x": [0.0], "moving_mean": [0.0]}, {"moving_mean"})
    strategy = FedNova(cohort_size=2)
    state = strategy.open_round(strategy.init(parameters), 0.0)
    strategy.accumulate(state, update({"x": [9.0], "moving_mean": [9.0]}, num_steps=9), 0)
    strategy.accumulate(state, update({"x": [1.0], "moving_mean": [1.0]}, num_steps=1), 0)
    _, new = strategy.aggregate(state, parameters)
    assert (new["x"].tolist(), new["moving_mean"].tolist()) == ([5.0], [5.0])
    state = strategy.open_round(state, 0.0)
    strategy.accumulate(state, update({"x": [9.0], "moving_mean": [9.0]}, num_steps=3), 0)
    strategy.accumulate(state, update({"x": [1.0], "moving_mean": [1.0]}, num_steps=1), 0)
    _, new = strategy.aggregate(state, parameters)
    assert (new["x"].tolist(), new["moving_mean"].tolist()) == ([4.0], [5.0])


def test_rounds_are_those_of_fedavg() -> None:
    strategy = FedNova(cohort_size=3, over_selection=1.5, round_deadline_s=10.0, min_updates=2)
    assert strategy.cohort == Cohort(3, 1.5, 10.0, 2)
    state = strategy.open_round(strategy.init(model({"x": [0.0]})), 100.0)
    with pytest.raises(ValueError, match="earlier round"):
        strategy.accumulate(state, update({"x": [1.0]}), 1)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert not strategy.ready(state, 110.0)
    strategy.accumulate(state, update({"x": [1.0]}), 0)
    assert not strategy.ready(state, 109.0)
    assert strategy.ready(state, 110.0)
    with pytest.raises(ValidationError, match="more than cohort_size = 1"):
        FedNova(cohort_size=1, min_updates=2)


def test_with_a_buffer_it_is_asynchronous_and_stale_updates_count_less() -> None:
    strategy = FedNova(buffer_size=2, staleness=Polynomial(0.5))
    assert strategy.cohort is None
    story = [Sent("a", [8.0], num_steps=4, tau=0), Sent("b", [1.0], num_steps=1, tau=3), Sent("c", [5.0])]
    # p = 2/3, 1/3; per step 2 and 1; tau_eff = 8/3 + 1/3
    played = play(strategy, [10.0], story)
    assert [x.tolist() for x in played.versions] == [[pytest.approx(10.0 + 3 * (4 / 3 + 1 / 3))]]
    assert played.weights == [(pytest.approx(3 * (2 / 3) / 4), pytest.approx(3 / 3))]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"buffer_size": 4, "cohort_size": 5}, "makes fednova asynchronous"),
        ({"staleness": Polynomial(0.5)}, "no effect in synchronous rounds"),
    ],
)
def test_rounds_and_buffers_exclude_each_other(fields: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FedNova(**fields)


def test_weights_of_zero_move_nothing() -> None:
    played = play(FedNova(cohort_size=1), [1.0], [Sent("a", [5.0], q=0.0)])
    assert played.versions[0].tolist() == [1.0]
    assert played.weights == [(0.0,)]


def test_a_claim_of_many_steps_lifts_the_step_of_the_model_tenfold_at_most() -> None:
    """Nine take 2 steps and one claims 2 to the 53: τ_eff is 0.9·2 + 0.1·20, and its own delta counts for nothing."""
    story = [Sent(f"p{i}", [1.0], num_steps=2) for i in range(9)] + [Sent("liar", [1.0], num_steps=2**53)]
    played = play(FedNova(buffer_size=10), [0.0], story)
    assert played.versions[0].tolist() == pytest.approx([3.8 * 9 * 0.1 / 2])
