import weakref

import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import UpdateArrived
from fedmq.coordinator.strategies import Area, FedAsync, FedAvg
from fedmq.schemas.errors import InputError
from fedmq.schemas.messages import Update
from fedmq.schemas.tensors import spec_of
from fedmq.studies.engine.message_sizes import task_bytes, update_bytes
from fedmq.studies.engine.outcome import Stuck
from fedmq.studies.population.laws import Constant, Exponential, LogNormal, Uniform
from fedmq.studies.population.population import Availability, Dropout, Population
from tests.scenario.studies.federations import (
    STEP,
    Given,
    Quadratics,
    TrainingConfig,
    Watched,
    fedbuff,
    population,
    quadratics,
    simulate,
    softmax,
    until,
)

EVERYTHING = {
    "availability": Availability(on_s=Exponential(mean=3), off_s=Exponential(mean=1)),
    "dropout": Dropout(probability=0.2, how="vanishes", away_s=Uniform(low=0, high=2)),
    "examples": Uniform(low=1, high=20),
}


@pytest.mark.parametrize("strategy", [fedbuff(3), FedAsync(), FedAvg(cohort_size=5, over_selection=1.3)])
@pytest.mark.parametrize("arrivals_per_s", [None, 8.0])
def test_one_seed_gives_the_same_bytes_again_and_another_seed_others(strategy, arrivals_per_s):
    def digest(seed):
        run = until(300, concurrency=8, arrivals_per_s=arrivals_per_s, evaluate_interval_s=5.0, lease_s=4.0)
        people = population(40, LogNormal(median=1, sigma=1), **EVERYTHING)
        return simulate(strategy, Quadratics(dimension=3, noise=0.1), people, run, STEP, seed=seed).digest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.parametrize("federation", [quadratics, softmax])
@pytest.mark.parametrize("batch_size", [4, 32])
def test_the_bytes_do_not_depend_on_the_size_of_the_cohorts(federation, batch_size):
    def digest(chunk):
        dealt = federation(30)
        dealt.backend = Watched(dealt.backend, chunk)
        training = TrainingConfig(learning_rate=0.1, epochs=2, batch_size=batch_size, proximal_mu=0.1)
        people = population(30, LogNormal(median=1, sigma=1))
        outcome = simulate(fedbuff(4), Given(dealt), people, until(200, concurrency=16), training)
        return outcome.digest()

    assert digest(1) == digest(3) == digest(1000)


def test_what_is_in_flight_is_trained_together_when_the_first_result_is_needed_and_once():
    dealt = quadratics(10)
    dealt.backend = watched = Watched(dealt.backend)
    simulate(fedbuff(2), Given(dealt), population(10), until(30, concurrency=10), STEP)
    assert watched.cohorts == [10, 10, 10]
    assert sorted(watched.participants) == sorted([*range(10)] * 3)


def test_what_drops_out_is_never_trained():
    dealt = quadratics(10)
    dealt.backend = watched = Watched(dealt.backend)
    people = population(10, Exponential(mean=1), dropout=Dropout(probability=0.5))
    outcome = simulate(fedbuff(2), Given(dealt), people, until(100, concurrency=5), STEP)
    assert outcome.dropouts > 50
    assert 100 <= sum(watched.cohorts) <= 100 + 5


def test_base_versions_are_let_go_when_all_their_tasks_are_trained(monkeypatch):
    dealt, versions = quadratics(8), []
    aggregate = FedAsync.aggregate

    def noted(self, state, parameters):
        state, new = aggregate(self, state, parameters)
        versions.append(weakref.ref(new["x"]))
        return state, new

    monkeypatch.setattr(FedAsync, "aggregate", noted)
    most = 0

    class Counts:
        name = "counts"

        def train(self, jobs):
            nonlocal most
            most = max(most, sum(ref() is not None for ref in versions))
            return quadratic.train(jobs)

    quadratic, dealt.backend = dealt.backend, Counts()
    simulate(FedAsync(), Given(dealt), population(8, Exponential(mean=1)), until(400, concurrency=8), STEP)
    assert len(versions) == 400
    assert 1 < most <= 9


