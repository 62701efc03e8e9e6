"""A Keras model in a whole study, in processes of its own."""

import json

import keras
import numpy as np
import pytest

import fedmq
from fedmq.schemas.errors import AppError
from fedmq.studies.problems.keras import compiled_cache as keras_kept
from fedmq.studies.simulate import simulate
from fedmq.study.app_problem import AppProblem, app_data
from tests.integration.studies.small_app import build_model
from tests.scenario.studies.federations import TrainingConfig, fedbuff, population, until
from tests.support.full import in_full


def study_of(folder, path, seeds=(0,)):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 6)).astype(np.float32), rng.integers(0, 3, 60)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return fedmq.Study(
        "keras",
        fedmq.KerasProblem(build_model, str(folder / "data.npz"), path=path),
        [fedmq.Contender("fedbuff", fedbuff(2))],
        [population(5, examples={"name": "constant", "value": 20})],
        until(20, concurrency=4, evaluate_interval_s=2.0),
        fedmq.TrainingConfig(batch_size=10),
        tuning=None,
        seeds=seeds,
    )


@in_full("test_keras_cohort.py has the same bytes on one path")
@pytest.mark.parametrize("path", ["cohort", "plain"])
def test_any_keras_model_is_studied_with_one_seed_the_same_bytes(tmp_path, path):
    study = study_of(tmp_path, path)
    first = study.run(tmp_path / "a", workers=1)
    again = study.run(tmp_path / "b", workers=1)
    assert [r.digest for r in first] == [r.digest for r in again]
    assert first[0].key == again[0].key
    losses = [e["metrics"]["loss"] for e in first[0].evaluations]
    assert losses[-1] < losses[0]


@in_full("scenario/studies/test_study.py has a choice by time without Keras")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_faster_path_is_chosen_once_for_all_cells_and_when_the_study_goes_on(tmp_path, workers):
    results = study_of(tmp_path, "measure", seeds=(0, 1)).run(tmp_path / "a", workers=workers)
    (chosen,) = (tmp_path / "a" / "choices").iterdir()
    assert {r.backend for r in results} == {json.loads(chosen.read_text())["name"]}
    other = {"path": "plain", "name": "the other one"}
    chosen.write_text(json.dumps(other))
    more = study_of(tmp_path, "measure", seeds=(0, 1, 2)).run(tmp_path / "a", workers=1)
    assert [r.backend for r in more] == [*(r.backend for r in results), other["name"]]


APP = """
import numpy as np
from tests.integration.studies.small_app import build_model

def part(number):
    rng = np.random.default_rng(number)
    return rng.standard_normal((20, 6)), rng.integers(0, 3, 20)

def load_data(participant_id):
    return part(int(participant_id.removeprefix("sensor-")) % 2)

def load_test_data():
    return part(0)
"""


