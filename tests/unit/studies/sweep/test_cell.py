"""The participants in a cell's file."""

from dataclasses import replace

import numpy as np
import pytest

from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.strategies import Ca2fl, FedAvg, FedBuff, Scaffold
from fedmq.schemas.errors import ConfigError, InputError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.tensors import TensorSpec
from fedmq.studies.engine.message_sizes import task_bytes, update_bytes
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.engine.task_sizes import example_passes
from fedmq.studies.population import recorded_runs as recorded
from fedmq.studies.population.laws import Constant
from fedmq.studies.population.population import Compute, Network, Population
from fedmq.studies.problems.quadratics import QuadraticFederation, Quadratics
from fedmq.studies.sweep.cell import Cell, check_cell, run_cell
from tests.scenario.studies.federations import Given, until

EXAMPLES = [3, 5, 10]


class Far(QuadraticFederation):
    """Participants with different losses, which change little in a step."""

    losses = (0.5, 2.0, 8.0)

    def __init__(self):
        super().__init__(np.full(3, 1e-6), np.sqrt([[2e6 * loss, 0.0] for loss in self.losses]), EXAMPLES)


def ran(folder, strategy, training=None, problem=None, updates=2, **run):
    (folder / "cells").mkdir()
    federation = problem or QuadraticFederation(np.ones(3), np.zeros((3, 2)), EXAMPLES)
    people = Population(
        participants=3,
        compute=Compute(example_s=Constant(value=1)),
        network=Network(down_bytes_per_s=Constant(value=1.6), up_bytes_per_s=Constant(value=16)),
    )
    training = training or TrainingConfig(learning_rate=0.1)
    return run_cell(folder, Cell("s", "l", strategy, people, Given(federation), until(updates, **run), training, 0))


def test_how_long_tasks_take_is_by_the_data_that_the_problem_gave(tmp_path):
    result = ran(tmp_path, FedAvg(cohort_size=2), TrainingConfig(learning_rate=0.1, epochs=2))
    assert result.task_s == [10 + 1 + 2 * n for n in EXAMPLES], "a model has 16 bytes"


def test_how_long_tasks_take_is_by_the_bytes_of_the_method_and_the_steps_that_are_asked_for(tmp_path):
    training = TrainingConfig(learning_rate=0.1, batch_size=2, max_steps=2)
    result = ran(tmp_path, Scaffold(num_participants=3, cohort_size=3), training)
    assert result.task_s == [20 + 2 + min(n, 4) for n in EXAMPLES]


def test_bytes_are_those_of_the_whole_run_with_what_nobody_waited_for(tmp_path):
    """Three participants have 3, 5 and 10 examples. The update of the first comes after 2 + 3 + ... s; the others were
    only sent their models."""
    result = ran(tmp_path, FedAvg(cohort_size=1, over_selection=3.0), updates=1)
    spec = (TensorSpec("x", "float64", (2,)),)
    up, down = update_bytes(spec, "delta"), task_bytes(spec, "delta", TrainingConfig(learning_rate=0.1))
    assert (result.updates, result.bytes_up, result.bytes_down) == (1, up, 3 * down)


def test_an_epoch_may_end_in_a_short_batch(tmp_path):
    """Three steps in batches of 4 take 3+3+3, 4+1+4 and 4+4+2 examples of 3, 5 and 10."""
    training = TrainingConfig(learning_rate=0.1, batch_size=4, epochs=5, max_steps=3)
    result = ran(tmp_path, FedAvg(cohort_size=3), training)
    assert result.task_s == [10 + 1 + passes for passes in (9, 9, 10)]
    # The limit of two updates does not cut the one round short: it ends with the slowest.
    assert result.time_s == 21


def test_four_steps_of_25_examples_in_batches_of_ten_are_35_of_them():
    def passes(**fields):
        return example_passes(TrainingConfig(batch_size=10, **fields), 25)

    assert [passes(epochs=9, max_steps=steps) for steps in (1, 2, 3, 4, 5, 6, 7)] == [10, 20, 25, 35, 45, 50, 60]
    assert (passes(epochs=2), passes(epochs=2, max_steps=5), passes(epochs=2, max_steps=100)) == (50, 45, 50)
    assert example_passes(TrainingConfig(batch_size=10, max_steps=2), 0) == 0


def test_where_steps_go_by_speed_a_task_takes_what_those_that_there_were_took(tmp_path):
    """The first step has 3, 4 and 4 examples, at a second for each. Then 9 s have room for 3, 2 and 2 steps, which have
    9, 5 and 8 examples."""
    training = TrainingConfig(learning_rate=0.1, batch_size=4, epochs=100)
    result = ran(
        tmp_path, FedBuff(buffer_size=1), training, updates=7, concurrency=3,
        steps={"target_s": 9, "min_steps": 1, "max_steps": 100},
    )  # fmt: skip
    assert result.task_s == [18, 15.67, 17.67], "11 + (3 + 9 + 9)/3, 11 + (4 + 5 + 5)/3, 11 + (4 + 8 + 8)/3"


