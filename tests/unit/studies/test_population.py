from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from studies.laws import Constant, Exponential, LogNormal, Uniform
from studies.population import Availability, Compute, Correlation, Network, Population, Presence, _under_own_names
from studies.recorded import History, RecordedTask


def ranks(values):
    return np.argsort(np.argsort(values))


def test_a_participant_is_the_same_in_a_population_of_any_size():
    laws = {"compute": Compute(slowness=LogNormal(median=1, sigma=1)), "examples": Uniform(low=1, high=100)}
    small = Population(participants=3, **laws).members(seed=7)
    large = Population(participants=50, **laws).members(seed=7)
    assert large[:3] == small
    assert Population(participants=3, **laws).members(seed=8) != small


def test_with_a_coefficient_of_1_the_fastest_has_the_most_data():
    population = Population(
        participants=200,
        compute=Compute(slowness=LogNormal(median=1, sigma=1)),
        examples=Uniform(low=0, high=1e6),
        correlation=Correlation(speed_size=1),
    )
    members = population.members(0)
    assert (ranks([-m.slowness for m in members]) == ranks([m.examples for m in members])).all()


@pytest.mark.parametrize("coefficient", [-0.8, 0.0, 0.8])
def test_the_copula_has_the_correlation_that_was_asked_for(coefficient):
    population = Population(
        participants=4000,
        compute=Compute(slowness=LogNormal(median=1, sigma=1)),
        correlation=Correlation(speed_label=coefficient),
    )
    members = population.members(1)
    spearman = np.corrcoef(ranks([-m.slowness for m in members]), ranks([m.label_position for m in members]))[0, 1]
    assert spearman == pytest.approx(6 / np.pi * np.arcsin(coefficient / 2), abs=0.04)


def test_coefficients_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="contradict each other"):
        Correlation(speed_size=1, speed_label=1, size_label=-1)


def test_a_task_costs_its_bytes_its_examples_and_its_own_draw():
    population = Population(
        participants=1,
        compute=Compute(task_s=Constant(value=2), example_s=Constant(value=0.5), slowness=Constant(value=3)),
        network=Network(
            down_bytes_per_s=Constant(value=100), up_bytes_per_s=Constant(value=10), latency_s=Constant(value=0.25)
        ),
    )
    member = population.members(0)[0]
    assert member.train_s(population.compute, 0.5, passes=4 * 2) == (2 + 0.5 * 4 * 2) * 3
    assert member.transfer_s(down_bytes=200, up_bytes=50) == 200 / 100 + 50 / 10 + 0.25


def test_a_participant_is_on_for_the_share_of_time_that_its_laws_give():
    availability = Availability(on_s=Exponential(mean=1), off_s=Exponential(mean=3))
    population = Population(participants=2000, availability=availability)
    presences = [Presence(m, availability, 0) for m in population.members(0)]
    assert np.mean([p.on for p in presences]) == pytest.approx(0.25, abs=0.03)
    for p in presences:
        while p.until <= 50:
            p.turn()
    assert np.mean([p.on for p in presences]) == pytest.approx(0.25, abs=0.03)


def test_availability_that_never_trains_is_refused():
    with pytest.raises(ValidationError, match="nobody would ever train"):
        Availability(on_s=Constant(value=0), off_s=Constant(value=1))


def test_every_member_of_a_recorded_run_has_a_name_of_its_own():
    """Two lanes of one, and one that is called as a second lane would be."""
    task = RecordedTask(1, 1, 0.0, 1.0, 1.0)
    names = ["p000001", "p000001", "b", "p000003", "p000003"]
    members = [
        replace(member, history=History(name, 1, (task,)))
        for member, name in zip(Population(participants=5).members(0), names, strict=True)
    ]
    found = [member.participant_id for member in _under_own_names(members)]
    assert found == ["p000001", "p000001-again", "b", "p000003", "p000004"]
