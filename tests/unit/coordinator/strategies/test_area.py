from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.coordinator.strategies import Area
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
    ),
    min_size=1,
    max_size=14,
)


def area(start: list[float], story: list[Sent], size: int, number: int) -> list[np.ndarray]:
    """Iakovidou, Kim 2024: the participants remember, and the server adds; `delta` is y here."""
    x, versions = np.array(start), []
    memory = {u.who: np.array(start) for u in story}
    for buffer in twins.buffers(story, size):
        for u in buffer:
            residual = np.array(u.delta) - memory[u.who]
            memory[u.who] = np.array(u.delta)
            x = x + residual / number
        versions.append(x)
    return versions


def test_three_versions_are_what_they_are_by_hand() -> None:
    # x_0 = 10. a sends 14: 10 + 4/4; b sends 6: 11 - 4/4; a sends 18: 10 + (18 - 14)/4
    played = play(Area(num_participants=4), [10.0], [Sent("a", [14.0]), Sent("b", [6.0], tau=1), Sent("a", [18.0])])
    assert [x.tolist() for x in played.versions] == [[11.0], [10.0], [11.0]]
    assert played.weights == [(0.25,), (0.25,), (0.25,)]


@given(stories, st.integers(1, 3), st.integers(4, 9))
def test_it_equals_the_papers_algorithm(story, size: int, number: int) -> None:
    played = play(Area(num_participants=number, buffer_size=size), [1.0, -1.0], story)
    np.testing.assert_allclose(played.versions, area([1.0, -1.0], story, size, number), rtol=1e-12, atol=1e-12)


def test_once_all_have_sent_it_is_the_mean_of_what_they_sent_last() -> None:
    story = [Sent(who, [y]) for who, y in (("a", 1.0), ("a", 2.0), ("b", 5.0), ("a", 7.0), ("a", 1.0))]
    assert play(Area(num_participants=2), [100.0], story).versions[-1].tolist() == [3.0]


def test_a_fast_participant_does_not_draw_the_model_to_its_optimum() -> None:
    # f_i = (x - c_i)²/2 with one local step of 0.5; the fast one sends nine of ten updates.
    optima, rng = {"fast": 0.0, "slow": 1.0}, np.random.default_rng(5)
    strategy = Area(num_participants=2)
    parameters = model({"x": [0.3]}, dtype=np.float64)
    state = strategy.init(parameters)
    for number in range(2000):
        who = "slow" if rng.random() < 0.1 else "fast"
        y = parameters["x"] + 0.5 * (optima[who] - parameters["x"])
        state = strategy.accumulate(state, update(model({"x": y}, dtype=np.float64), 1.0, number, who), 0)
        state, parameters = strategy.aggregate(state, parameters)
    assert parameters["x"][0] == pytest.approx(0.5, rel=0.01)


def test_a_participants_weight_is_that_of_its_last_update() -> None:
    # 8 + (2·(9 - 8))/2, then + 0.5·(4 - 8)/2, then a counts 4: 8 + (4·(10 - 8) + 0.5·(4 - 8))/2
    story = [Sent("a", [9.0], q=2.0), Sent("b", [4.0], q=0.5), Sent("a", [10.0], q=4.0)]
    played = play(Area(num_participants=2), [8.0], story)
    assert [x.tolist() for x in played.versions] == [[9.0], [8.0], [11.0]]
    assert played.weights == [(1.0,), (0.25,), (2.0,)]


def test_all_floating_tensors_are_averaged_alike_and_the_others_carried_over() -> None:
    parameters = model({"x": [0.0], "moving_mean": [0.0], "n": np.array([2])}, {"moving_mean", "n"})
    strategy = Area(num_participants=2)
    state = strategy.accumulate(strategy.init(parameters), update({"x": [2.0], "moving_mean": [4.0]}, who="a"), 0)
    _, new = strategy.aggregate(state, parameters)
    assert (new["x"].tolist(), new["moving_mean"].tolist()) == ([1.0], [2.0])
    assert new["n"] is parameters["n"]