def test_a_closed_loop_keeps_its_concurrency():
    outcome = simulate(fedbuff(3), Quadratics(), population(20, Exponential(mean=1)), until(200, concurrency=7), STEP)
    assert set(outcome.updates.tasks_out[:-7]) == {7}
    assert outcome.updates.tasks_out[-1] == 0
    assert outcome.finished == "max_updates"


def test_in_an_open_loop_tasks_are_out_as_littles_law_says():
    people = population(400, Exponential(mean=2))
    outcome = simulate(fedbuff(5), Quadratics(), people, until(max_time_s=400, arrivals_per_s=10), STEP)
    rate = 10 / (1 + 2 * 10 / 400)  # a participant that is training lets its turn pass
    assert len(outcome.updates.time_s) / outcome.time_s == pytest.approx(rate, rel=0.04)
    assert np.mean(outcome.updates.tasks_out[500:]) == pytest.approx(2 * rate, rel=0.06)
    assert outcome.missed_arrivals == pytest.approx(400 * (10 - rate), rel=0.25)


def test_a_synchronous_round_waits_for_the_last_that_it_needs_and_withdraws_the_rest():
    def rounds(over_selection):
        strategy = FedAvg(cohort_size=2, over_selection=over_selection)
        people = population(3, Uniform(low=1, high=9))
        return simulate(strategy, Quadratics(), people, until(max_versions=200), STEP)

    # The expected largest of two, and of the two fastest of three, uniform on (1, 9).
    assert rounds(1.0).time_s / 200 == pytest.approx(1 + 8 * 2 / 3, rel=0.05)
    assert rounds(1.5).time_s / 200 == pytest.approx(1 + 8 * 2 / 4, rel=0.05)


def test_who_is_off_pauses_and_goes_on_where_it_was(tmp_path):
    (tmp_path / "devices.csv").write_text("on_intervals,period_s\n0-2 5-6,10\n")
    people = population(1, Constant(value=2.5), trace=str(tmp_path / "devices.csv"))
    outcome = simulate(FedAsync(), Quadratics(), people, until(4, concurrency=1), STEP)
    # The participant is on in 0-2, 5-6, 10-12, 15-16, 20-22, 25-26, 30-32. A task ends after each 2.5 s of that.
    assert list(outcome.updates.time_s) == pytest.approx([5.5, 12, 21.5, 31])


def test_who_vanishes_holds_its_slot_until_the_lease_is_over_or_it_is_back():
    def time_s(lease_s, away_s):
        dropout = Dropout(probability=0.5, how="vanishes", away_s=Constant(value=away_s))
        run = until(400, concurrency=1, lease_s=lease_s)
        outcome = simulate(FedAsync(), Quadratics(), population(2000, dropout=dropout), run, STEP)
        return outcome.time_s / 400

    # An update costs a success of 1 s and on average one loss: the lease, or half a task and the absence.
    assert time_s(5, 1000) == pytest.approx(1 + 5, rel=0.15)
    assert time_s(None, 3) == pytest.approx(1 + 0.5 + 3, rel=0.15)


def test_who_declines_frees_its_slot_at_once():
    dropout = Dropout(probability=0.5, how="declines", away_s=Constant(value=1000))
    outcome = simulate(FedAsync(), Quadratics(), population(2000, dropout=dropout), until(400, concurrency=1), STEP)
    assert outcome.time_s / 400 == pytest.approx(1 + 0.5, rel=0.1)


def test_training_that_diverges_ends_the_run_with_its_time():
    wild = TrainingConfig(learning_rate=1e200, epochs=2)
    with np.errstate(over="ignore", invalid="ignore"):
        outcome = simulate(fedbuff(2), Quadratics(), population(3), until(100, concurrency=2), wild)
    assert (outcome.finished, outcome.diverged_s) == ("diverged", 1.0)


