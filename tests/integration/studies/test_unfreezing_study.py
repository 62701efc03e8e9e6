"""A study with a schedule of unfreezing: what is trained, what is counted, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmq import FedBuff, Population, Scaffold, StudyRun, UplinkSettings, simulate
from fedmq.coordinator.settings import DownlinkSettings, StopSettings, TrainingSettings
from fedmq.schemas.errors import ConfigError
from fedmq.study.app_problem import AppProblem
from fedmq.study.file import load_study
from tests.integration.studies.test_frozen_study import APP

BASE_BYTES = 4000
UNFREEZING = """
def frozen(parameters):
    return ["base"]
class Trainer:
    num_examples = 10
    def train(self, parameters, config):
        moves = set(parameters) - parameters.non_trainable
        assert ("base" in moves) == ("unfrozen" in config.extra), (moves, config.extra)
        step = {n: np.float32((1 + config.seed % 7) if n in moves else 0) for n in parameters}
        return Result({n: a + step[n] for n, a in parameters.items()})
def build_trainer(participant_id):
    return Trainer()
"""
SCHEDULE = TrainingSettings(learning_rate=0.1, unfreeze=[{"version": 3, "tensors": ["ba*"]}])


def outcome(folder: Path, training: TrainingSettings = SCHEDULE, strategy=None, **run):
    (folder / "app.py").write_text(APP + UNFREEZING)
    return simulate(
        strategy or FedBuff(buffer_size=2),
        AppProblem(app=str(folder / "app.py")),
        Population(participants=3, compute={"task_s": {"name": "lognormal", "median": 1, "sigma": 0.5}}),
        StudyRun(stop=StopSettings(max_versions=6), concurrency=3, **run),
        training,
    )


WAYS = {
    "plain": {},
    "topk": {"uplink": UplinkSettings(codec="topk", fraction=0.05)},
    "hidden": {"downlink": DownlinkSettings(codec="hidden")},
    "bf16": {"downlink": DownlinkSettings(codec="bf16")},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_study_unfreezes_at_the_version_and_repeats_bit_for_bit(tmp_path, way):
    once, again = outcome(tmp_path, **WAYS[way]), outcome(tmp_path, **WAYS[way])
    assert list(once.parameters) == ["w", "base", "b"]
    assert not np.array_equal(once.parameters["base"], np.ones(1000, np.float32))
    assert all(once.parameters[n].tobytes() == again.parameters[n].tobytes() for n in once.parameters)
    assert once.updates.bytes_up == again.updates.bytes_up


def test_bytes_are_small_before_the_version_and_the_base_travels_after_it(tmp_path):
    found = outcome(tmp_path)
    up = np.diff([0, *found.updates.bytes_up])
    base = np.array(found.updates.base_version)
    assert set(base) >= {0, 1, 2, 3, 4}
    assert up[base < 3].max() < 600
    assert BASE_BYTES < up[base >= 3].min() <= up[base >= 3].max() < BASE_BYTES + 600
    late = sum(1 for b, tau in zip(base, found.updates.staleness, strict=True) if b < 3 <= b + tau)
    assert late, "no update was in flight at the unfreezing"
    assert found.discarded == {}
    tasks_after = found.tasks_issued - sum(base < 3)
    assert 3 * BASE_BYTES < found.bytes_down < (3 + tasks_after + 3) * (BASE_BYTES + 600) + 15 * 700


def test_a_schedule_of_a_strategy_that_cannot_grow_or_of_a_model_without_frozen_tensors_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.unfreeze: leave it out: the state of scaffold cannot grow"):
        outcome(tmp_path, strategy=Scaffold(num_participants=3, buffer_size=2))
    (tmp_path / "plain.py").write_text(APP)
    with pytest.raises(ConfigError, match=r"training\.unfreeze: the model has no frozen tensors"):
        simulate(
            FedBuff(),
            AppProblem(app=str(tmp_path / "plain.py")),
            Population(participants=3, compute={"task_s": {"name": "constant", "value": 1}}),
            StudyRun(stop=StopSettings(max_versions=6), concurrency=3),
            SCHEDULE,
        )


FILE = """
name = "unfreezing"
[problem]
name = "app"
app = "app.py"
[run]
concurrency = 3
stop = { max_versions = 6 }
[training]
learning_rate = 0.1
{schedule}
[[strategies]]
label = "fedbuff"
strategy = { name = "fedbuff", buffer_size = 2 }
[[populations]]
name = "three"
participants = 3
compute = { task_s = { name = "constant", value = 1 } }
"""


def test_a_study_file_takes_the_schedule_and_is_the_same_as_before_without_one(tmp_path):
    (tmp_path / "app.py").write_text(APP + UNFREEZING)
    path = tmp_path / "study.toml"
    path.write_text(FILE.replace("{schedule}", 'unfreeze = [{ version = 3, tensors = ["base"] }]'))
    study, _ = load_study(path)
    assert study.training.unfreeze[0].version == 3
    path.write_text(FILE.replace("{schedule}", ""))
    study, _ = load_study(path)
    assert type(study.training).__name__ == "TrainingConfig"