def test_one_that_had_no_task_takes_what_a_first_one_would(tmp_path):
    training = TrainingConfig(learning_rate=0.1, batch_size=4, epochs=100)
    steps = {"target_s": 9, "min_steps": 2, "max_steps": 100}
    assert ran(tmp_path, FedBuff(), training, updates=1, concurrency=1, steps=steps).task_s == [17, 16, 19]


def test_who_never_sent_an_update_is_meant_to_count_by_its_examples(tmp_path):
    result = ran(tmp_path, FedAvg(cohort_size=2), client_weights="examples")
    assert sorted(result.accepted) == [0, 1, 1]
    assert result.intended == pytest.approx([n / 6 for n in EXAMPLES])


def test_what_a_participant_was_meant_to_count_is_as_of_its_last_update(tmp_path):
    """The quality weight is 1/(1 + loss) over its mean.

    Losses here are not 0, which a participant without updates has.
    """
    result = ran(tmp_path, FedAvg(cohort_size=2), client_weights="quality", problem=Far())
    sent = [i for i, count in enumerate(result.accepted) if count]
    assert result.accepted == [1 if i in sent else 0 for i in range(3)]
    qualities = {i: 1 / (1 + Far.losses[i]) for i in sent}
    first, last = sorted(sent, key=lambda i: EXAMPLES[i])
    assert result.intended[first] == pytest.approx(1.0), "nobody else's loss was known yet"
    assert result.intended[last] == pytest.approx(qualities[last] / (sum(qualities.values()) / 2))


CELL = Cell(
    "s", "l", FedAvg(cohort_size=2), Population(participants=100, compute=Compute(task_s=Constant(value=1))),
    Given(QuadraticFederation(np.ones(100), np.zeros((100, 2)))), until(2), TrainingConfig(learning_rate=0.1), 0,
)  # fmt: skip


def test_a_cells_file_is_known_by_all_that_decides_its_result_and_by_nothing_else():
    cell = replace(CELL, problem=Quadratics())
    same = replace(cell, study="t", label="m")
    others = [
        replace(cell, seed=1),
        replace(cell, strategy=FedAvg(cohort_size=3)),
        replace(cell, population=Population(participants=99, compute=CELL.population.compute)),
        replace(cell, problem=Quadratics(dimension=2)),
        replace(cell, run=until(3)),
        replace(cell, training=TrainingConfig(learning_rate=0.2)),
    ]
    assert same.key == cell.key
    assert len({cell.key, *(other.key for other in others)}) == 7


def test_a_run_that_went_on_makes_another_cell(monkeypatch):
    def key(digest):
        monkeypatch.setattr(recorded, "digest", lambda run: f"{digest} of {run}")
        people = Population(participants=2, run="runs/it")
        return replace(CELL, problem=Quadratics(), population=people).key

    assert key("the same") == key("the same") != key("more")


@pytest.mark.parametrize(
    ("run", "strategy", "models", "said"),
    [
        ({"concurrency": 5}, FedAvg(cohort_size=2), 2 * 5, "5 tasks out"),
        ({"concurrency": 1000}, FedAvg(cohort_size=2), 2 * 100, "100 tasks out"),
        ({"concurrency": 5, "arrivals_per_s": 1.0}, FedAvg(cohort_size=2), 2 * 100, "100 tasks out"),
        ({"concurrency": 5}, Scaffold(num_participants=100), 2 * (2 * 5 + 100), "the strategy remembers 100"),
        ({"concurrency": 5}, Ca2fl(num_participants=100), 2 * 5 + 100, "the strategy remembers 100"),
    ],
)
def test_a_cell_is_refused_where_it_takes_a_byte_more_than_it_may(run, strategy, models, said):
    cell = replace(CELL, run=until(2, **run), strategy=strategy)
    needed = 16 * (models + 8)
    check_cell(cell, needed)
    with pytest.raises(ConfigError, match=rf"takes about {needed:,} bytes .*{said}"):
        check_cell(cell, needed - 1)


@pytest.mark.parametrize("goal", ["target", "patience"])
def test_a_goal_that_is_never_measured_is_refused(goal):
    rule = {"target": {"name": "auc", "value": 1, "mode": "max"}, "patience": {"name": "auc", "evaluations": 3}}[goal]
    stop = StopSettings.model_validate({"max_updates": 2, goal: rule})
    with pytest.raises(InputError, match="auc"):
        check_cell(replace(CELL, run=StudyRun(stop=stop)), 10**9)
