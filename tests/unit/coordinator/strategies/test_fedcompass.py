"""FedCompass's sums: a version has one group's updates and the late ones, divided by all participants."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from fedmq.coordinator.strategies import FedCompass
from fedmq.coordinator.strategies.math.staleness_weights import Constant, Polynomial
from fedmq.coordinator.strategies.protocol import Arrivals
from fedmq.coordinator.strategies.states.buffer import BufferState
from tests.unit.coordinator.strategies.twins import model, update

COMPASS = FedCompass(num_participants=8, server_learning_rate=0.5, staleness=Polynomial(1.0))


def test_a_version_is_of_one_group_and_the_late_ones_and_the_rest_waits() -> None:
    parameters = model({"x": [10.0], "mean": [10.0]}, {"mean"}, np.float64)
    state = COMPASS.init(parameters)
    story = [  # delta, q, group, staleness
        (8.0, 1.0, 1, 0),
        (100.0, 1.0, 2, 0),
        (16.0, 2.0, None, 3),
        (24.0, 1.0, 1, 1),
    ]
    for number, (delta, q, group, tau) in enumerate(story):
        one = update(model({"x": [delta], "mean": [delta]}, dtype=np.float64), q, number, group=group)
        state = COMPASS.accumulate(state, one, tau)
        assert not COMPASS.ready(state, 1e9)
    assert state.count == 4
    state = COMPASS.close_group(state, 1)
    assert COMPASS.ready(state, 0.0)
    # (s·q) in the order in which they came: 1, (1/4)·2, 1/2; times 0.5/8
    assert COMPASS.weights(state) == (0.0625, 0.03125, 0.03125)
    state, parameters = COMPASS.aggregate(state, parameters)
    assert parameters["x"].tolist() == [10.0 + 0.0625 * 8 + 0.03125 * 16 + 0.03125 * 24]
    assert parameters["mean"].tolist() == [10.0 + (8 + 0.5 * 16 + 0.5 * 24) / 8]
    assert (state.count, COMPASS.ready(state, 1e9)) == (1, False)
    state = COMPASS.close_group(state, 2)
    assert COMPASS.weights(state) == (0.0625,)
    _, parameters = COMPASS.aggregate(state, parameters)
    assert parameters["x"].tolist() == [11.75 + 6.25]


@pytest.mark.parametrize("second", [np.float64, np.float16], ids=["one dtype", "two dtypes"])
def test_what_came_late_is_added_whether_the_model_lies_in_one_block_or_not(second: object) -> None:
    strategy = FedCompass(num_participants=2, staleness=Constant())
    parameters = model({"x": [1.0], "y": np.array([1.0], second)}, dtype=np.float64)
    state = strategy.init(parameters)
    for number, (delta, group) in enumerate([(2.0, None), (4.0, 1)]):
        payload = model({"x": [delta], "y": np.array([-delta], second)}, dtype=np.float64)
        state = strategy.accumulate(state, update(payload, number=number, group=group), 0)
    assert (state.buffers["1"].block is not None) == (second == np.float64)
    _, new = strategy.aggregate(strategy.close_group(state, 1), parameters)
    assert (new["x"].tolist(), new["y"].tolist()) == ([1 + (2 + 4) / 2], [1 - (2 + 4) / 2])


def test_buffers_that_were_merged_have_the_updates_of_both() -> None:
    parameters = model({"x": [0.0]})
    ours, theirs = (BufferState.zero(parameters, None) for _ in range(2))
    ours.accumulate(update({"x": [2.0]}), 0.5)
    theirs.accumulate(update({"x": [8.0]}), 0.25)
    ours.merge(theirs)
    assert (ours.sums["x"].tolist(), ours.coefficients, ours.count) == ([3.0], [0.5, 0.25], 2)


def test_its_groups_are_as_its_settings_say_and_the_first_task_asks_for_the_most_steps() -> None:
    assert FedCompass(num_participants=2).arrivals == Arrivals(20, 100, 100, 1.5, 0.9)
    own = FedCompass(
        num_participants=2, min_steps=3, max_steps=9, first_steps=4, latest_factor=1.25, speed_momentum=0.5
    )
    assert own.arrivals == Arrivals(min_steps=3, max_steps=9, first_steps=4, latest_factor=1.25, speed_momentum=0.5)


def test_a_group_of_which_nothing_came_makes_no_version() -> None:
    state = COMPASS.init(model({"x": [0.0]}))
    with pytest.raises(ValueError, match="no update of group 3 is here"):
        COMPASS.close_group(state, 3)
    with pytest.raises(ValueError, match="no group was closed"):
        COMPASS.aggregate(state, model({"x": [0.0]}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_steps": 9, "max_steps": 3}, "min_steps = 9 is more than max_steps = 3: swap them"),
        ({"latest_factor": 0.9}, "greater than or equal to 1"),
        ({"max_steps": 10_001}, "less than or equal to 10000"),
        ({"speed_momentum": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FedCompass(num_participants=2, **fields)
    with pytest.raises(ValidationError, match="num_participants"):
        FedCompass()
