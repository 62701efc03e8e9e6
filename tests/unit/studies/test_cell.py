"""What a cell's file says of its participants."""

import numpy as np
import pytest

from coordinator.strategies import FedAvg, Scaffold
from schemas.messages import TrainingConfig
from studies.cell import Cell, run_cell
from studies.laws import Constant
from studies.population import Compute, Network, Population
from studies.quadratics import QuadraticFederation
from tests.scenario.studies.federations import Given, until

EXAMPLES = [3, 5, 10]


def ran(folder, strategy, training=None, **run):
    (folder / "cells").mkdir()
    federation = QuadraticFederation(np.ones(3), np.zeros((3, 2)), EXAMPLES)
    people = Population(
        participants=3,
        compute=Compute(example_s=Constant(value=1)),
        network=Network(down_bytes_per_s=Constant(value=1.6), up_bytes_per_s=Constant(value=16)),
    )
    training = training or TrainingConfig(learning_rate=0.1)
    return run_cell(folder, Cell("s", "l", strategy, people, Given(federation), until(2, **run), training, 0))


def test_how_long_tasks_take_is_by_the_data_that_the_problem_gave(tmp_path):
    result = ran(tmp_path, FedAvg(cohort_size=2), TrainingConfig(learning_rate=0.1, epochs=2))
    assert result.task_s == [10 + 1 + 2 * n for n in EXAMPLES], "a model has 16 bytes"


def test_how_long_tasks_take_is_by_the_bytes_of_the_method_and_the_steps_that_are_asked_for(tmp_path):
    training = TrainingConfig(learning_rate=0.1, batch_size=2, max_steps=2)
    result = ran(tmp_path, Scaffold(num_participants=3, cohort_size=3), training)
    assert result.task_s == [20 + 2 + min(n, 4) for n in EXAMPLES]


def test_who_never_sent_an_update_is_meant_to_count_by_its_examples(tmp_path):
    result = ran(tmp_path, FedAvg(cohort_size=2), client_weights="examples")
    assert sorted(result.accepted) == [0, 1, 1]
    assert result.intended == pytest.approx([n / 6 for n in EXAMPLES])
