"""Quadratics with optima, curvatures and steps that are given."""

import numpy as np
import pytest

import fedmq
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.sweep.cell_identity import plain
from tests.scenario.studies.federations import population, until

THREE = TrainingConfig(epochs=3, learning_rate=0.1)
GIVEN = fedmq.Quadratics(optima=(0, 4), curvatures=(1, 2), local_steps=(1, 3))


def dealt(problem, participants=2):
    return problem.deal(population(participants).members(0), 0)


def test_a_federation_has_the_optima_and_curvatures_that_are_given():
    federation = dealt(GIVEN, participants=4)
    assert federation.optima.tolist() == [[0], [4], [0], [4]]
    assert federation.curvatures.tolist() == [1, 2, 1, 2]
    assert federation.optimum().tolist() == [8 / 3]
    plane = dealt(fedmq.Quadratics(dimension=2, optima=[[1, 2], [3, 4]]))
    assert plane.optima.tolist() == [[1, 2], [3, 4]]


def test_each_participant_does_its_own_steps():
    """Rounds of both settle at Σ a_i c_i / Σ a_i, with a_i = 1 - (1 - ηh_i)^Q_i."""
    a = [1 - 0.9, 1 - 0.8**3]
    settled = a[1] * 4 / (a[0] + a[1])
    outcome = fedmq.simulate(fedmq.FedAvg(cohort_size=2), GIVEN, population(2), until(max_versions=200), THREE)
    assert outcome.parameters["x"].tolist() == pytest.approx([settled], abs=1e-9)
    assert dealt(GIVEN).speed_biased(np.ones(2), 0.1, [1, 3]).tolist() == pytest.approx([settled])


def test_fednova_takes_the_bias_of_different_steps_away():
    """Small steps have a_i ≈ Q_i·η·h_i, and FedNova divides by Q_i (Wang et al. 2020)."""
    small = TrainingConfig(epochs=3, learning_rate=0.004)
    at = {}
    for strategy in (fedmq.FedAvg(cohort_size=2), fedmq.FedNova(cohort_size=2)):
        outcome = fedmq.simulate(strategy, GIVEN, population(2), until(max_versions=1000), small)
        at[strategy.name] = float(outcome.parameters["x"][0])
    assert at["fednova"] == pytest.approx(8 / 3, abs=0.02)
    assert at["fedavg"] == pytest.approx(24 / 7, abs=0.02)


def test_fewer_epochs_than_somebodys_steps_are_refused():
    with pytest.raises(
        fedmq.ConfigError, match=r"training\.epochs is 1, and problem\.local_steps has 3.*set epochs = 3"
    ):
        fedmq.simulate(fedmq.FedBuff(buffer_size=1), GIVEN, population(2), until(4), TrainingConfig(learning_rate=0.1))


def test_a_number_of_participants_that_is_no_multiple_is_refused():
    with pytest.raises(fedmq.ConfigError, match=r"problem\.optima has 2 values, and there are 3 participants"):
        dealt(GIVEN, participants=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optima": [[1, 2]]}, "optimum 1 has 2 coordinates, and dimension is 1"),
        ({"optima": [1], "spread": 2}, "optima and spread both say the same: leave one out"),
        ({"curvatures": [1], "curvature": {"name": "constant", "value": 1}}, "curvatures and curvature both"),
        ({"curvatures": [0]}, "greater than 0"),
        ({"local_steps": [0]}, "greater than or equal to 1"),
        ({"optima": []}, "at least 1 item"),
    ],
)
def test_what_cannot_be_given_is_refused_in_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        fedmq.Quadratics.model_validate(given)


def test_quadratics_that_are_drawn_are_known_by_what_they_were_known_by_before():
    assert set(plain(fedmq.Quadratics())[2]) == {"name", "dimension", "curvature", "spread", "noise", "start"}