def test_a_deployments_app_is_studied_as_it_is_with_its_own_data_for_each_participant(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    problem = AppProblem(app=str(tmp_path / "app.py"), participant_id="sensor-{number}", path="plain")
    assert AppProblem.model_validate({"app": problem.app}).deal_by.name == "iid"
    members = population(5)
    outcome = simulate(fedbuff(2), problem, members, until(20, concurrency=4, evaluate_interval_s=0), TrainingConfig())
    losses = [e.metrics["loss"] for e in outcome.evaluations]
    assert losses[-1] < losses[0]
    federation = problem.deal(members.members(0), 0)
    assert federation.num_examples == [20] * 5
    assert federation.data_bytes == 2 * 20 * (6 * 4 + 8)  # five participants, two of them with data of their own
    trial, said = problem.for_tuning(0.25)
    assert said.startswith("25% of each participant's examples, kept back")
    judged = trial.deal(members.members(0), 0)
    assert judged.num_examples == [15] * 5
    assert judged.evaluate(judged.initial) != federation.evaluate(federation.initial)


WITH_TRAINERS = (
    APP
    + """
from fedmq import KerasTrainer

def build_trainer(participant_id):
    return KerasTrainer(build_model, load_data(participant_id))
"""
)


def test_an_app_with_trainers_around_its_keras_model_starts_from_that_and_is_evaluated_by_it(tmp_path):
    (tmp_path / "app.py").write_text(WITH_TRAINERS)
    problem = AppProblem(app=str(tmp_path / "app.py"), participant_id="sensor-{number}")
    outcome = simulate(fedbuff(2), problem, population(2), until(20, evaluate_interval_s=0), TrainingConfig())
    losses = [e.metrics["loss"] for e in outcome.evaluations]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("app", [APP, WITH_TRAINERS], ids=["keras", "trainers"])
def test_one_seed_draws_one_initial_model_and_another_another(tmp_path, app):
    unseeded = app.replace("import build_model", "import unseeded as build_model")
    (tmp_path / "app.py").write_text(unseeded)
    problem = AppProblem(app=str(tmp_path / "app.py"), participant_id="sensor-{number}", path="plain")

    def drawn(seed):
        initial = problem.deal(population(2).members(seed), seed).initial
        return [array.tobytes() for array in initial.values()]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


DRAWS = """
import numpy as np
from fedmq import TrainResult

NOISE = np.random.normal(size=3)

class Trainer:
    def __init__(self):
        self._data = None

    @property
    def num_examples(self):
        if self._data is None:
            self._data = np.random.normal(size=3)
        return 7

    def train(self, parameters, config):
        moved = parameters["x"] + NOISE + self._data + np.random.normal(size=3)
        return TrainResult({"x": moved}, 7, 1, {})

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"x": np.random.normal(size=3)}

def evaluate(parameters):
    return {"sum": float(parameters["x"].sum())}
"""


def test_whatever_an_app_draws_of_the_processs_random_numbers_follows_from_the_seed(tmp_path):
    (tmp_path / "app.py").write_text(DRAWS)
    problem = AppProblem(app=str(tmp_path / "app.py"))

    def digest(seed):
        np.random.seed(None)
        return simulate(fedbuff(2), problem, population(3), until(9), TrainingConfig(), seed=seed).digest()

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


FEATURES = """
import numpy as np
import keras
from tests.integration.studies.test_keras_study import part

def build_model():
    w = np.random.normal(size=(6, 4)).astype("float32")
    layers = [keras.Input((6,)), keras.layers.Lambda(lambda x: keras.ops.matmul(x, w)), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

def load_data(participant_id):
    return part(0)

def load_test_data():
    return part(1)
"""


def part(number):
    rng = np.random.default_rng(number)
    return rng.standard_normal((20, 6)), rng.integers(0, 3, 20)


def test_what_a_model_draws_that_is_no_weight_is_the_same_in_each_process(tmp_path, monkeypatch):
    (tmp_path / "app.py").write_text(FEATURES)
    problem = AppProblem(app=str(tmp_path / "app.py"), path="plain")

    def digest(seed):
        return simulate(fedbuff(2), problem, population(2), until(4), TrainingConfig(), seed=seed).digest()

    found = []
    for before in (1, 2):
        monkeypatch.setattr(keras_kept, "_kept", {})  # as in a process of its own, where another cell came first
        digest(before)
        found.append(digest(0))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [("5", "gave 5, expected"), ("(np.ones((2, 6)) * np.nan, np.zeros(2))", "gave x with values that are not finite")],
)
def test_what_load_test_data_gives_is_looked_at_before_anything_is_trained(tmp_path, given, message):
    app = APP.replace("return part(0)", f"return {given}")
    (tmp_path / "app.py").write_text(app)
    problem = AppProblem(app=str(tmp_path / "app.py"), participant_id="sensor-{number}", path="plain")
    with pytest.raises(AppError, match=rf"load_test_data\(\) in .* {message}"):
        problem.deal(population(2).members(0), 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("None", r"load_data\('p000000'\) in .* gave None, expected \(x, y\)"),
        ("(np.array([[1.0], [np.nan]]), np.zeros(2))", "gave x with values that are not finite"),
        ("(np.ones((2, 1)), np.array([0.0, np.inf]))", "gave y with values that are not finite"),
    ],
)
def test_what_load_data_gives_is_looked_at_before_anything_is_trained(tmp_path, given, message):
    (tmp_path / "app.py").write_text(f"import numpy as np\n\n\ndef load_data(participant_id):\n    return {given}\n")
    with pytest.raises(AppError, match=message):
        app_data(str(tmp_path / "app.py"), "", ("p000000",))


NOISY = """
import keras
import tensorflow as tf
from tests.integration.studies.test_keras_study import part

class Noisy(keras.layers.Layer):
    def call(self, x):
        return x + keras.random.normal(tf.shape(x)) + tf.random.normal(tf.shape(x))

def build_model():
    model = keras.Sequential([keras.Input((6,)), Noisy(), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

def load_data(participant_id):
    return part(0)

def load_test_data():
    return part(1)
"""
OWN_TRAINERS = """
import keras
import numpy as np
import tensorflow as tf
from fedmq import TrainResult

class Trainer:
    num_examples = 3

    def train(self, parameters, config):
        moved = parameters["x"] + keras.random.normal((3,)).numpy() + tf.random.normal((3,)).numpy()
        return TrainResult({"x": moved}, 3, 1, {})

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"x": keras.random.normal((3,)).numpy()}

def evaluate(parameters):
    return {"sum": float(parameters["x"].sum())}
"""


@pytest.mark.parametrize("app", [NOISY, OWN_TRAINERS], ids=["a model's layers", "trainers"])
def test_what_an_app_draws_of_keras_follows_from_the_seed_whatever_came_before(tmp_path, monkeypatch, app):
    (tmp_path / "app.py").write_text(app)
    problem = AppProblem(app=str(tmp_path / "app.py"), path="plain")

    def digest(seed):
        return simulate(fedbuff(2), problem, population(2), until(4), TrainingConfig(), seed=seed).digest()

    first = digest(0)
    assert digest(1) != first
    keras.utils.set_random_seed(99)
    monkeypatch.setattr(keras_kept, "_kept", {})  # as in another worker
    assert digest(0) == first


@in_full("the cells of one process, in any order")
def test_what_a_models_layers_draw_does_not_depend_on_the_number_of_workers(tmp_path):
    (tmp_path / "app.py").write_text(NOISY)
    study = fedmq.Study(
        "noisy",
        AppProblem(app=str(tmp_path / "app.py"), path="plain"),
        [fedmq.Contender("fedbuff", fedbuff(2))],
        [population(2)],
        until(4),
        fedmq.TrainingConfig(),
        tuning=None,
        seeds=(0, 1, 2),
    )
    one, two = (study.run(tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert [r.digest for r in one] == [r.digest for r in two]
    assert len({r.digest for r in one}) == 3
