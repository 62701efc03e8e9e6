"""Tasks that end at one time: by default in the order in which they went out, or in one that the seed draws."""

import heapq

import numpy as np
import pytest

import fedmq
from fedmq.studies.engine.ties import Ties
from fedmq.studies.simulate import check_order
from fedmq.studies.sweep.cell_identity import plain
from tests.scenario.studies.federations import STEP, fedbuff, population, until

HALVES = {"name": "choice", "values": [1, 2]}
EXPONENTIAL = {"name": "exponential", "mean": 1}


def ran(people, seed=0, strategy=None, **run):
    settings = until(400, concurrency=8, **run)
    return fedmq.simulate(strategy or fedbuff(4), fedmq.Quadratics(), people, settings, STEP, seed=seed)


def orders(outcome):
    """The places of each wave's tasks in the order in which they went out: a task of a wave has a base version."""
    rows = outcome.updates
    return [list(zip(rows.time_s[i : i + 8], rows.participant[i : i + 8], strict=True)) for i in range(0, 400, 8)]


def test_equal_durations_keep_the_order_in_which_tasks_went_out_unless_the_seed_draws_it():
    people = population(8)  # each task takes a second
    by_order = [[p for _, p in wave] for wave in orders(ran(people))]
    assert all(wave == by_order[0] for wave in by_order)
    drawn = [[p for _, p in wave] for wave in orders(ran(people, ties="seed"))]
    assert all(sorted(wave) == list(range(8)) for wave in drawn)
    assert len({tuple(wave) for wave in drawn}) > 45
    firsts = np.bincount([wave[0] for wave in drawn], minlength=8)
    assert firsts.max() <= 15, "of 50 waves, each participant is first in about 6"


def test_a_slow_participant_no_longer_always_comes_first():
    people = fedmq.Population(participants=8, compute={"task_s": {"name": "constant", "value": 1}, "slowness": HALVES})

    def slow_first(outcome):
        """Share of the ties between fast and slow participants in which a slow one comes first."""
        slow = [task_s == 2 for task_s in outcome.mean_task_s]
        rows = outcome.updates
        firsts = {}
        for time_s, i in zip(rows.time_s, rows.participant, strict=True):
            firsts.setdefault(time_s, []).append(slow[i])
        return np.mean([tie[0] for tie in firsts.values() if len(set(tie)) == 2])

    assert slow_first(ran(people)) > 0.95
    assert 0.2 < slow_first(ran(people, ties="seed")) < 0.8


def test_a_seed_draws_the_same_order_again_and_another_one_another():
    people = population(8)
    assert ran(people, ties="seed").digest() == ran(people, ties="seed").digest()
    participants = [list(ran(people, ties="seed", seed=seed).updates.participant) for seed in (1, 2)]
    assert participants[0] != participants[1]


@pytest.mark.parametrize("strategy", [fedbuff(4), fedmq.FedAvg(cohort_size=4)])
def test_without_ties_no_bit_changes(strategy):
    people = population(8, task_s=EXPONENTIAL)
    assert ran(people, strategy=strategy).digest() == ran(people, strategy=strategy, ties="seed").digest()


def test_other_events_keep_their_places_among_those_that_are_drawn():
    def end(_): ...

    def other(_): ...

    heap = [
        (1.0, 1, other, 0),
        (1.0, 2, end, 1),
        (1.0, 3, end, 2),
        (1.0, 4, end, 3),
        (1.0, 5, other, 0),
        (1.0, 6, end, 4),
    ]
    heapq.heapify(heap)
    ties, popped = Ties(5, end), []
    while heap:
        popped.append(ties.pop(heap))
    assert [(at, place, kind) for at, place, kind, _ in popped] == [
        (1.0, 1, other), (1.0, 2, end), (1.0, 3, end), (1.0, 4, end), (1.0, 5, other), (1.0, 6, end),
    ]  # fmt: skip
    assert sorted(about for _, place, _, about in popped if place in {2, 3, 4}) == [1, 2, 3]
    assert {about for _, place, _, about in popped if place == 6} == {4}


def test_a_recorded_order_is_not_drawn():
    recorded = fedmq.Population.model_construct(name="june", order="recorded")
    with pytest.raises(fedmq.ConfigError, match="contradicts the recorded order of the population 'june'"):
        check_order(recorded, until(4, ties="seed"))


def test_a_run_without_ties_is_known_by_what_it_was_known_by_before():
    assert {"ties", "evaluate_every_updates"} & set(plain(until(4))[2]) == set()
    assert "ties" in plain(until(4, ties="seed"))[2]
