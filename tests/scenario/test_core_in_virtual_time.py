"""The real core and strategies in a simulated federation: the promises that must hold whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedavg import FedAvg
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.fedcompass import FedCompass
from tests.scenario.simulated_agent import Plan
from tests.scenario.simulator import Faults, Simulation

COMPASS = FedCompass(num_participants=6, min_steps=1, max_steps=4)
STRATEGIES = [
    FedBuff(buffer_size=4), FedAsync(), FedAvg(cohort_size=3, over_selection=1.5, round_deadline_s=20.0), COMPASS,
    FedBuff(buffer_size=6, buffer_timeout_s=2.0, min_updates=2),
]  # fmt: skip
names = pytest.mark.parametrize("strategy", STRATEGIES, ids=["fedbuff", "fedasync", "fedavg", "fedcompass", "timeout"])


def run_settings(**changes) -> RunSettings:
    values = {"run_id": "run", "concurrency": 4, "lease_s": 30.0, "stop": StopSettings(max_updates=60)}
    return RunSettings(**(values | changes))


def fixed(duration_s: float):
    return lambda rng: duration_s


@names
def test_a_quiet_federation_finishes_and_discards_only_what_was_under_way_at_the_end(strategy):
    sim = Simulation(run_settings(), strategy, [Plan(f"p{i}") for i in range(6)]).run()
    sim.check()
    assert sim.ledger.finishes[0].reason == "max_updates"
    if strategy.cohort is None:
        reasons = {discard.reason for discard in sim.ledger.discarded}
        assert reasons == {"run_finished"} or (strategy is COMPASS and not reasons), "somebody trains, or all wait"
        assert len(sim.ledger.discarded) < run_settings().concurrency


@names
def test_crashes_of_the_coordinator_lose_and_repeat_nothing(strategy):
    faults = Faults(crashes_at_s=tuple(float(t) for t in range(7, 200, 11)), commit_delay_s=3.0)
    sim = Simulation(run_settings(), strategy, [Plan(f"p{i}") for i in range(6)], faults=faults).run()
    assert sim.crashes >= 3
    sim.check()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    strategy=st.sampled_from(STRATEGIES),
    participants=st.integers(1, 8),
    clones=st.integers(1, 2),
    vanishes=st.sampled_from([0.0, 0.3, 0.7]),
    forgets=st.sampled_from([0.0, 0.5]),
    restarts=st.sampled_from([0.0, 0.5]),
    declines=st.sampled_from([0.0, 0.3]),
    sends_twice=st.sampled_from([0.0, 0.5]),
    crashes=st.lists(st.floats(0.1, 300), max_size=6),
    undeliverable=st.sampled_from([0.0, 0.2]),
    latency=st.sampled_from([0.0, 0.5, 10.0]),
    max_staleness=st.sampled_from([None, 0, 5]),
    selection=st.sampled_from(["uniform", "least_used"]),
    client_weights=st.sampled_from(["equal", "examples", "sqrt", "log", "quality"]),
)
def test_every_confirmed_update_is_counted_once_or_discarded_with_a_reason(
    seed, strategy, participants, clones, vanishes, forgets, restarts, declines, sends_twice, crashes, undeliverable,
    latency, max_staleness, selection, client_weights,
):  # fmt: skip
    plans = [
        Plan(
            f"p{i}", arrives_s=float(i), vanishes=vanishes, forgets=forgets, restarts=restarts, declines=declines,
            sends_twice=sends_twice, clones=clones, num_examples=5 + i,
        )
        for i in range(participants)
    ]  # fmt: skip
    faults = Faults(
        crashes_at_s=tuple(sorted(crashes)), undeliverable=undeliverable, latency_s=(0.0, latency), commit_delay_s=2.0
    )
    sim = Simulation(
        run_settings(
            max_staleness=max_staleness, selection=selection, client_weights=client_weights, seed=seed % 1000,
            stop=StopSettings(max_updates=30),
        ),
        strategy, plans, seed=seed, faults=faults,
    ).run()  # fmt: skip
    sim.check()


@pytest.mark.parametrize(("concurrency", "buffer_size"), [(8, 2), (12, 4), (5, 1)])
def test_mean_staleness_of_a_closed_loop_is_concurrency_minus_one_over_buffer_size(concurrency, buffer_size):
    """This holds in the long run, for any law of durations, if a version is made before the next task is sent."""
    updates = 1500
    sim = Simulation(
        run_settings(concurrency=concurrency, lease_s=1e6, stop=StopSettings(max_updates=updates)),
        FedBuff(buffer_size=buffer_size),
        [Plan(f"p{i}", duration_s=lambda rng: float(rng.exponential(100.0))) for i in range(concurrency)],
        faults=Faults(latency_s=(0.0, 0.0), commit_delay_s=0.0, hello_interval_s=1e5),
    ).run(1e7)
    staleness = np.array([a.staleness for a, _ in sim.ledger.accepted])
    # The first and the last tasks are fresher than in an endless loop, so they are left out.
    assert staleness[200:-200].mean() == pytest.approx((concurrency - 1) / buffer_size, rel=0.03)


def test_staleness_of_a_deterministic_closed_loop_is_exact():
    """Five participants of equal speed, one after the other; each update makes a version. So each update is four
    versions old: those of the other participants."""
    sim = Simulation(
        run_settings(concurrency=5, stop=StopSettings(max_updates=100)),
        FedBuff(buffer_size=1),
        [Plan(f"p{i}", duration_s=fixed(1.0), arrives_s=0.2 * i) for i in range(5)],
        faults=Faults(latency_s=(0.0, 0.0), commit_delay_s=0.0),
    ).run()
    sim.check()
    assert [a.staleness for a, _ in sim.ledger.accepted] == [0, 1, 2, 3] + [4] * 96


def test_a_week_away_costs_nobody_anything_and_the_late_update_counts():
    """The absent participant's lease lapses and its slot is used by others. Its update after the week is accepted."""
    week_s = 7 * 24 * 3600.0
    traveller = Plan("traveller", duration_s=fixed(5.0), vanishes=1.0, away_s=(week_s, week_s))
    plans = [traveller, *(Plan(f"p{i}", duration_s=lambda rng: float(rng.uniform(2000, 4000))) for i in range(3))]
    sim = Simulation(
        run_settings(concurrency=4, lease_s=6000.0, participant_timeout_s=9000.0, stop=StopSettings(max_updates=800)),
        FedBuff(buffer_size=4),
        plans,
        faults=Faults(hello_interval_s=3000.0),
    ).run(1e7)
    sim.check()
    late = [a for a, _ in sim.ledger.accepted if a.update.participant_id == "traveller"]
    assert late
    assert max(a.staleness for a in late) > 50
    assert sim.ledger.tasks[late[0].update.task_id].state == "accepted"


