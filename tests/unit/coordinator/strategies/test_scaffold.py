"""SCAFFOLD's coordinator: sums by hand, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fedmq.coordinator.strategies import Scaffold
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.schemas.errors import CheckpointError
from fedmq.schemas.methods import CONTROL
from tests.unit.coordinator.strategies.twins import model, update


def sent(delta, change, number=0, q=1.0, **fields):
    payload = model({"x": [delta], "mean": [delta]}, {"mean"}, np.float64)
    return update(payload, q, number, beside={CONTROL: model({"x": [change]}, dtype=np.float64)}, **fields)


START = model({"x": [10.0], "mean": [1.0]}, {"mean"}, np.float64)


def control_of(state, parameters=START):
    return state.beside(parameters)[CONTROL]


def test_a_round_of_two_of_four_participants_by_hand():
    strategy = Scaffold(num_participants=4, cohort_size=2, server_learning_rate=0.5)
    state = strategy.open_round(strategy.init(START), 0.0)
    assert control_of(state)["x"].tolist() == [0.0]
    state = strategy.accumulate(state, sent(4.0, 1.0), 0)
    assert not strategy.ready(state, 0.0)
    state = strategy.accumulate(state, sent(8.0, 2.0, 1), 0)
    assert strategy.ready(state, 0.0)
    assert strategy.weights(state) == (0.25, 0.25)
    state, new = strategy.aggregate(state, START)
    # x + 0.5·(4 + 8)/2; statistics with rate 1: 1 + 6; c = (1 + 2)/4, of the trainable tensor alone
    assert (new["x"].tolist(), new["mean"].tolist()) == ([13.0], [7.0])
    assert {n: a.tolist() for n, a in control_of(state).items()} == {"x": [0.75]}


def test_weights_are_of_the_model_and_not_of_the_control_variates_and_c_is_of_the_version():
    strategy = Scaffold(num_participants=4, buffer_size=2, staleness=Polynomial(1.0))
    state = strategy.init(START)
    state = strategy.accumulate(state, sent(8.0, 4.0, q=0.5), 1)  # s = 1/2, q = 1/2
    assert control_of(state)["x"].tolist() == [0.0], "buffered: tasks of one version have one c"
    assert not strategy.ready(state, 1e9)
    state = strategy.accumulate(state, sent(8.0, 4.0, 1), 0)
    assert strategy.ready(state, 0.0)
    assert strategy.weights(state) == (0.125, 0.5)
    state, new = strategy.aggregate(state, START)
    assert new["x"].tolist() == [10 + 1.0 + 4.0]
    assert control_of(state, new)["x"].tolist() == [2.0]


def test_a_change_of_a_control_variate_is_in_one_version_and_not_in_the_next_again():
    strategy = Scaffold(num_participants=2, buffer_size=1)
    state, parameters = strategy.init(START), START
    for number, (change, c) in enumerate([(4.0, 2.0), (1.0, 2.5), (0.0, 2.5), (-5.0, 0.0)]):
        state = strategy.accumulate(state, sent(0.0, change, number), 0)
        state, parameters = strategy.aggregate(state, parameters)
        assert control_of(state, parameters)["x"].tolist() == [c]


def test_c_is_of_the_parameters_dtype_and_not_changed_by_later_versions():
    half = model({"x": np.array([1.0], np.float16)})
    strategy = Scaffold(num_participants=1, buffer_size=1)
    state = strategy.init(half)
    before = control_of(state, half)["x"]
    one = update(half, beside={CONTROL: half})
    state, _ = strategy.aggregate(strategy.accumulate(state, one, 0), half)
    assert (before.dtype, before.tolist(), control_of(state, half)["x"].tolist()) == (np.float16, [0.0], [1.0])


@pytest.mark.parametrize("change", [{}, {"y": [1.0]}, {"x": [1.0, 2.0]}])
def test_other_control_variates_than_the_models_are_refused_before_anything_changes(change):
    strategy = Scaffold(num_participants=2, buffer_size=1)
    state = strategy.init(START)
    payload = model({"x": [1.0], "mean": [1.0]}, {"mean"}, np.float64)
    with pytest.raises(ValueError, match="has the control variates"):
        strategy.accumulate(state, update(payload, beside={CONTROL: model(change)}), 0)
    assert (state.count, state.changes["x"].tolist()) == (0, [0.0])


def test_the_two_forms_exclude_each_other():
    for rounds in ({"cohort_size": 3}, {"over_selection": 1.2}, {"round_deadline_s": 60}, {"min_updates": 2}):
        with pytest.raises(ValidationError, match="makes scaffold asynchronous"):
            Scaffold(num_participants=2, buffer_size=2, **rounds)
    with pytest.raises(ValidationError, match="no effect in synchronous rounds"):
        Scaffold(num_participants=2, staleness=Polynomial())
    assert Scaffold(num_participants=2, buffer_size=2).cohort is None
    assert Scaffold(num_participants=7, cohort_size=2).max_participants == 7


def test_a_state_of_another_model_is_refused():
    strategy = Scaffold(num_participants=2, buffer_size=1)
    state = strategy.init(START)
    with pytest.raises(CheckpointError, match=r"no array 'controls/x' of shape \(2,\)"):
        strategy.restore(state.arrays(), state.scalars(), model({"x": [1.0, 2.0], "mean": [0.0]}, {"mean"}))
