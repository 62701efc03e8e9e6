"""Cells that are the same, and cells that are not."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmq.coordinator.strategies import FedBuff
from fedmq.participant.training.shuffling import orders
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.population.laws import Uniform
from fedmq.studies.problems.quadratics import Quadratics
from fedmq.studies.simulate import simulate
from fedmq.studies.sweep.cell import FORMAT, Cell
from fedmq.studies.sweep.cell_identity import plain
from tests.scenario.studies.federations import population, until

RESULTS = {10: "59bbe1bc03a5a631"}
"""FORMAT -> digest of the engine's results for one seed."""


@dataclass(frozen=True)
class Arrays:
    x: Any
    beside: Any = None

    def deal(self, members, seed):
        raise NotImplementedError


def key(problem, strategy=None):
    return Cell("s", "l", strategy or FedBuff(), population(2), problem, until(1), TrainingConfig(), 0).key


def test_arrays_that_differ_anywhere_make_other_cells():
    x = np.zeros(5000)
    other = x.copy()
    other[2500] = 1
    assert key(Arrays(x)) == key(Arrays(x.copy())) != key(Arrays(other))
    assert key(Arrays(0, {"x": [x]})) != key(Arrays(0, {"x": [other]}))
    assert key(Arrays(x)) != key(Arrays(x.reshape(50, 100)))


def test_settings_that_came_later_make_another_cell_only_if_they_are_set():
    assert "buffer_timeout_s" not in str(plain(FedBuff()))
    assert key(Quadratics()) != key(Quadratics(), FedBuff(buffer_timeout_s=5.0))
    one, two = (FedBuff(buffer_timeout_s=5.0, min_updates=n) for n in (1, 2))
    assert key(Quadratics(), one) != key(Quadratics(), two)


def test_a_strategy_of_ones_own_whose_code_changes_makes_another_cell(tmp_path):
    def strategy(step):
        path = tmp_path / f"{step}.py"
        path.write_text(
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    eta: float = 1.0\n"
            f"    def aggregate(self):\n        return {step}\n"
        )
        spec = importlib.util.spec_from_file_location("mine", path)
        module = sys.modules["mine"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.Mine()

    try:
        assert key(Quadratics(), strategy("one")) != key(Quadratics(), strategy("two"))
    finally:
        del sys.modules["mine"]


def test_what_a_seed_gives_changes_with_the_format_only():
    """Raise FORMAT if this fails because results were changed on purpose, and write the new digest down.

    Then no cell from before is taken for one of now.
    """
    people = population(20, Uniform(low=0.5, high=2.0))
    outcome = simulate(FedBuff(buffer_size=3), Quadratics(dimension=2), people, until(60, concurrency=5),
                       TrainingConfig(learning_rate=0.1, epochs=2), seed=7)  # fmt: skip
    rows = outcome.updates
    x = outcome.parameters["x"]
    found = [list(rows.participant), list(rows.base_version), np.round(rows.time_s, 9).tolist(),
             np.round(x, 9).tolist(), list(rows.bytes_up), list(rows.bytes_down),
             [o.tolist() for o in orders([3, 4], [7, 5], 1)]]  # fmt: skip
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == RESULTS[FORMAT]
