"""The doctor's look at a new run's frozen part and at its distillations."""

from __future__ import annotations

import numpy as np
import pytest

from fedmq.config.file import load_config
from fedmq.coordinator.strategies.fedbuff import FedBuff
from fedmq.coordinator.strategies.feddf import FedDf
from fedmq.schemas.errors import FedmqError
from fedmq.schemas.parameters import Parameters
from fedmq.views.checks import moving

FIRST = Parameters(
    {"base/w": np.ones(30, np.float32), "base/b": np.ones(4, np.float32), "head": np.ones(6, np.float32)}
)
FROZEN = {"base/w": True, "base/b": True}


def config(tmp_path, training=""):
    file = tmp_path / "federation.toml"
    file.write_text(
        'app = "app.py"\n[run]\nrun_id = "r"\n[run.stop]\nmax_versions = 1\n[strategy]\nname = "fedbuff"\n'
        f"[training]\n{training}\n"
    )
    return load_config(file, environ={})


def test_the_frozen_part_and_its_schedule_are_told_before_the_run(tmp_path):
    plain, strategy = config(tmp_path), FedBuff(buffer_size=1)
    assert moving.frozen(plain, strategy, FIRST, {}) == ""
    told = "34 of the model's 40 numbers do not move, and travel once"
    assert moving.frozen(plain, strategy, FIRST, FROZEN) == told
    later = config(tmp_path, 'unfreeze = [{ version = 7, tensors = ["base/b"] }]')
    told += "; 1 of their 2 tensors move from version 7 on"
    assert moving.frozen(later, strategy, FIRST, FROZEN) == told


def test_a_schedule_that_names_no_frozen_tensor_is_wrong_before_the_run(tmp_path):
    wrong = config(tmp_path, 'unfreeze = [{ version = 7, tensors = ["base/c"] }]')
    with pytest.raises(FedmqError, match=r"training\.unfreeze.*'base/c' matches none"):
        moving.frozen(wrong, FedBuff(buffer_size=1), FIRST, FROZEN)


def test_an_app_that_cannot_distil_is_told_if_the_strategy_asks_for_it():
    assert [finding.level for finding in moving.distillation(FedDf(), able=False)] == ["warning"]
    assert list(moving.distillation(FedDf(), able=True)) == []
    assert list(moving.distillation(FedBuff(buffer_size=1), able=False)) == []
