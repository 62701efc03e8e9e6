"""The limit of each strategy if participants of unequal speed have different optima, in a hand-written closed loop.

There are eight participants with mean durations T_i from 1 to 8 s and f_i = (x - c_i)²/2, with c_i from 0 (fast) to 1
(slow). Each takes one small local step. The plain mean of the optima is 1/2. Weighted by speed, with λ_i = 1/T_i, it is
Σ λ_i·c_i / Σ λ_i = 0.2776.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest

from fedmq.coordinator.strategies import Area, Ca2fl, FedBuff, FedStaleWeight, ParticipationCorrection
from fedmq.coordinator.strategies.math.staleness_weights import Constant
from tests.unit.coordinator.strategies.twins import model, update

NUMBER, RATE, UPDATES = 8, 0.02, 16_000
DURATIONS, OPTIMA = np.linspace(1, 8, NUMBER), np.linspace(0, 1, NUMBER)
BY_SPEED = float((OPTIMA / DURATIONS).sum() / (1 / DURATIONS).sum())


def limit(strategy: Any, concurrency: int = NUMBER, seed: int = 0) -> float:
    """Return the mean of x over the second half of a run. `concurrency` tasks are out, each at a free participant."""
    rng = np.random.default_rng(seed)
    parameters = model({"x": [0.3]}, dtype=np.float64)
    state, version, now = strategy.init(parameters), 0, 0.0
    training: list[Any] = []
    free = list(range(NUMBER))
    seen = []
    for order in range(UPDATES + concurrency):
        if order >= concurrency:
            now, _, who, took_s, base_version, base = heapq.heappop(training)
            y = base["x"] + RATE * (OPTIMA[who] - base["x"])
            payload = model({"x": y if strategy.reply == "parameters" else y - base["x"]}, dtype=np.float64)
            one = update(payload, 1.0, order, f"p{who}", train_s=took_s)
            state = strategy.accumulate(state, one, version - base_version)
            if strategy.ready(state, now):
                state, parameters = strategy.aggregate(state, parameters)
                version += 1
            free.append(who)
            if order > UPDATES / 2:
                seen.append(parameters["x"][0])
        who = free.pop(rng.integers(len(free)))
        took_s = rng.exponential(DURATIONS[who])
        heapq.heappush(training, (now + took_s, order, who, took_s, version, parameters))
    return float(np.mean(seen))


def test_fedbuff_ends_at_the_optimum_by_speed() -> None:
    assert limit(FedBuff(buffer_size=4, staleness=Constant())) == pytest.approx(BY_SPEED, rel=0.03)


@pytest.mark.parametrize("strategy", [Ca2fl(num_participants=NUMBER, buffer_size=4), Area(num_participants=NUMBER)])
@pytest.mark.parametrize("concurrency", [NUMBER, 5])
def test_what_remembers_every_participant_ends_at_the_plain_mean(strategy: Any, concurrency: int) -> None:
    assert limit(strategy, concurrency) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("measure", ["staleness", "duration", "interval"])
def test_participation_correction_comes_near_to_it_by_a_few_numbers_of_each(measure: Any) -> None:
    assert limit(ParticipationCorrection(buffer_size=4, measure=measure)) == pytest.approx(0.5, rel=0.04)


def test_of_its_measures_only_the_interval_holds_where_participants_wait_for_tasks() -> None:
    assert limit(ParticipationCorrection(buffer_size=4, measure="interval"), 5) == pytest.approx(0.5, rel=0.04)
    assert limit(ParticipationCorrection(buffer_size=4, measure="duration"), 5) > 0.55


def test_dividing_within_the_buffer_takes_a_part_of_the_bias_away() -> None:
    assert limit(FedStaleWeight(buffer_size=1)) == pytest.approx(BY_SPEED, rel=0.03)  # alone, an update weighs 1
    assert BY_SPEED + 0.1 < limit(FedStaleWeight(buffer_size=4)) < 0.47
