"""One participant of a study: its work, its turns and its hellos."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedmq.studies.population.devices import Device
from fedmq.studies.population.laws import Constant, Uniform
from fedmq.studies.population.population import Availability, Compute, Dropout, Population
from fedmq.studies.population.recorded_runs import RecordedTask
from fedmq.studies.population.traces import Device as Trace

TEN_S = Compute(task_s=Constant(value=10))
TASK = SimpleNamespace(task_id="t-1", downlink=None)


class Streams:
    """Draws that rise from 0.00: duration, whether the task drops out, when, and how long the participant is away."""

    def __init__(self, *draws):
        self.draws = draws

    def random(self, participant, count):
        return [*self.draws, *(0.5,) * (count - len(self.draws))]


def device(*draws, on=(), open_loop=False, **fields):
    population = Population(participants=1, **{"compute": TEN_S} | fields)
    (member,) = population.members(0)
    if on:
        member = replace(member, device=Trace(on_intervals=on))
    return Device(member, population, 0, Streams(*draws), open_loop)


def begun(made, now=0.0):
    return made.begin(7, TASK, now, passes=1, payload_bytes=(0, 0))


def test_every_task_takes_four_draws_in_order_whether_they_are_used_or_not():
    compute = Compute(task_s=Uniform(low=10, high=20))
    dropout = Dropout(probability=0.5, away_s=Uniform(low=0, high=8))
    draws = (0.0, 0.9, 0.9, 0.9), (0.5, 0.1, 0.25, 0.75), (1.0, 0.5, 0.0, 0.0)
    made = device(*sum(draws, ()), compute=compute, dropout=dropout)
    found = [begun(made) for _ in range(3)]
    assert [(w.drops, w.left_s, w.away_s, w.train_s) for w in found] == [
        ("", 10.0, 0.0, 10.0),
        ("declines", 15.0 * 0.25, 6.0, 15.0),
        ("", 20.0, 0.0, 20.0),
    ]


def test_work_pauses_while_it_is_off_and_goes_on_where_it_was():
    made = device(on=((0.0, 4.0), (9.0, 100.0)))
    work = begun(made, 1.0)
    assert (made.ends_at(), made.willing) == (None, False)
    made.turn()
    assert (made.presence.on, work.left_s, made.ends_at()) == (False, 7.0, None)
    made.turn()
    assert (work.left_s, made.ends_at()) == (7.0, 16.0)


def test_work_that_ends_as_the_turn_does_is_done():
    made = device(on=((0.0, 10.0), (11.0, 12.0)))
    begun(made)
    assert made.ends_at() == 10.0


def test_turns_without_a_length_are_passed_over():
    made = device(availability=Availability(on_s=Constant(value=2), off_s=Constant(value=0)))
    for _ in range(3):
        before = made.presence.until
        made.turn()
        assert made.presence.on
        assert made.presence.until == pytest.approx(before + 2)
    always = device()
    assert (always.presence.on, always.presence.until) == (True, math.inf)


def test_a_hello_names_the_task_that_it_works_on():
    made = device()
    assert (made.hello(5).task_ids, made.hello(5).accepting, made.hello(5).num_examples) == ((), True, 5)
    begun(made)
    assert (made.hello(5).task_ids, made.hello(5).accepting) == (("t-1",), False)


def test_in_an_open_loop_it_takes_a_task_once_it_has_come_for_one():
    made = device(open_loop=True)
    assert not made.willing
    made.offers = True
    assert made.willing
    begun(made)
    made.work = None
    assert not made.willing, "it comes again"


def test_a_recorded_task_is_as_long_as_it_was_and_ends_at_its_own_moment_where_it_began_at_it():
    for now, ends in [(3.0, 5.1), (4.0, 4.0 + (5.1 - 3.0))]:
        made = device(0.0, 0.0, dropout=Dropout(probability=0.999))
        made.next_task = RecordedTask(1, 1, 3.0, 5.1, 1.5)
        work = begun(made, now)
        assert (work.drops, work.train_s, made.ends_at()) == ("", 1.5, ends)
        assert made.next_task is None
