from dataclasses import replace

import numpy as np
import pytest

from fedmq.studies.population.laws import Constant, Exponential, LogNormal, Uniform
from fedmq.studies.population.population import (
    Availability,
    Compute,
    Correlation,
    Dropout,
    Network,
    Population,
    Presence,
    _under_own_names,
)
from fedmq.studies.population.recorded_runs import History, RecordedTask


def ranks(values):
    return np.argsort(np.argsort(values))


def test_a_participant_is_the_same_in_a_population_of_any_size():
    laws = {"compute": Compute(slowness=LogNormal(median=1, sigma=1)), "examples": Uniform(low=1, high=100)}
    small = Population(participants=3, **laws).members(seed=7)
    large = Population(participants=50, **laws).members(seed=7)
    assert large[:3] == small
    assert Population(participants=3, **laws).members(seed=8) != small


def test_a_draw_of_more_examples_than_a_table_holds_counts_as_the_most():
    (member,) = Population(participants=1, examples=Constant(value=1e30)).members(seed=0)
    assert member.examples == 2**53


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


@pytest.mark.parametrize("a", [-1.0, -0.5, 0.0, 0.6, 1.0])
@pytest.mark.parametrize(("b", "c"), [(0.0, 0.0), (0.6, 0.3), (-0.5, -0.2), (1.0, 0.6), (-1.0, 0.5)])
def test_the_factor_of_a_correlation_is_one_of_its_matrix(a, b, c):
    try:
        correlation = Correlation(speed_size=a, speed_label=b, size_label=c)
    except ValueError:
        return  # no three quantities are correlated like this
    factor = np.array(correlation.factor())
    assert (factor == np.tril(factor)).all()
    np.testing.assert_allclose(factor @ factor.T, correlation.matrix(), atol=1e-9)


def test_size_and_labels_have_their_correlation_beside_those_with_speed():
    correlation = Correlation(speed_size=0.6, speed_label=0.5, size_label=-0.2)
    found = Population(participants=4000, examples=Uniform(low=1, high=1e6), correlation=correlation).members(2)
    spearman = np.corrcoef(ranks([m.examples for m in found]), ranks([m.label_position for m in found]))[0, 1]
    assert spearman == pytest.approx(6 / np.pi * np.arcsin(-0.2 / 2), abs=0.04)


def test_coefficients_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="contradict each other"):
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


def test_how_long_a_task_takes_on_average_is_by_the_laws_means_or_by_the_recorded_tasks():
    population = Population(
        participants=1,
        compute=Compute(task_s=Uniform(low=1, high=3), example_s=Constant(value=0.5), slowness=Constant(value=3)),
        network=Network(down_bytes_per_s=Constant(value=100), latency_s=Constant(value=0.25)),
    )
    (member,) = population.members(0)
    assert member.mean_task_s(population.compute, 8, (200, 50)) == (2 + 0.5 * 8) * 3 + 2 + 0.25
    tasks = (RecordedTask(1, 1, 0.0, 2.0, 1.0), RecordedTask(2, 2, 5.0, 11.0, 1.0))
    assert replace(member, history=History("a", 1, tasks)).mean_task_s(population.compute, 8, (200, 50)) == 4.0


def test_a_recorded_participant_declines_and_vanishes_as_often_as_it_did():
    (member,) = Population(participants=1).members(0)
    history = History("a", 1, (RecordedTask(1, 1, 0.0, 2.0, 1.0),), declines=0.25, vanishes=0.5)
    recorded = replace(member, history=history)
    drawn = [recorded.drops(Dropout(), u) for u in (0.0, 0.24, 0.25, 0.74, 0.75, 0.99)]
    assert drawn == ["declines", "declines", "vanishes", "vanishes", "", ""]
    own = [member.drops(Dropout(probability=0.5, how="vanishes"), u) for u in (0.0, 0.49, 0.5)]
    assert own == ["vanishes", "vanishes", ""]


def test_downloads_and_uploads_are_drawn_apart():
    law = LogNormal(median=1, sigma=1)
    found = Population(participants=500, network=Network(down_bytes_per_s=law, up_bytes_per_s=law)).members(0)
    down, up = ranks([m.down_s_per_byte for m in found]), ranks([m.up_s_per_byte for m in found])
    assert abs(np.corrcoef(down, up)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, False),
        ({"compute": Compute(task_s=Constant(value=1))}, True),
        ({"compute": Compute(example_s=Constant(value=1))}, True),
        ({"compute": Compute(task_s=Constant(value=1), slowness=Constant(value=0))}, False),
        ({"network": Network(up_bytes_per_s=Constant(value=1))}, True),
        ({"network": Network(latency_s=Constant(value=1))}, True),
    ],
)
def test_a_population_says_whether_its_tasks_take_any_time(fields, takes):
    assert Population(participants=1, **fields).takes_time is takes


def test_a_first_turn_is_met_somewhere_in_its_middle():
    availability = Availability(on_s=Constant(value=2), off_s=Constant(value=2))
    first = [Presence(m, availability, 0).until for m in Population(participants=500).members(0)]
    assert 0 <= min(first) < 0.1
    assert 1.9 < max(first) <= 2
    assert np.mean(first) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("law", [lambda mean: Exponential(mean=mean), lambda mean: Uniform(low=0, high=2 * mean)])
def test_a_participant_is_on_for_the_share_of_time_that_its_laws_give_from_the_start_on(law):
    availability = Availability(on_s=law(1), off_s=law(3))
    presences = [Presence(m, availability, 0) for m in Population(participants=4000).members(0)]
    for at in (0, 0.5, 1, 2, 4, 50):
        for p in presences:
            while p.until <= at:
                p.turn()
        assert np.mean([p.on for p in presences]) == pytest.approx(0.25, abs=0.025)


def test_availability_that_never_trains_is_refused():
    with pytest.raises(ValueError, match="nobody would ever train"):
        Availability(on_s=Constant(value=0), off_s=Constant(value=1))


def test_every_member_of_a_recorded_run_has_a_name_of_its_own():
    """One participant has two lanes, and another one has the name that a second lane would get."""
    task = RecordedTask(1, 1, 0.0, 1.0, 1.0)
    names = ["p000001", "p000001", "b", "p000003", "p000003"]
    members = [
        replace(member, history=History(name, 1, (task,)))
        for member, name in zip(Population(participants=5).members(0), names, strict=True)
    ]
    found = [member.participant_id for member in _under_own_names(members)]
    assert found == ["p000001", "p000001-again", "b", "p000003", "p000004"]
