"""A study's bytes, bits and models are a deployment's, for an app with a frozen part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmq import DownlinkSettings, FedBuff, Population, StudyRun, TrainingConfig, UplinkSettings, simulate
from fedmq.coordinator.settings import StopSettings
from fedmq.schemas.errors import TrainerError
from fedmq.study.app_problem import AppProblem
from tests.support.full import in_full

APP = """
import numpy as np
class Result:
    num_examples, num_steps, metrics = 10, 1, {}
    def __init__(self, parameters):
        self.parameters = parameters
class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        assert list(parameters) == ["w", "base", "b"], list(parameters)
        step = {n: np.float32(0 if n == "base" and not CHANGES else 1 + config.seed % 7) for n in parameters}
        return Result({n: a + step[n] for n, a in parameters.items()})
CHANGES = False
def build_trainer(participant_id):
    return Trainer()
def initial_parameters():
    return {"w": np.zeros(5, np.float32), "base": np.ones(1000, np.float32), "b": np.zeros(2, np.float32)}
def evaluate(parameters):
    assert list(parameters) == ["w", "base", "b"]
    return {"w": float(parameters["w"].sum())}
"""
FROZEN = """
def frozen(parameters):
    return ["base"]
"""


def outcome(folder: Path, text: str, uplink: UplinkSettings | None = None):
    (folder / "app.py").write_text(text)
    return simulate(
        FedBuff(buffer_size=2),
        AppProblem(app=str(folder / "app.py")),
        Population(participants=3, compute={"task_s": {"name": "constant", "value": 1}}),
        StudyRun(stop=StopSettings(max_updates=12), concurrency=3, uplink=uplink),
        TrainingConfig(),
    )


@pytest.mark.parametrize("codec", [None, "int8"])
def test_the_frozen_part_is_counted_once_a_participant_and_the_model_is_the_same(tmp_path, codec):
    uplink = None if codec is None else UplinkSettings(codec=codec)
    frozen, whole = outcome(tmp_path, APP + FROZEN, uplink), outcome(tmp_path, APP, uplink)
    sent, issued = frozen.updates.bytes_up[-1], frozen.updates.bytes_down[-1]
    assert 3 * 4000 < issued < 3 * 4000 + 15 * 700
    assert 0 < sent < 12 * 500
    assert whole.updates.bytes_down[-1] > 12 * 4000
    assert list(frozen.parameters) == ["w", "base", "b"]
    assert np.array_equal(frozen.parameters["base"], np.ones(1000, np.float32))
    if codec is None:
        assert all(frozen.parameters[name].tobytes() == whole.parameters[name].tobytes() for name in "wb")


def test_a_trainer_that_changes_a_frozen_tensor_is_told(tmp_path):
    with pytest.raises(TrainerError, match="changed the tensor 'base', which is frozen"):
        outcome(tmp_path, APP.replace("CHANGES = False", "CHANGES = True") + FROZEN)


KERAS = """
import numpy as np
def build_model():
    import keras
    frozen = keras.layers.Dense(16, activation="relu", trainable=False)
    model = keras.Sequential([keras.layers.Input((4,)), frozen, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
def load_data(participant_id):
    rng = np.random.default_rng(int(participant_id.rpartition("-")[2]))
    x = rng.normal(size=(64, 4)).astype("float32")
    return x, (x[:, 0] > x[:, 1]).astype("int32")
"""


@in_full("the frozen part of an app's own trainer, and cohorts in codecs, are tested without Keras")
def test_a_keras_model_with_a_frozen_layer_trains_in_cohorts_in_every_codec_too(tmp_path):
    (tmp_path / "app.py").write_text(KERAS)
    run = StudyRun(
        stop=StopSettings(max_updates=12), concurrency=3, uplink=UplinkSettings(codec="topk", fraction=0.2),
        downlink=DownlinkSettings(codec="hidden"),
    )  # fmt: skip
    people = Population(participants=3, compute={"task_s": {"name": "uniform", "low": 1, "high": 2}})
    found = {}
    for path in ("plain", "cohort"):
        problem = AppProblem(app=str(tmp_path / "app.py"), participant_id="s-{number}", path=path)
        first = problem.deal(people.members(0), 0)
        outcome = simulate(FedBuff(buffer_size=2), problem, people, run, TrainingConfig(batch_size=16))
        found[path] = outcome
        kernel, bias, *moved = outcome.parameters.values()
        whole = first.whole(first.initial)
        assert [a.tobytes() for a in (kernel, bias)] == [a.tobytes() for a in list(whole.values())[:2]]
        assert all(not np.array_equal(a, b) for a, b in zip(moved, list(whole.values())[2:], strict=True))
    assert "vectorised" in found["cohort"].backend
    assert found["plain"].bytes_up == found["cohort"].bytes_up
    for name, array in found["plain"].parameters.items():
        np.testing.assert_allclose(array, found["cohort"].parameters[name], atol=1e-5)