def test_a_run_that_can_come_to_no_end_says_so():
    dropout = Dropout(probability=0.999, how="vanishes", away_s=Constant(value=1e20))
    with pytest.raises(Stuck, match="give the run a lease_s"):
        simulate(fedbuff(2), Quadratics(), population(3, dropout=dropout), until(10, concurrency=2), STEP)


def test_the_networks_bytes_are_counted_and_take_their_time():
    people = population(1, network={"down_bytes_per_s": Constant(value=8), "up_bytes_per_s": Constant(value=4)})
    outcome = simulate(FedAsync(), Quadratics(dimension=2), people, until(2, concurrency=1), STEP)
    assert list(outcome.updates.time_s) == [1 + 16 / 8 + 16 / 4, 14]
    spec = spec_of(outcome.parameters)
    up, down = update_bytes(spec, "parameters"), task_bytes(spec, "parameters", STEP)
    assert list(outcome.updates.bytes_up) == [up, 2 * up], "whole messages, headers included"
    assert list(outcome.updates.bytes_down) == [down, 2 * down]


def test_the_core_is_given_what_max_staleness_and_client_weights_say():
    people = population(30, LogNormal(median=1, sigma=1), examples=Uniform(low=1, high=50))
    run = until(200, concurrency=20, max_staleness=12, client_weights="examples")
    outcome = simulate(FedAsync(), Quadratics(), people, run, STEP)
    assert max(outcome.updates.staleness) <= 12
    assert outcome.discarded["too_stale"] > 0
    assert len(set(outcome.updates.client_weight)) > 10


def test_steps_by_measured_speed_make_tasks_equally_long():
    people = Population(participants=4, compute={"example_s": Uniform(low=0.1, high=2)}, examples=Constant(value=1000))
    training = TrainingConfig(learning_rate=0.1, batch_size=1, epochs=1000)
    run = until(40, concurrency=4, steps={"target_s": 20, "min_steps": 2, "max_steps": 1000})
    outcome = simulate(FedAsync(), Quadratics(), people, run, training)
    times, who = np.asarray(outcome.updates.time_s), np.asarray(outcome.updates.participant)
    for i in range(4):
        later = np.diff(times[who == i])[1:]
        assert ((later > 17) & (later <= 20.0001)).all()


def test_tasks_that_take_no_time_are_refused():
    with pytest.raises(InputError, match="'population' take no time: set its compute"):
        simulate(FedAsync(), Quadratics(), Population(participants=3), until(max_time_s=1), STEP)


@pytest.mark.parametrize("settings", [{}, {"max_staleness": 2, "lease_s": 1.5}], ids=["all accepted", "some discarded"])
def test_area_gives_the_same_models_whoever_keeps_its_memory(settings):
    def run(memory):
        strategy = Area(num_participants=12, buffer_size=2, memory=memory)
        people = population(12, Exponential(mean=1), dropout=Dropout(probability=0.1, how="vanishes"))
        return simulate(strategy, Given(quadratics(12)), people, until(400, concurrency=8, **settings), STEP)

    kept, sent = run("coordinator"), run("participant")
    assert sent.parameters["x"] == pytest.approx(kept.parameters["x"], abs=1e-12)
    assert sent.updates.staleness == kept.updates.staleness
    assert sent.discarded == kept.discarded
    assert bool(sent.discarded) == bool(settings)
    assert "wrong_memory" not in sent.discarded


def test_the_updates_that_nobody_checks_are_valid_in_all_their_fields(monkeypatch):
    seen = []
    step = Core.step

    def watched(core, event, now):
        if isinstance(event, UpdateArrived):
            seen.append(event.update)
        commands = step(core, event, now)
        seen.extend(c.training for c in commands if isinstance(c, IssueTask))
        return commands

    monkeypatch.setattr(Core, "step", watched)
    run = until(6, concurrency=2, lease_s=1e6)  # a lease takes the core
    simulate(fedbuff(2), Given(softmax(4)), population(4), run, STEP)
    assert {type(message) for message in seen} == {Update, TrainingConfig}
    for message in seen:
        assert type(message)(**message.model_dump()) == message
