"""An app that distils, in virtual time: the strategy feddf in a study."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.coordinator.settings import DownlinkSettings, StopSettings
from fedmq.coordinator.strategies import FedBuff, FedDf
from fedmq.schemas.errors import AppError, ConfigError
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population.population import Population
from fedmq.studies.simulate import simulate
from fedmq.study.app_problem import AppProblem

APP = """
import numpy as np

class Trainer:
    num_examples = 10

    def train(self, parameters, config):
        noise = np.random.default_rng(config.seed).normal(size=3).astype("float32")
        return type("R", (), dict(parameters={**parameters, "w": parameters["w"] + noise}, num_examples=10,
                                  num_steps=1, metrics={}))

def build_trainer(participant_id):
    return Trainer()

def initial_parameters():
    return {"w": np.zeros(3, "float32"), "base": np.ones(2, "float32"), "steps": np.array(3)}

def frozen(parameters):
    return ["base"]
"""
DISTIL = """
def distil(ensemble, start, seed):
    assert list(start) == ["w", "base", "steps"]
    models = list(ensemble)
    assert abs(sum(weight for _, weight in models) - 1) < 1e-12
    mean = sum(weight * parameters["w"] for parameters, weight in models)
    drawn = np.random.normal(size=3) / 100  # the process's own generator is seeded too
    return {"w": (mean + start["w"] + drawn).astype("float32") / 2}
"""
POPULATION = Population(participants=4, compute={"task_s": {"name": "uniform", "low": 1, "high": 3}})


def run_of(tmp_path, strategy, text=APP + DISTIL, **settings):
    path = tmp_path / "app.py"
    path.write_text(text)
    run = StudyRun(**({"stop": StopSettings(max_versions=4), "concurrency": 4} | settings))
    return simulate(strategy, AppProblem(app=str(path)), POPULATION, run, seed=3)


def test_a_study_distils_each_version_and_is_the_same_bit_for_bit_from_the_same_seed(tmp_path):
    one, other = (run_of(tmp_path, FedDf(buffer_size=2)) for _ in range(2))
    assert one.finished == "max_versions"
    assert one.plain == []
    assert one.parameters["w"].tobytes() == other.parameters["w"].tobytes()
    assert one.parameters["base"].tolist() == [1.0, 1.0]
    plain = run_of(tmp_path, FedBuff(buffer_size=2))
    assert one.parameters["w"].tobytes() != plain.parameters["w"].tobytes()
    assert one.version_s == plain.version_s  # it takes no virtual time
    assert one.updates.columns()["staleness"].tolist() == plain.updates.columns()["staleness"].tolist()
    np.testing.assert_array_equal(one.updates.columns()["weight"], plain.updates.columns()["weight"])


def test_an_app_that_cannot_distil_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="the strategy feddf distils each version, and the problem has no function"):
        run_of(tmp_path, FedDf(buffer_size=2), APP)


def test_a_hidden_state_is_refused_with_its_key(tmp_path):
    with pytest.raises(
        ConfigError, match=r"downlink\.codec: got 'hidden', allowed with the strategy feddf: none, bf16"
    ):
        run_of(tmp_path, FedDf(buffer_size=2), downlink=DownlinkSettings(codec="hidden"))


def test_an_error_of_the_apps_function_ends_the_study_with_its_line(tmp_path):
    with pytest.raises(AppError, match=r"distil in .* failed: ValueError: too hot"):
        run_of(tmp_path, FedDf(buffer_size=2), APP + "\ndef distil(a, b, c):\n    raise ValueError('too hot')\n")
    with pytest.raises(AppError, match="distil gave no tensor 'w'"):
        run_of(tmp_path, FedDf(buffer_size=2), APP + "\ndef distil(a, b, c):\n    return {}\n")


def test_a_version_whose_updates_are_all_too_stale_for_an_ensemble_is_noted_as_plain(tmp_path):
    found = run_of(tmp_path, FedDf(buffer_size=1, former_versions=0))
    assert found.plain
    assert found.finished == "max_versions"
