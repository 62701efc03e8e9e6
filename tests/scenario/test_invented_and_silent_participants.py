"""Invented ids and silent participants beside honest ones, in virtual time."""

from __future__ import annotations

import itertools

import pytest

from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies import Ca2fl, FedAsync, FedAvg, FedBuff, FedStaleWeight
from tests.scenario.simulated_agent import Plan
from tests.scenario.simulator import Faults, Simulation

STRATEGIES = [
    FedBuff(buffer_size=4), FedAsync(), FedStaleWeight(buffer_size=4), Ca2fl(num_participants=3, buffer_size=4),
    FedAvg(cohort_size=3, min_updates=3, round_deadline_s=20.0),
]  # fmt: skip
SHORT = Faults(latency_s=(0.0, 0.01), commit_delay_s=0.05)


def plan(name: str, **changes) -> Plan:
    return Plan(name, **({"duration_s": lambda _: 2.0} | changes))


def run(strategy, plans, *, updates: int = 300, seed: int = 0, faults: Faults = SHORT, **changes) -> Simulation:
    values = {"run_id": "run", "lease_s": 60.0, "stop": StopSettings(max_updates=updates)}
    return Simulation(RunSettings(**(values | changes)), strategy, plans, seed=seed, faults=faults).run()


def accepted_of(sim: Simulation, letter: str) -> int:
    return sum(accept.update.participant_id[0] == letter for accept, _ in sim.ledger.accepted)


@pytest.mark.parametrize("selection", ["uniform", "least_used"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_twenty_ids_of_one_user_get_at_most_that_users_share_of_the_accepted_updates(strategy, selection):
    honest = [plan("a", user="a"), plan("b", user="b")]
    sybils = [plan(f"s{i}", user="sybil", arrives_s=1.0) for i in range(20)]
    sim = run(strategy, honest + sybils, selection=selection)
    sim.check()
    assert 0.25 * 300 < accepted_of(sim, "s") <= 300 / 3


def test_without_shares_the_twenty_would_get_almost_everything():
    """This is the attack itself: one user for everybody, as before."""
    sim = run(FedBuff(buffer_size=4), [plan("a"), plan("b"), *(plan(f"s{i}", arrives_s=1.0) for i in range(20))])
    assert accepted_of(sim, "s") > 0.8 * 300


@pytest.mark.parametrize("selection", ["uniform", "least_used"])
@pytest.mark.parametrize("arrives_s", [0.5, 30.0])
@pytest.mark.parametrize("strategy", STRATEGIES[:3], ids=lambda s: s.name)
def test_twenty_silent_ids_take_no_time_from_two_honest_participants(strategy, arrives_s, selection):
    honest = [plan("a"), plan("b")]
    silent = [plan(f"s{i}", silent=True, arrives_s=arrives_s) for i in range(20)]
    alone = run(strategy, honest, selection=selection)
    sim = run(strategy, honest + silent, selection=selection)
    sim.check()
    assert accepted_of(sim, "s") == 0
    lost_s = 0.0 if arrives_s > 2.0 else 1.3 * 60.0  # before the first update nobody knows who is silent
    assert sim.now < 1.02 * alone.now + lost_s


def test_silent_ids_that_come_first_cost_one_lease_and_are_asked_less_and_less_often():
    honest = [plan("a", arrives_s=1.0), plan("b", arrives_s=1.0)]
    sim = run(FedBuff(buffer_size=4), [*(plan(f"s{i}", silent=True) for i in range(20)), *honest], updates=1500)
    alone = run(FedBuff(buffer_size=4), honest, updates=1500)
    assert sim.now < alone.now + 1.3 * 60.0
    asked = [task.issued_s for task in sim.ledger.tasks.values() if task.participant_id == "s0"]
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert len(asked) >= 3
    assert all(wait >= 30.0 * 2**i for i, wait in enumerate(waits)), waits


def test_a_silent_one_holds_no_place_of_a_strategy_for_ever():
    honest = [plan("a", arrives_s=1.0), plan("b", arrives_s=1.0)]
    sim = run(Ca2fl(num_participants=2, buffer_size=2), [plan("s0", silent=True), plan("s1", silent=True), *honest])
    sim.check()
    assert min(accepted_of(sim, "a"), accepted_of(sim, "b")) > 100


def test_ids_that_come_and_go_leave_no_rows_and_crashes_change_nothing_of_that():
    fleeting = [plan(f"s{i:04}", arrives_s=i * 0.5, leaves_after_s=1.0, silent=True) for i in range(400)]
    faults = Faults(
        latency_s=(0.0, 0.01), commit_delay_s=0.05, crashes_at_s=(33.3, 77.7, 150.0), crash_between_commit_and_ack=1.0
    )
    sim = run(FedBuff(buffer_size=4), [plan("a"), plan("b"), *fleeting], faults=faults, participant_timeout_s=20.0)
    sim.check()
    assert sim.crashes == 3
    assert max(r.seq for r in sim.ledger.participants.values()) > 300
    asked = {task.participant_id for task in sim.ledger.tasks.values()}
    assert len(asked) < 200, "most never had a task"
    assert len(set(sim.ledger.participants) - asked) <= 2 * 22, "two a second for 20 s"
    assert {"a", "b"} <= set(sim.ledger.participants)


def test_a_flood_of_silent_newcomers_of_the_same_user_leaves_the_honest_half_of_the_slots():
    honest = [plan(f"a{i}") for i in range(4)]
    flood = [plan(f"s{i}", silent=True, arrives_s=10.0) for i in range(200)]
    sim = run(FedBuff(buffer_size=4), honest + flood, concurrency=4, updates=400)
    assert accepted_of(sim, "a") == 400
    times = sorted(t.issued_s for t in sim.ledger.tasks.values() if t.state == "accepted")
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 3.0
