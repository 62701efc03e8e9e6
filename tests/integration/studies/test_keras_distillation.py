"""Unlike Keras models that distil: the trainer, the student, and a study of an app with both."""

from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmq.app.app import load_app, trainer_of
from fedmq.app.model_worker import Helper
from fedmq.app.models import framework_of
from fedmq.app.parameter_files import write_parameters
from fedmq.coordinator.strategies import Distillation
from fedmq.participant.training.distillation import DistillationTrainer
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.simulate import simulate
from fedmq.study.app_problem import AppProblem
from tests.scenario.studies.federations import population, until
from tests.support.full import FULL, in_full

APP = """
import keras
import numpy as np
import fedmq

def examples(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, 2)).astype("float32")
    return x, (x @ np.array([[1, -1, 0], [0, 1, -1]])).argmax(axis=1)

def wide():
    return compiled([keras.layers.Dense(9, "tanh"), keras.layers.Dropout(0.1), keras.layers.Dense(3)], True)

def build_student():
    return compiled([keras.layers.Dense(3, "softmax")], False)

def compiled(layers, logits):
    model = keras.Sequential([keras.Input((2,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    return model

def build_trainer(participant_id):
    number = int(participant_id.rpartition("-")[2])
    x, y = examples(60, number)
    known = y != number % 3
    build_model = wide if number % 2 else build_student
    return fedmq.DistillationTrainer(
        build_model, (x[known], y[known]), load_public_data, evaluation_data=load_test_data, distil_epochs=2
    )

def load_public_data():
    return examples(50, 0)[0]

def load_test_data():
    return examples(300, 99)
"""
TRAINING = TrainingConfig(batch_size=10)


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    return load_app(tmp_path / "app.py")


def predictions(app, seed=3):
    start = framework_of(app, "").initial()
    rows = np.random.default_rng(seed).dirichlet(np.ones(3), 50).astype("float32")
    return start, start.replace({**start, "predictions": rows})


def test_models_of_both_kinds_send_probabilities_and_repeat_their_bits(app, tmp_path):
    start, consensus = predictions(app)
    assert start["predictions"].tolist() == [[np.float32(1 / 3)] * 3] * 50
    assert start.non_trainable == {"public_data"}
    for number in (1, 2):
        participant = trainer_of(app, f"sensor-{number}")
        (tmp_path / str(number)).mkdir()
        participant.keep_in(tmp_path / str(number))
        tasks = [(start, TRAINING), (consensus, TRAINING.model_copy(update={"seed": 1, "learning_rate": 0.01}))]
        for parameters, config in tasks:
            result = participant.train(parameters, config)
            rows = result.parameters["predictions"]
            np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
            assert (rows >= 0).all()
            assert result.num_steps == -(-participant.num_examples // 10)
            participant = trainer_of(app, f"sensor-{number}")  # killed before its update was written
            participant.keep_in(tmp_path / str(number))
            again = participant.train(parameters, config).parameters["predictions"]
            assert again.tobytes() == rows.tobytes()
        assert np.abs(participant.learner.predict(participant.own_model) - rows).max() < 1e-6


def test_a_model_moves_towards_the_consensus(app):
    _, consensus = predictions(app)
    learner = trainer_of(app, "sensor-1").learner

    def distance(model):
        return np.abs(learner.predict(model) - consensus["predictions"]).mean()

    model = learner.start(1)
    closer = learner.distil(model, consensus["predictions"], TrainingConfig(epochs=30, batch_size=10))
    assert distance(closer) < 0.95 * distance(model)


def test_the_student_follows_from_the_consensus_alone_and_is_what_the_run_exports(app, tmp_path):
    _, consensus = predictions(app)
    helpers = [Helper(app), Helper(app)]
    assert helpers[0].evaluates
    assert helpers[0].exports
    helpers[1].answer({"initial": str(tmp_path / "initial.safetensors")})
    write_parameters(tmp_path / "final.safetensors", consensus)
    metrics = [h.answer({"evaluate": str(tmp_path / "final.safetensors")})["metrics"] for h in helpers]
    assert metrics[0] == metrics[1]
    written = helpers[0].answer({"export": str(tmp_path / "final.safetensors"), "to": str(tmp_path / "final")})
    model = keras.models.load_model(written["written"])
    x, y = app.functions["load_test_data"]()
    assert model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] == pytest.approx(metrics[0]["accuracy"])
    assert load_file(tmp_path / "final.safetensors")["predictions"].tolist() == consensus["predictions"].tolist()


def test_an_app_without_build_trainer_trains_own_models_of_the_students_kind(app, tmp_path):
    (tmp_path / "own.py").write_text(
        APP.replace("def build_trainer", "def unused")
        + "\ndef load_data(participant_id):\n    return examples(30, 5)\n"
        "def student_training():\n    return {'epochs': 0}\n"
    )
    own = load_app(tmp_path / "own.py")
    start, consensus = predictions(own)
    assert trainer_of(own, "sensor-1").train(start, TRAINING).num_examples == 30
    with pytest.raises(AppError, match=r"student_training in .* gave epochs = 0: Input should be greater than"):
        Helper(own)._evaluator()(consensus)


def test_models_that_cannot_distil_are_refused_with_what_to_do(app):
    class OwnStep(keras.Sequential):
        def train_step(self, data):
            return {}

    def own_step():
        model = OwnStep([keras.Input((2,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
        return model

    def one_output():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
        model.compile("sgd", "binary_crossentropy")
        return model

    x, y = app.functions["examples"](9, 1)
    start, consensus = predictions(app)
    with pytest.raises(AppError, match=r"own train_step.*use DistillationTrainer\.around"):
        DistillationTrainer(own_step, (x, y), x)
    with pytest.raises(AppError, match=r"gives the shape \[.*1\], expected \[examples, classes\]"):
        DistillationTrainer(one_output, (x, y % 2), app.functions["load_public_data"]()).train(start, TRAINING)
    with pytest.raises(AppError, match="public examples are not the federation's"):
        DistillationTrainer(app.functions["wide"], (x, y), x).train(consensus, TRAINING)


def test_a_study_distils_unlike_models_to_a_student_better_than_anybody_alone(app, tmp_path):
    def outcome():
        problem = AppProblem(app=str(tmp_path / "app.py"), participant_id="sensor-{number}")
        run = until(18, evaluate_interval_s=1000)
        return simulate(Distillation(buffer_size=3), problem, population(3), run, TRAINING)

    first = outcome()
    if FULL:
        assert first.parameters["predictions"].tobytes() == outcome().parameters["predictions"].tobytes()
    alone = []
    for number in (1, 2, 3):
        learner = trainer_of(app, f"sensor-{number}").learner
        alone.append(
            learner.evaluate(learner.train(learner.start(1), TrainingConfig(epochs=6, batch_size=10)).parameters)
        )
    assert first.evaluations[-1].metrics["accuracy"] > max(one["accuracy"] for one in alone)


@in_full("the same with small models, in the tests above")
def test_the_example_learns_mnist():
    example = Path(__file__).parents[3] / "examples" / "distillation" / "app.py"
    problem = AppProblem(app=str(example), participant_id="sensor-{number}")
    outcome = simulate(
        Distillation(buffer_size=3), problem, population(6), until(18, evaluate_interval_s=1000), TRAINING
    )
    assert outcome.evaluations[-1].metrics["accuracy"] > 0.5
