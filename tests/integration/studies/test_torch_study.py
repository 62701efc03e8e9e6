"""A PyTorch app in a study: its own data for each participant, by the plain path."""

import numpy as np
import pytest

from fedmq.app.app import load_app, trainer_of
from fedmq.coordinator.strategies import Scaffold
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.problems.lazy_training import Job
from fedmq.studies.simulate import simulate
from fedmq.study.app_problem import AppProblem
from tests.scenario.studies.federations import fedbuff, population, until
from tests.support.torch_app import APP, write

pytest.importorskip("torch")

TRAINING = TrainingConfig(batch_size=16, learning_rate=0.2)


def problem(folder, text=APP, **fields) -> AppProblem:
    return AppProblem(app=str(write(folder, text)), participant_id="sensor-{number}", **fields)


def test_a_deployments_app_is_studied_by_the_plain_path_with_one_seed_the_same_bits(tmp_path):
    def outcome(seed=0):
        run = until(12, evaluate_interval_s=0)
        return simulate(fedbuff(2), problem(tmp_path), population(3), run, TRAINING, seed=seed)

    first, again, other = outcome(), outcome(), outcome(1)
    assert first.backend == "PyTorch by the plain path, one participant after the other"
    bits = [{n: a.tobytes() for n, a in one.parameters.items()} for one in (first, again, other)]
    assert bits[0] == bits[1] != bits[2]
    losses = [e.metrics["loss"] for e in first.evaluations]
    assert losses[-1] < losses[0]
    assert first.parameters["1.num_batches_tracked"] == 0, "integers stay the federation's"


def test_a_task_has_the_bits_of_the_deployments_trainer_and_so_has_an_app_with_build_trainer(tmp_path):
    own = APP + (
        "\ndef build_trainer(participant_id):\n"
        "    import fedmq\n"
        "    return fedmq.TorchTrainer(build_model, loss, load_data(participant_id), optimizer)\n"
    )
    found = []
    for text in (APP, own):
        federation = problem(tmp_path, text).deal(population(2).members(0), 0)
        assert federation.num_examples == [64, 64]
        assert set(federation.evaluate(federation.initial)) == {"loss", "accuracy"}
        (trained,) = federation.backend.train([Job(1, federation.initial, TRAINING)])
        deployed = trainer_of(load_app(tmp_path / "app.py"), "sensor-2").train(federation.initial, TRAINING)
        found += [trained.parameters, deployed.parameters]
    assert len({tuple(a.tobytes() for a in one.values()) for one in found}) == 1


def test_a_file_is_dealt_out_and_trials_are_judged_by_what_is_kept_back(tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 4)).astype(np.float32), rng.integers(0, 2, 60)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    members = population(5, examples={"name": "constant", "value": 12}).members(0)
    dealt = problem(tmp_path, data=str(tmp_path / "data.npz")).deal(members, 0)
    assert dealt.num_examples == [12] * 5
    trial, _ = problem(tmp_path).for_tuning(0.25)
    judged = trial.deal(members, 0)
    assert judged.num_examples == [48] * 5
    assert judged.evaluate(judged.initial)["loss"] > 0
    one, _ = trial.model_copy(update={"validation_part": 0.0}), 0
    assert judged.evaluate(judged.initial) != one.deal(members, 0).evaluate(judged.initial)


def test_scaffold_runs_on_it_and_a_cohort_path_is_refused(tmp_path):
    outcome = simulate(
        Scaffold(num_participants=3, buffer_size=2),
        problem(tmp_path),
        population(3),
        until(6, evaluate_interval_s=0),
        TRAINING,
    )
    assert [e.version for e in outcome.evaluations][-1] == 3
    with pytest.raises(AppError, match="a PyTorch model has no cohort path: set path to plain"):
        problem(tmp_path, path="cohort").deal(population(2).members(0), 0)
