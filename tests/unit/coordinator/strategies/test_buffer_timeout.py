"""Buffers that did not fill: each strategy's formula with the number of updates that is there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fedmq.coordinator.strategies import (
    AnyStrategy,
    Area,
    Ca2fl,
    Fadas,
    FedBuff,
    FedNova,
    FedStaleWeight,
    ParticipationCorrection,
    Port,
    Scaffold,
)
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.coordinator.strategies.protocol import BufferTimeout, buffer_timeout
from fedmq.coordinator.strategies.weighted_mean import WeightedMean
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.methods import CONTROL
from tests.unit.coordinator.strategies.twins import model, update

ADAPTER: TypeAdapter[AnyStrategy] = TypeAdapter(AnyStrategy)
TIMED = {"buffer_size": 10, "buffer_timeout_s": 60.0}
START = [1.0, -2.0]
STORY = [([2.0, 4.0], 0, 1.0), ([1.0, -1.0], 3, 0.5), ([0.5, 3.0], 0, 1.5)]
"""(delta, or parameters for `area`; staleness; client weight) of three updates."""
DELTAS = np.array([delta for delta, _, _ in STORY])
TAU = np.array([tau for _, tau, _ in STORY])
Q = np.array([q for _, _, q in STORY])


def version_of_three(strategy):
    """Return the version that three updates make in a buffer of ten, and their weights."""
    parameters = model({"x": START}, dtype=np.float64)
    state = strategy.init(parameters)
    for number, (payload, tau, q) in enumerate(STORY):
        beside = {CONTROL: model({"x": [0.5, number]}, dtype=np.float64)} if strategy.name == "scaffold" else {}
        one = update(model({"x": payload}, dtype=np.float64), q, number, num_steps=2, beside=beside)
        state = strategy.accumulate(state, one, tau)
        assert not strategy.ready(state, 1e9), "the core looks at the time, and not the strategy"
    weights = strategy.weights(state)
    state, made = strategy.aggregate(state, parameters)
    assert state.count == 0
    return made["x"], weights


def mean_step(w, divisor):
    return START + (w[:, None] * DELTAS).sum(0) / divisor, tuple(w / divisor)


def twin_of_port():
    w = Q * (1.0 + 10.0 / (TAU + 10.0))  # the model has not moved: every cosine is 1
    return mean_step(w, w.sum())


def twin_of_fadas():
    mean = (Q[:, None] * DELTAS).mean(0)
    return START + 0.001 * 0.1 * mean / (np.sqrt(0.01 * mean**2) + 1e-8), tuple(Q / 3)


S = (1.0 + TAU) ** -0.5
TWINS = {
    "fedbuff": (FedBuff(**TIMED), mean_step(S * Q, 3)),
    "fedbuff by weights": (FedBuff(normalize="weights", **TIMED), mean_step(S * Q, (S * Q).sum())),
    "fedstaleweight": (FedStaleWeight(**TIMED), mean_step((10 * TAU + 1) * Q, ((10 * TAU + 1) * Q).sum())),
    "participation": (ParticipationCorrection(num_participants=4, **TIMED), mean_step((10 * TAU + 1) / 4 * Q, 3)),
    "port": (Port(**TIMED), twin_of_port()),
    "fadas": (Fadas(**TIMED), twin_of_fadas()),
    "ca2fl": (Ca2fl(num_participants=4, **TIMED), mean_step(Q, 3)),
    "area": (Area(num_participants=4, **TIMED), (START + (Q[:, None] * (DELTAS - START)).sum(0) / 4, tuple(Q / 4))),
    "scaffold": (Scaffold(num_participants=4, staleness=Polynomial(0.5), **TIMED), mean_step(S * Q, 3)),
    "fednova": (FedNova(staleness=Polynomial(0.5), **TIMED), mean_step(S * Q, (S * Q).sum())),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_version_of_fewer_updates_follows_the_formula_with_their_number_in_the_place_of_k(name) -> None:
    strategy, (x, weights) = TWINS[name]
    made, given = version_of_three(strategy)
    np.testing.assert_allclose(made, x, rtol=1e-6)
    np.testing.assert_allclose(given, weights, rtol=1e-12)
    assert buffer_timeout(strategy) == BufferTimeout(60.0, 1)


def test_the_numbers_of_one_such_version_by_hand() -> None:
    made, weights = version_of_three(FedBuff(**TIMED))
    assert weights == (1 / 3, 0.25 / 3, 0.5)
    np.testing.assert_allclose(made, [1 + (2 + 0.25 + 0.75) / 3, -2 + (4 - 0.25 + 4.5) / 3], rtol=1e-15)


def test_a_table_sets_it_and_without_it_nothing_is_set() -> None:
    table = {"name": "fedbuff", "buffer_size": 5, "buffer_timeout_s": 60, "min_updates": 2}
    assert buffer_timeout(ADAPTER.validate_python(table)) == BufferTimeout(60.0, 2)
    for strategy, _ in TWINS.values():
        assert buffer_timeout(dataclasses.replace(strategy, buffer_timeout_s=None)) is None
    assert FedBuff(3, 0.5, Polynomial(1.0)).staleness == Polynomial(1.0), "positions are as they were"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "fedbuff", "buffer_timeout_s": 0}, "greater than 0"),
        ({"name": "fadas", "buffer_timeout_s": float("inf")}, "finite number"),
        ({"name": "port", "buffer_timeout_s": float("nan")}, "finite number"),
        ({"name": "fedbuff", "buffer_timeout_s": 5, "min_updates": 0}, "greater than or equal to 1"),
        ({"name": "fedbuff", "min_updates": 2}, "no effect without a buffer_timeout_s: set one, or leave it out"),
        ({"name": "ca2fl", "num_participants": 3, "buffer_timeout_s": 5, "min_updates": 11},
         "min_updates = 11 is more than buffer_size = 10.*set it to the buffer's size or less"),
        ({"name": "fednova", "buffer_size": 3, "buffer_timeout_s": 5, "min_updates": 4}, "more than buffer_size = 3"),
        ({"name": "fednova", "buffer_timeout_s": 5}, "set round_deadline_s in its place, or set buffer_size"),
        ({"name": "scaffold", "num_participants": 3, "buffer_size": 3, "min_updates": 2},
         "min_updates goes with a buffer_timeout_s too"),
        ({"name": "fedasync", "buffer_timeout_s": 5}, "(?s)fedasync.buffer_timeout_s.*Unexpected"),
        ({"name": "fedavg", "buffer_timeout_s": 5}, "(?s)fedavg.buffer_timeout_s.*Unexpected"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_with_what_works(table, said) -> None:
    with pytest.raises(ValidationError, match=said):
        ADAPTER.validate_python(table)


def test_a_minimum_above_the_usual_cohort_is_fine_for_a_buffer_of_that_size() -> None:
    strategy = FedNova(buffer_size=30, buffer_timeout_s=5.0, min_updates=20)
    assert buffer_timeout(strategy) == BufferTimeout(5.0, 20)


@dataclasses.dataclass(frozen=True)
class Own(WeightedMean):
    patience: int = 2

    def weight(self, update, staleness):
        return 1.0


def test_a_weighted_mean_of_ones_own_has_it_too() -> None:
    assert Own(4, 0.5, 3).patience == 3
    assert buffer_timeout(Own(buffer_timeout_s=5.0, min_updates=2)) == BufferTimeout(5.0, 2)
    with pytest.raises(ConfigError, match="got buffer_timeout_s = -1: Input should be greater than 0"):
        Own(buffer_timeout_s=-1)
    with pytest.raises(ConfigError, match="min_updates = 2 has no effect without a buffer_timeout_s"):
        Own(min_updates=2)
