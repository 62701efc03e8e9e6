"""Participation correction and FedStaleWeight: they make up for participants that take part less often."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies import FedStaleWeight, ParticipationCorrection
from tests.unit.coordinator.strategies import twins
from tests.unit.coordinator.strategies.twins import Sent, means_so_far, model, play, update

stories = st.lists(
    st.builds(
        Sent,
        who=st.sampled_from("abcd"),
        delta=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
        tau=st.integers(0, 30),
        q=st.floats(0, 3),
        train_s=st.floats(0.01, 100),
    ),
    min_size=1,
    max_size=12,
)


def known_so_far(story: list[Sent]) -> list[int]:
    return [len({sent.who for sent in story[: i + 1]}) for i in range(len(story))]


def test_weights_by_staleness_are_what_they_are_by_hand() -> None:
    strategy = ParticipationCorrection(buffer_size=2, server_learning_rate=0.5, num_participants=4)
    story = [
        Sent("slow", [1.0], tau=4, q=2.0),
        Sent("fast", [9.0], tau=0),
        Sent("slow", [1.0], tau=1),
        Sent("c", [0.0]),
    ]
    played = play(strategy, [0.0], story)
    # w = (2·4 + 1)/4 and (2·0 + 1)/4; then the slow one's mean staleness is 2.5: (2·2.5 + 1)/4
    assert played.weights == [(0.5 * 2.25 * 2 / 2, 0.5 * 0.25 / 2), (0.5 * 1.5 / 2, 0.5 * 0.25 / 2)]
    assert played.versions[0].tolist() == [1.125 + 0.0625 * 9]
    assert played.versions[1].tolist() == [1.6875 + 0.375]


def test_weights_by_duration_are_what_they_are_by_hand() -> None:
    strategy = ParticipationCorrection(buffer_size=1, measure="duration")
    story = [Sent("a", [1.0], train_s=4.0), Sent("b", [1.0], train_s=1.0), Sent("b", [1.0], train_s=3.0)]
    # T = 4: 4·(1/4);   T = 1: 1·(1/4 + 1)/2;   T̄ = 2: 2·(1/4 + 1/2)/2
    assert play(strategy, [0.0], story).weights == [(1.0,), (0.625,), (0.75,)]


def test_weights_by_interval_are_what_they_are_by_hand() -> None:
    strategy = ParticipationCorrection(buffer_size=1, measure="interval", max_weight=1.2)
    story = [Sent(who, [1.0]) for who in "abbab"]
    # first updates count 1; b after 1: 1/2; a after 3: 3/2, cut off at 1.2; b after 2, mean 1.5: 0.75
    assert play(strategy, [0.0], story).weights == [(1.0,), (1.0,), (0.5,), (1.2,), (0.75,)]


def test_intervals_are_over_the_number_of_participants_that_was_given() -> None:
    strategy = ParticipationCorrection(buffer_size=1, measure="interval", num_participants=5)
    # b after 1: 1/5; a after 3: 3/5; b after 2, mean 1.5: 1.5/5
    weights = play(strategy, [0.0], [Sent(who, [1.0]) for who in "abbab"]).weights
    assert weights == [(1.0,), (1.0,), (0.2,), (0.6,), (0.3,)]


@pytest.mark.parametrize(("measure", "weights"), [("staleness", [1.2, 1.2, 1 / 3]), ("duration", [1.0, 0.625, 1.2])])
def test_the_upper_limit_holds_for_the_other_measures_too(measure: str, weights: list[float]) -> None:
    strategy = ParticipationCorrection(buffer_size=1, measure=measure, max_weight=1.2)
    story = [
        Sent("a", [1.0], tau=2, train_s=4.0),  # 2 + 1;           4·(1/4)
        Sent("b", [1.0], tau=3, train_s=1.0),  # (3 + 1)/2;       1·(1/4 + 1)/2
        Sent("c", [1.0], tau=0, train_s=9.0),  # (0 + 1)/3;       9·(1/4 + 1 + 1/9)/3 = 4.08
    ]
    assert [w for (w,) in play(strategy, [0.0], story).weights] == pytest.approx(weights)


@given(stories, st.integers(1, 3), st.none() | st.integers(1, 9))
def test_by_staleness_it_equals_its_formula(story, size: int, number: int | None) -> None:
    strategy = ParticipationCorrection(buffer_size=size, server_learning_rate=0.7, num_participants=number)
    means = means_so_far(story, [float(u.tau) for u in story])
    weights = [
        (size * mean + 1) / (number or known) * u.q
        for mean, known, u in zip(means, known_so_far(story), story, strict=True)
    ]
    expected = twins.steps([1.0, 2.0], story, size, 0.7, weights, divide=False)
    np.testing.assert_allclose(play(strategy, [1.0, 2.0], story).versions, expected, rtol=1e-9, atol=1e-9)


@given(stories, st.integers(1, 3))
def test_by_duration_it_equals_its_formula(story, size: int) -> None:
    means = means_so_far(story, [u.train_s for u in story])
    weights = []
    for i, u in enumerate(story):
        latest = {other.who: mean for other, mean in zip(story[: i + 1], means, strict=False)}
        given = sum(other.who == u.who for other in story[: i + 1])
        w = means[i] * float(np.mean([1 / t for t in latest.values()]))
        weights.append(min(w, 10 * (i + 1) / (len(latest) * given)) * u.q)
    expected = twins.steps([1.0, 2.0], story, size, 1.0, weights, divide=False)
    played = play(ParticipationCorrection(buffer_size=size, measure="duration"), [1.0, 2.0], story)
    np.testing.assert_allclose(played.versions, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("measure", ["staleness", "duration", "interval"])
def test_two_speeds_end_at_the_plain_mean_where_fedbuff_would_not(measure: str) -> None:
    # "fast" gives three updates for one of "slow", whose delta is 1: the mean per version must be 1/2, not 1/4.
    strategy = ParticipationCorrection(buffer_size=1, measure=measure, num_participants=2)
    story = []
    for _ in range(400):
        story += [Sent("fast", [0.0], tau=i, train_s=1.0) for i in (1, 0, 0)] + [
            Sent("slow", [1.0], tau=3, train_s=3.0)
        ]
    late = play(strategy, [0.0], story).versions
    assert (late[-1][0] - late[-801][0]) / 800 == pytest.approx(0.5, rel=0.01)


def test_who_claims_to_train_in_no_time_lifts_nobodys_weight_beyond_ten_times_what_was_seen() -> None:
    strategy = ParticipationCorrection(buffer_size=1, measure="duration")
    story = [Sent(who, [1.0], train_s=0.0 if who == "liar" else 4.0) for who in ["liar", "a", "b", "c"] * 20]
    weights = [w for (w,) in play(strategy, [0.0], story).weights]
    assert max(weights[-4:]) == 10.0, "each of the four has given a quarter of the updates"
    assert weights[-4] == pytest.approx(0.25), "its own is small"


def test_without_a_measured_duration_nothing_divides_by_zero() -> None:
    strategy = ParticipationCorrection(buffer_size=1, measure="duration")
    played = play(strategy, [0.0], [Sent("a", [1.0], train_s=0.0), Sent("b", [1.0], train_s=0.0)])
    assert played.weights == [(pytest.approx(1.0),), (pytest.approx(1.0),)]


def test_fedstaleweights_weights_are_what_they_are_by_hand() -> None:
    story = [Sent("slow", [8.0], tau=3), Sent("fast", [0.0], tau=0), Sent("slow", [0.0], tau=0), Sent("fast", [4.0])]
    played = play(FedStaleWeight(buffer_size=2), [0.0], story)
    # 7 : 1; then the slow one's mean staleness is 1.5: 4 : 1
    assert played.weights == [(0.875, 0.125), (pytest.approx(0.8), pytest.approx(0.2))]
    assert played.versions[0].tolist() == [7.0]
    assert played.versions[1].tolist() == pytest.approx([7.8])


@given(stories, st.integers(1, 3))
def test_fedstaleweight_equals_its_formula(story, size: int) -> None:
    for sent in story:
        sent.q += 0.01
    means = means_so_far(story, [float(u.tau) for u in story])
    weights = [(size * mean + 1) * u.q for mean, u in zip(means, story, strict=True)]
    played = play(FedStaleWeight(buffer_size=size, server_learning_rate=0.7), [1.0, 2.0], story)
    expected = twins.steps([1.0, 2.0], story, size, 0.7, weights, divide=True)
    np.testing.assert_allclose(played.versions, expected, rtol=1e-9, atol=1e-9)
    assert [sum(w) for w in played.weights] == pytest.approx([0.7] * len(played.weights))


def test_fedstaleweight_moves_nothing_where_no_update_counts() -> None:
    played = play(FedStaleWeight(buffer_size=1), [1.0], [Sent("a", [5.0], q=0.0)])
    assert played.versions[0].tolist() == [1.0]
    assert played.weights == [(0.0,)]


@pytest.mark.parametrize("strategy", [ParticipationCorrection(buffer_size=2), FedStaleWeight(buffer_size=2)])
def test_an_update_that_does_not_fit_tells_nothing_of_its_participant(strategy) -> None:
    state = strategy.init(model({"x": [0.0]}))
    with pytest.raises(ValueError, match="carries other tensors"):
        strategy.accumulate(state, update({"y": [1.0]}, who="a"), 7)
    assert (state.participation.counts, state.order) == ({}, 0)


def test_what_is_remembered_of_ten_thousand_participants_is_small() -> None:
    strategy = ParticipationCorrection(buffer_size=10**6)
    state = strategy.init(model({"x": [0.0]}))
    for i in range(10_000):
        strategy.accumulate(state, update({"x": [1.0]}, who=f"p{i}"), 1)
    assert sum(a.nbytes for name, a in state.arrays().items() if name.startswith("participants/")) < 400_000
    assert "p9999" not in json.dumps(state.scalars())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_claimed_duration_makes_no_version_that_is_not_finite(dtype: type) -> None:
    strategy = ParticipationCorrection(buffer_size=2, measure="duration")
    story = [Sent("fast", [1.0], train_s=0.0), Sent("liar", [1.0], train_s=1e300)]
    played = play(strategy, [0.0], story, dtype)
    assert np.isfinite(played.versions[0]).all()
    assert all(weight <= 1e15 for weight in played.weights[0])