def test_with_max_staleness_the_update_of_a_week_ago_is_discarded_as_too_stale():
    week_s = 7 * 24 * 3600.0
    traveller = Plan("traveller", duration_s=fixed(5.0), vanishes=1.0, away_s=(week_s, week_s))
    plans = [traveller, *(Plan(f"p{i}", duration_s=lambda rng: float(rng.uniform(2000, 4000))) for i in range(3))]
    sim = Simulation(
        run_settings(
            lease_s=6000.0, participant_timeout_s=9000.0, max_staleness=10, stop=StopSettings(max_updates=800)
        ),
        FedBuff(buffer_size=4),
        plans,
        seed=3,
        faults=Faults(hello_interval_s=3000.0),
    ).run(1e7)
    sim.check()
    assert sim.core.discarded["too_stale"] >= 1


def test_synchronous_rounds_leave_stragglers_behind():
    plans = [Plan(f"p{i}", duration_s=fixed(1.0)) for i in range(4)]
    plans += [Plan(f"slow{i}", duration_s=fixed(500.0)) for i in range(2)]
    sim = Simulation(
        run_settings(stop=StopSettings(max_versions=20), lease_s=1000.0),
        FedAvg(cohort_size=3, over_selection=4 / 3, round_deadline_s=60.0, min_updates=2),
        plans,
    ).run()
    sim.check()
    assert all(len(v.update_ids) in (2, 3) for v in sim.ledger.versions)
    assert {a.staleness for a, _ in sim.ledger.accepted} == {0}
    assert sim.t < 500


def test_a_round_without_enough_updates_asks_others_at_its_deadline():
    """Three participants of the first cohort never answer. The run still goes on with those that come later."""
    dead = [Plan(f"dead{i}", duration_s=fixed(1e9)) for i in range(3)]
    alive = [Plan(f"p{i}", duration_s=fixed(1.0), arrives_s=5.0) for i in range(3)]
    sim = Simulation(
        run_settings(stop=StopSettings(max_versions=3), lease_s=1e6),
        FedAvg(cohort_size=3, round_deadline_s=30.0, min_updates=3),
        dead + alive,
    ).run()
    sim.check()
    assert {a.update.participant_id for a, _ in sim.ledger.accepted} == {"p0", "p1", "p2"}


def test_the_goal_is_judged_on_evaluations_and_the_final_version_is_evaluated():
    evaluated = []

    def evaluate(parameters):
        evaluated.append(parameters)
        return {"distance": float(np.abs(parameters["w"] - 3).max())}

    sim = Simulation(
        run_settings(stop=StopSettings.model_validate({"target": {"name": "distance", "value": 2.0, "mode": "min"}})),
        FedBuff(buffer_size=2),
        [Plan(f"p{i}") for i in range(6)],
        evaluate=evaluate,
        faults=Faults(crashes_at_s=(4.0, 9.0)),
    ).run()
    sim.check()
    assert sim.ledger.finishes[0].reason == "target"
    assert evaluated[-1] is sim.core.parameters


def test_a_study_is_the_same_bit_for_bit_from_the_same_seed():
    def run(seed):
        plans = [Plan(f"p{i}", vanishes=0.3, restarts=0.5, sends_twice=0.3) for i in range(5)]
        return Simulation(run_settings(), FedBuff(), plans, seed=seed, faults=Faults(crashes_at_s=(9.0, 30.0))).run()

    first, again, other = run(1), run(1), run(2)
    assert first.ledger.accepted != []
    assert [a for a, _ in first.ledger.accepted] == [a for a, _ in again.ledger.accepted]
    assert first.core.parameters["w"].tobytes() == again.core.parameters["w"].tobytes()
    assert first.core.parameters["w"].tobytes() != other.core.parameters["w"].tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_no_finished_training_is_thrown_away_by_crashes_absences_lapses_or_lost_tasks(seed):
    """No participant declines or has clones, and there is no max_staleness. Every update then counts, however late it
    is, except for copies and for updates after the end."""
    plans = [Plan(f"p{i}", vanishes=0.5, away_s=(1.0, 300.0), forgets=0.3, restarts=0.4) for i in range(6)]
    faults = Faults(crashes_at_s=tuple(float(t) for t in range(5, 300, 20)), undeliverable=0.1)
    sim = Simulation(run_settings(lease_s=20.0), STRATEGIES[0], plans, seed=seed, faults=faults).run()
    sim.check()
    assert sim.crashes > 2
    assert any(a.staleness > 2 for a, _ in sim.ledger.accepted)
    assert {d.reason for d in sim.ledger.discarded} <= {"duplicate", "run_finished"}
