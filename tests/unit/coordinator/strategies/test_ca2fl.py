from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies import Ca2fl
from fedmq.coordinator.strategies.protocol import RemembersParticipants, max_participants
from fedmq.schemas.errors import ConfigError
from tests.unit.coordinator.strategies import twins
from tests.unit.coordinator.strategies.twins import Sent, model, play, update

stories = st.lists(
    st.builds(
        Sent,
        who=st.sampled_from("abcd"),
        delta=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
        tau=st.integers(0, 9),
        q=st.floats(0, 3),
    ),
    min_size=1,
    max_size=14,
)


def ca2fl(start: list[float], story: list[Sent], size: int, number: int, rate: float) -> list[np.ndarray]:
    """Wang et al. 2024 with all N caches from the start."""
    x, versions = np.array(start), []
    h = {name: np.zeros(len(start)) for name in range(number)}
    places: dict[str, int] = {}
    for buffer in twins.buffers(story, size):
        sent = [(places.setdefault(u.who, len(places)), u.q * np.array(u.delta)) for u in buffer]
        v = sum(h.values()) / number + sum(delta - h[i] for i, delta in sent) / size
        x = x + rate * v
        h |= dict(sent)
        versions.append(x)
    return versions


def test_three_versions_are_what_they_are_by_hand() -> None:
    strategy = Ca2fl(num_participants=4, buffer_size=2, server_learning_rate=0.5)
    story = [
        Sent("a", [8.0]),
        Sent("b", [4.0]),
        Sent("a", [6.0]),
        Sent("a", [2.0], q=2.0),
        Sent("c", [0.0]),
        Sent("b", [4.0]),
    ]
    # v = 0 + (8 + 4)/2 = 6;  h = 8, 4: v = 12/4 + (6 - 8 + 4 - 8)/2 = 0;  h = 4, 4: v = 8/4 + (0 + 0)/2 = 2
    played = play(strategy, [1.0], story)
    assert [x.tolist() for x in played.versions] == [[4.0], [4.0], [5.0]]
    assert played.weights == [(0.25, 0.25), (0.25, 0.5), (0.25, 0.25)]


@given(stories, st.integers(1, 3), st.integers(4, 9), st.floats(0.1, 2))
def test_it_equals_the_papers_algorithm(story, size: int, number: int, rate: float) -> None:
    strategy = Ca2fl(num_participants=number, buffer_size=size, server_learning_rate=rate)
    expected = ca2fl([1.0, -1.0], story, size, number, rate)
    np.testing.assert_allclose(play(strategy, [1.0, -1.0], story).versions, expected, rtol=1e-9, atol=1e-9)


def test_a_fast_participant_does_not_draw_the_model_to_its_optimum() -> None:
    # f_i = (x - c_i)²/2 with one local step of 0.1: delta = 0.1·(c_i - x). The fast one sends nine of ten updates.
    optima, rng = {"fast": 0.0, "slow": 1.0}, np.random.default_rng(5)
    strategy = Ca2fl(num_participants=2, buffer_size=2)
    parameters = model({"x": [0.3]}, dtype=np.float64)
    state = strategy.init(parameters)
    for number in range(4000):
        who = "slow" if rng.random() < 0.1 else "fast"
        delta = 0.1 * (optima[who] - parameters["x"])
        state = strategy.accumulate(state, update(model({"x": delta}, dtype=np.float64), 1.0, number, who), 0)
        if strategy.ready(state, 0.0):
            state, parameters = strategy.aggregate(state, parameters)
    assert parameters["x"][0] == pytest.approx(0.5, rel=0.01)  # FedBuff's limit is 0.1


def test_statistics_take_the_calibrated_mean_with_rate_one() -> None:
    parameters = model({"x": [0.0], "moving_mean": [0.0], "n": np.array([2])}, {"moving_mean", "n"})
    strategy = Ca2fl(num_participants=1, buffer_size=1, server_learning_rate=0.5)
    state = strategy.init(parameters)
    for _ in range(2):
        state = strategy.accumulate(state, update({"x": [2.0], "moving_mean": [2.0]}, who="a"), 0)
        state, parameters = strategy.aggregate(state, parameters)
    assert (parameters["x"].tolist(), parameters["moving_mean"].tolist()) == ([2.0], [4.0])
    assert parameters["n"].tolist() == [2]


def test_only_the_memories_that_changed_are_handed_out_and_they_never_change_after() -> None:
    strategy = Ca2fl(num_participants=3, buffer_size=2)
    parameters = model({"x": [0.0]})
    state = strategy.init(parameters)
    assert isinstance(state, RemembersParticipants)
    payload = model({"x": [1.0]})
    strategy.accumulate(state, update(payload, who="a"), 0)
    assert state.changed_memories() == {}  # in the open buffer: part of the checkpoint
    strategy.accumulate(state, update({"x": [2.0]}, who="b"), 0)
    state, parameters = strategy.aggregate(state, parameters)
    first = state.changed_memories()
    assert {p: memory["x"].tolist() for p, memory in first.items()} == {"a": [1.0], "b": [2.0]}
    assert not np.shares_memory(first["a"]["x"], payload["x"])  # a view of a message would keep all of it
    for delta in ([5.0], [6.0]):
        strategy.accumulate(state, update({"x": delta}, who="a"), 0)
    strategy.aggregate(state, parameters)
    assert {p: memory["x"].tolist() for p, memory in state.changed_memories().items()} == {"a": [6.0]}
    assert first["a"]["x"].tolist() == [1.0]
    assert state.changed_memories() == {}


def test_a_checkpoint_does_not_hold_the_memories() -> None:
    parameters = model({"x": [0.0] * 1000})
    strategy = Ca2fl(num_participants=50, buffer_size=5)
    state = strategy.init(parameters)
    for number in range(50):
        strategy.accumulate(state, update({"x": [1.0] * 1000}, who=f"p{number}"), 0)
        if strategy.ready(state, 0.0):
            state, parameters = strategy.aggregate(state, parameters)
    assert len(state.cache) == 50
    assert sum(a.nbytes for a in state.arrays().values()) == 4000 + 8000


def test_more_memory_than_the_limit_is_refused_before_the_run_with_the_number() -> None:
    strategy = Ca2fl(num_participants=990, buffer_size=10, memory_limit_bytes=3_999_999)
    with pytest.raises(ConfigError, match=r"4,000,000 bytes \(0\.0 GiB\).*990 participants, and 10 times.*3,999,999"):
        strategy.init(model({"x": [0.0] * 1000}))
    assert max_participants(strategy) == 990


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    strategy = Ca2fl(num_participants=1)
    state = strategy.init(model({"x": [0.0]}))
    with pytest.raises(ValueError, match="carries other tensors"):
        strategy.accumulate(state, update({"y": [1.0]}, who="a"), 0)
    assert (state.count, state.pending, state.sums["x"].tolist()) == (0, {}, [0.0])


def test_half_precision_is_kept_as_it_came_and_summed_without_drift() -> None:
    strategy = Ca2fl(num_participants=2, buffer_size=1)
    parameters = model({"x": np.zeros(3, np.float16)})
    state = strategy.init(parameters)
    rng = np.random.default_rng(1)
    for number in range(500):
        one = update(model({"x": rng.normal(size=3).astype(np.float16)}), 0.3, number, f"p{number % 2}")
        state, parameters = strategy.aggregate(strategy.accumulate(state, one, 0), parameters)
    kept = sum(memory["x"].astype(np.float64) for memory in state.cache.values())
    assert state.cache["p0"]["x"].dtype == np.float16
    np.testing.assert_allclose(state.kept_total["x"], kept, atol=1e-12)
