"""A strategy of a user's own that returns or raises something else than it should."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from fedmq.coordinator.decisions.failures import StrategyFailed
from fedmq.coordinator.decisions.versions.model import Model
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.errors import StrategyError
from fedmq.schemas.parameters import Parameters

INITIAL = Parameters({"w": np.zeros(3, np.float32)})


def leave(*_):
    sys.exit(3)


@dataclass(frozen=True)
class Mine(FedBuff):
    buffer_size: int = 1
    returned: object = None

    def ready(self, _state, _now):
        return self.returned

    def aggregate(self, _state, _parameters):
        return self.returned


@pytest.mark.parametrize("returned", [None, 1, "yes", np.array([True, False])])
def test_ready_must_return_true_or_false(returned):
    strategy = Mine(returned=returned)
    with pytest.raises(StrategyFailed, match=r"ready\(\) raised TypeError: it returned .*, expected True or False"):
        Model(strategy, INITIAL).ready(strategy, 0.0)


@pytest.mark.parametrize("returned", [True, np.bool_(True)])
def test_a_bool_of_numpy_is_one(returned):
    strategy = Mine(returned=returned)
    assert Model(strategy, INITIAL).ready(strategy, 0.0) is True


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, r"it returned None, expected \(state, parameters\)"),
        ((1, None), r"it returned a tuple of 2, expected \(state, parameters\)"),
        ((1, {"w": np.zeros(4, np.float32)}), "parameters of other names, shapes or dtypes"),
        ((1, {"w": np.zeros(3, np.float64)}), "parameters of other names, shapes or dtypes"),
        ((1, {"v": np.zeros(3, np.float32)}), "parameters of other names, shapes or dtypes"),
        ((1, {"w": [0, 0, 0]}), "raised AttributeError"),
    ],
)
def test_aggregate_must_return_a_state_and_parameters_of_the_model(returned, said):
    with pytest.raises(StrategyFailed, match=said):
        Model(Mine(returned=returned), INITIAL).make_version()


def test_aggregate_may_return_a_plain_dict():
    state = FedBuff(buffer_size=1).init(INITIAL)
    model = Model(Mine(returned=(state, {"w": np.ones(3, np.float32)})), INITIAL)
    model.make_version()
    assert isinstance(model.parameters, Parameters)
    assert model.parameters["w"].tolist() == [1, 1, 1]


def test_a_strategy_that_leaves_the_process_fails_and_the_process_stays(monkeypatch):
    strategy = Mine()
    model = Model(strategy, INITIAL)
    for name in ("accumulate", "ready", "aggregate", "init"):
        monkeypatch.setattr(Mine, name, leave)
    with pytest.raises(StrategyFailed, match=r"ready\(\) raised SystemExit: 3"):
        model.ready(strategy, 0.0)
    with pytest.raises(StrategyFailed, match=r"aggregate\(\) raised SystemExit: 3"):
        model.make_version()
    with pytest.raises(StrategyError, match=r"strategy Mine: init\(\) raised SystemExit: 3"):
        Model(strategy, INITIAL)
