"""FedCompass in virtual time: participants of unequal speed come back together."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.coordinator.strategies import FedBuff, FedCompass
from fedmq.studies.engine.outcome import Outcome
from fedmq.studies.population.laws import Constant, Exponential, LogNormal, Uniform
from fedmq.studies.population.population import Availability, Compute, Dropout, Population
from tests.scenario.studies.federations import Given, Quadratics, TrainingConfig, Watched, quadratics, simulate, until

TRAINING = TrainingConfig(learning_rate=0.05, batch_size=10)
TEN = Constant(value=10)
UNEQUAL = Population(
    participants=8, examples=TEN, compute=Compute(example_s=Constant(value=0.1), slowness=Uniform(low=1, high=6))
)
"""Participants that take 1 to 6 seconds for a step of ten examples."""
COMPASS = FedCompass(num_participants=8)


def versions(outcome: Outcome) -> list[np.ndarray]:
    """Return the times of the updates in each version.

    With constant speeds nobody is late, so a version ends with its last update.
    """
    times = np.array(outcome.updates.time_s)
    ends = np.searchsorted(times, np.array(outcome.version_s), side="right")
    return np.split(times, ends)[:-1]


def test_fast_and_slow_come_back_within_one_step_of_each_other_and_hardly_anything_is_stale() -> None:
    outcome = simulate(COMPASS, Quadratics(dimension=3), UNEQUAL, until(max_time_s=3000, concurrency=8), TRAINING)
    late = [times for times in versions(outcome) if times[0] > 1000]
    sizes = [len(times) for times in late]
    assert max(sizes) >= 6
    assert np.mean([n for n in sizes for _ in range(n)]) > 4
    assert max(times[-1] - times[0] for times in late) < 6.1
    stale = [tau for at, tau in zip(outcome.updates.time_s, outcome.updates.staleness, strict=True) if at > 1000]
    assert np.mean(stale) < 1.5
    fifty = TRAINING.model_copy(update={"epochs": 50})
    free = simulate(
        FedBuff(buffer_size=4), Quadratics(dimension=3), UNEQUAL, until(max_time_s=3000, concurrency=8), fifty
    )
    assert np.mean([times[-1] - times[0] for times in versions(free) if times[0] > 1000]) > 30
    share = np.bincount(np.array(outcome.updates.participant)) / len(outcome.updates.time_s)
    assert share.min() > 1.5 * (np.bincount(np.array(free.updates.participant)) / len(free.updates.time_s)).min()


@pytest.mark.parametrize("chunk", [1, 1000])
def test_the_same_bytes_again_whatever_happens_to_participants_and_however_cohorts_are_cut(chunk: int) -> None:
    people = Population(
        participants=8, examples=TEN,
        compute=Compute(example_s=Constant(value=0.1), slowness=LogNormal(median=2, sigma=1)),
        dropout=Dropout(probability=0.2, how="vanishes", away_s=Uniform(low=0, high=50)),
        availability=Availability(on_s=Exponential(mean=300), off_s=Exponential(mean=50)),
    )  # fmt: skip

    def played(chunk: int) -> Outcome:
        dealt = quadratics(8)
        dealt.backend = Watched(dealt.backend, chunk)
        return simulate(
            FedCompass(num_participants=8, latest_factor=1.2), Given(dealt), people,
            until(300, concurrency=6, lease_s=2000.0), TRAINING, seed=4,
        )  # fmt: skip

    outcome = played(chunk)
    assert outcome.dropouts > 20
    assert len(outcome.version_s) > 20
    assert outcome.digest() == played(3).digest()
    weighed = np.array(outcome.updates.weight)
    assert (weighed > 0).sum() >= 290
