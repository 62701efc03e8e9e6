"""All data that a deployment's load_data may give are studied, by the same trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.app.app import load_app
from fedmq.participant.training.keras.trainer import KerasTrainer
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.problems.lazy_training import Job
from fedmq.study.app_problem import AppProblem, app_data
from tests.scenario.studies.federations import population

START = """
import keras
import numpy as np

K = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
W = RNG.uniform(0.2, 2, 40)

def load_test_data():
    return load_data("")

def compiled(inputs, outputs, loss="sparse_categorical_crossentropy", **options):
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), loss, **options)
    return model
"""
TWO_INPUTS = """
def build_model():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    out = K.Dense(2, activation="softmax")(K.Concatenate()([a, b]))
    return compiled({inputs}, out)

def load_data(participant_id):
    return {data}, Y
"""
TWO_OUTPUTS = """
def build_model():
    x = keras.Input((6,))
    sign, size = K.Dense(2, activation="softmax", name="sign")(x), K.Dense(1, name="size")(x)
    return compiled(x, {outputs}, {losses})

def load_data(participant_id):
    return X, {labels}
"""
DENSE = """
def build_model():
    x = keras.Input((6,))
    return compiled(x, K.Dense(2, activation="softmax")(x), weighted_metrics=["accuracy"])

def load_data(participant_id):
    return {data}
"""
TEXT = """
def build_model():
    x = keras.Input((1,), dtype="string")
    numbers = K.StringLookup(vocabulary=["up", "down"], output_mode="one_hot")(x)
    return compiled(x, K.Dense(2, activation="softmax")(K.Flatten()(numbers)))

def load_data(participant_id):
    return np.where(Y == 1, "up", "down")[:, None]{made}, Y
"""
ALONE = """
class Squeezes(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = K.Dense(6)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean((x - y_pred) ** 2)

def build_model():
    model = Squeezes()
    model(np.zeros((1, 6), "float32"))
    model.compile(keras.optimizers.SGD(0.1))
    return model

def load_data(participant_id):
    return (X,)
"""
APPS = {
    "dict": TWO_INPUTS.format(inputs='{"a": a, "b": b}', data='{"a": X[:, :3], "b": X[:, 3:]}'),
    "list": TWO_INPUTS.format(inputs="[a, b]", data="[X[:, :3], X[:, 3:]]"),
    "dict of outputs": TWO_OUTPUTS.format(
        outputs='{"sign": sign, "size": size}',
        losses='{"sign": "sparse_categorical_crossentropy", "size": "mse"}',
        labels='{"sign": Y, "size": X[:, 0]}',
    ),
    "list of outputs": TWO_OUTPUTS.format(
        outputs="[sign, size]", losses='["sparse_categorical_crossentropy", "mse"]', labels="[Y, X[:, 0]]"
    ),
    "sample weights": DENSE.format(data="X, Y, W"),
    "class weights": DENSE.format(data="X, Y, {0: 1.0, 1: 3.0}"),
    "python lists": DENSE.format(data="X.tolist(), Y.tolist()"),
    "texts": TEXT.format(made=""),
    "texts as objects": TEXT.format(made=".astype(object)"),
    "inputs alone": ALONE,
}


@pytest.mark.parametrize("name", APPS)
def test_what_deploys_is_studied_with_the_same_result(tmp_path: Path, name: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(START + APPS[name])
    problem = AppProblem(app=str(file), participant_id="sensor-{number}")
    federation = problem.deal(population(2).members(0), 0)
    config = TrainingConfig(batch_size=16, epochs=2, seed=3)
    (studied,) = federation.backend.train([Job(1, federation.initial, config)])
    app = load_app(file)
    data = app.get("load_data")("")
    trainer = KerasTrainer(app.get("build_model"), data, evaluation_data=data)
    deployed = trainer.train(federation.initial, config)
    for tensor, expected in deployed.parameters.items():
        np.testing.assert_allclose(studied.parameters[tensor], expected, rtol=2e-5, atol=1e-6)
    assert any(np.abs(a - federation.initial[n]).max() > 1e-3 for n, a in studied.parameters.items())
    assert studied.num_examples == deployed.num_examples == 40
    assert dict(studied.metrics) == pytest.approx(dict(deployed.metrics), rel=1e-5)
    assert federation.evaluate(studied.parameters) == pytest.approx(trainer.evaluate(studied.parameters), rel=1e-5)
    trial, _ = problem.for_tuning(0.25)
    assert trial.deal(population(2).members(0), 0).num_examples == [30, 30]


def test_weights_and_names_are_the_reason_for_the_plain_path(tmp_path: Path) -> None:
    file, found = tmp_path / "app.py", {}
    for name in ("dict", "sample weights", "dict of outputs", "texts"):
        file.write_text(START + APPS[name])
        found[name] = AppProblem(app=str(file)).deal(population(1).members(0), 0).backend.name
    assert "the inputs are a dict of arrays" in found["dict"]
    assert "the examples have weights" in found["sample weights"]
    assert "the labels are a dict of arrays" in found["dict of outputs"]
    assert "the inputs are of type <U4" in found["texts"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{'a': X, 'b': X[:, :2] if name == 'p1' else X}, Y", r"other shapes: x\['a'\] \[6\], x\['b'\] \[2\], y"),
        ("(X, Y, W) if name == 'p1' else (X, Y)", r"other shapes: x \[6\], y \[\] and x \[6\], y \[\], sample_weight"),
        ("{'a': X, 'b': X[:3]}, Y", r"load_data\('p0'\) .* arrays of different lengths: x\['a'\] has 40"),
        ("{'a': X * np.nan}, Y", r"gave x\['a'\] with values that are not finite numbers"),
        ("X[:0], Y[:0]", "gave no examples"),
    ],
)
def test_data_that_do_not_fit_each_other_are_refused_with_the_place(tmp_path: Path, given: Any, message: str) -> None:
    (tmp_path / "app.py").write_text(START + f"def load_data(name):\n    return {given}\n")
    with pytest.raises(AppError, match=message):
        app_data(str(tmp_path / "app.py"), "", ("p0", "p1"))
