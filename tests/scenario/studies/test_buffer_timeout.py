"""Buffers with a timeout in virtual time: populations that sleep, and coordinators that crash."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.coordinator.strategies import FedBuff
from fedmq.studies.population.laws import Constant, Exponential
from fedmq.studies.population.population import Availability
from tests.scenario.simulated_agent import Plan
from tests.scenario.simulator import Faults, Simulation
from tests.scenario.studies.federations import STEP, Quadratics, population, simulate, until
from tests.scenario.test_core_in_virtual_time import run_settings

END_S = 20_000.0
SLEEPY = Availability(on_s=Constant(value=4), off_s=Exponential(mean=300))


def naive_versions(times_s, size, timeout_s, min_updates):
    """Return (time, number of updates, by timeout) of each version until END_S, from the updates' moments alone."""
    made, buffer = [], []
    for t in times_s:
        if len(buffer) >= min_updates and t >= buffer[0] + timeout_s:
            made.append((buffer[0] + timeout_s, len(buffer), True))
            buffer = []
        buffer.append(t)
        if len(buffer) == size:
            made.append((t, size, False))
            buffer = []
        elif len(buffer) >= min_updates and t >= buffer[0] + timeout_s:
            made.append((t, len(buffer), True))
            buffer = []
    if len(buffer) >= min_updates and buffer[0] + timeout_s < END_S:
        made.append((buffer[0] + timeout_s, len(buffer), True))
    return made


def sleepy_run(strategy):
    people = population(4, availability=SLEEPY)
    return simulate(strategy, Quadratics(dimension=3), people, until(max_time_s=END_S), STEP, seed=3)


@pytest.mark.parametrize(
    ("size", "timeout_s", "min_updates"), [(40, 60.0, 1), (40, 60.0, 6), (6, 20.0, 2), (4, 900.0, 3)]
)
def test_versions_of_a_population_that_sleeps_come_when_a_naive_walk_through_its_updates_says(
    size, timeout_s, min_updates
):
    timed = sleepy_run(FedBuff(buffer_size=size, buffer_timeout_s=timeout_s, min_updates=min_updates))
    expected = naive_versions(timed.updates.time_s, size, timeout_s, min_updates)
    assert len(expected) >= 20
    assert list(timed.version_s) == [at for at, _, _ in expected]
    assert timed.by_timeout == [n for n, (_, _, by_timeout) in enumerate(expected, 1) if by_timeout]
    counts = [count for _, count, _ in expected for _ in range(count)]
    freshness = (1.0 + np.array(timed.updates.staleness[: len(counts)])) ** -0.5
    np.testing.assert_allclose(timed.updates.weight, freshness / counts, rtol=1e-12)


def test_without_it_such_a_federation_stands_still_and_with_it_each_version_of_it_is_made_again_bit_for_bit():
    still = sleepy_run(FedBuff(buffer_size=3000))
    assert (len(still.version_s), still.by_timeout) == (0, [])
    timed = FedBuff(buffer_size=3000, buffer_timeout_s=60.0)
    first, again = sleepy_run(timed), sleepy_run(timed)
    assert len(first.version_s) == len(first.by_timeout) > 50
    assert first.digest() == again.digest() != still.digest()


def test_a_timeout_that_never_comes_changes_no_bit():
    plain = sleepy_run(FedBuff(buffer_size=3))
    assert sleepy_run(FedBuff(buffer_size=3, buffer_timeout_s=1e8)).digest() == plain.digest()
    assert len(plain.version_s) > 20


@pytest.mark.parametrize("seed", range(3))
def test_crashes_lose_no_update_and_leave_no_version_without_its_reason(seed):
    strategy = FedBuff(buffer_size=8, buffer_timeout_s=3.0, min_updates=2)
    faults = Faults(crashes_at_s=tuple(float(t) for t in range(7, 200, 11)), commit_delay_s=3.0)
    sim = Simulation(run_settings(), strategy, [Plan(f"p{i}") for i in range(6)], seed=seed, faults=faults).run()
    assert sim.crashes >= 3
    sim.check()
    versions = sim.ledger.versions
    assert {version.by_timeout for version in versions} == {True, False}
    assert all(2 <= len(version.update_ids) < 8 for version in versions if version.by_timeout)
    assert all(len(version.update_ids) == 8 for version in versions if not version.by_timeout)
    assert [v.version for v in versions] == list(range(1, len(versions) + 1))