def test_memories_are_handed_out_as_they_change_and_are_not_in_the_checkpoint() -> None:
    strategy = Area(num_participants=9, buffer_size=2)
    parameters = model({"x": [0.0] * 100})
    state = strategy.init(parameters)
    assert isinstance(state, RemembersParticipants)
    payload = model({"x": [1.0] * 100})
    strategy.accumulate(state, update(payload, who="a"), 0)
    first = state.changed_memories()
    assert not np.shares_memory(first["a"]["x"], payload["x"])  # a view of a message would keep all of it
    strategy.accumulate(state, update({"x": [2.0] * 100}, who="a"), 0)
    assert first["a"]["x"][0] == 1.0
    assert state.changed_memories()["a"]["x"][0] == 2.0
    assert state.changed_memories() == {}
    assert sum(a.nbytes for a in state.arrays().values()) == 400 + 800


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    strategy = Area(num_participants=1)
    state = strategy.init(model({"x": [0.0]}))
    with pytest.raises(ValueError, match="carries other tensors"):
        strategy.accumulate(state, update({"y": [1.0]}, who="a"), 0)
    assert (state.count, state.cache, state.weights) == (0, {}, {})


def test_more_memory_than_the_limit_is_refused_before_the_run() -> None:
    strategy = Area(num_participants=100, memory_limit_bytes=10_000)
    assert max_participants(strategy) == 100
    with pytest.raises(ConfigError, match="strategy area would keep 40,800 bytes"):
        strategy.init(model({"x": [0.0] * 100}))


def changes(story: list[Sent]) -> list[tuple[Sent, bool]]:
    """Return the same story as participants that remember send it: y - m, and True for a first update."""
    memory: dict[str, np.ndarray] = {}
    sent = []
    for one in story:
        y = np.array(one.delta)
        sent.append((Sent(one.who, (y - memory.get(one.who, 0.0)).tolist(), one.tau), one.who not in memory))
        memory[one.who] = y
    return sent


@given(stories, st.integers(1, 3), st.integers(4, 9))
def test_with_the_memory_on_the_participants_the_models_are_the_same(story, size: int, number: int) -> None:
    strategy = Area(num_participants=number, buffer_size=size, memory="participant")
    parameters = model({"x": [1.0, -1.0]}, dtype=np.float64)
    state, versions = strategy.init(parameters), []
    for count, (one, first) in enumerate(changes(story)):
        sent = twins.update(model({"x": one.delta}, dtype=np.float64), 1.0, count, one.who, first=first)
        state = strategy.accumulate(state, sent, one.tau)
        if strategy.ready(state, 0.0):
            state, parameters = strategy.aggregate(state, parameters)
            versions.append(parameters["x"])
    kept = play(Area(num_participants=number, buffer_size=size), [1.0, -1.0], story)
    np.testing.assert_allclose(versions, kept.versions, rtol=1e-12, atol=1e-12)
    assert (state.cache, state.changed_memories()) == ({}, {})


def test_with_the_memory_on_the_participants_the_coordinator_needs_none_for_them() -> None:
    large = model({"x": np.zeros(1000)})
    Area(num_participants=10**6, memory="participant", memory_limit_bytes=16_000).init(large)
    with pytest.raises(ConfigError, match="memory_limit_bytes"):
        Area(num_participants=10**6, memory_limit_bytes=16_000).init(large)


def test_a_lost_buffer_sets_its_participants_back_to_the_initial_parameters() -> None:
    strategy = Area(num_participants=2, buffer_size=2)
    parameters = model({"x": [10.0]})
    state = strategy.init(parameters)
    state = strategy.accumulate(state, update({"x": [14.0]}, who="a", number=1), 0)
    state, parameters = strategy.aggregate(state, parameters)
    assert parameters["x"].tolist() == [12.0]
    state.changed_memories()
    state = strategy.accumulate(state, update({"x": [20.0]}, who="b", number=2), 0)
    state.drop(None)
    assert state.count == 0
    assert {who: kept["x"].tolist() for who, kept in state.changed_memories().items()} == {"b": [10.0]}
    _, after = strategy.aggregate(state, parameters)
    assert after["x"].tolist() == [12.0], "a's part of the model stays"


def test_a_change_that_would_leave_the_range_of_float16_is_refused_before_it_is_added() -> None:
    strategy = Area(num_participants=1, buffer_size=9, memory="participant")
    state = strategy.init(model({"x": [0.0]}, dtype=np.float16))
    state = strategy.accumulate(state, update({"x": [60_000.0]}, who="a", number=1), 0)
    with pytest.raises(OverflowError, match="tensor 'x' of the model would leave the range of float16"):
        strategy.accumulate(state, update({"x": [6_000.0]}, who="a", number=2), 0)
    assert state.total["x"].tolist() == [60_000.0]
    state.drop(None)
    assert (state.count, state.total["x"].tolist()) == (0, [60_000.0]), "the participant has moved its memory"
