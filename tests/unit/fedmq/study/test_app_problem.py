"""Apps and strategies of the user's own in studies. Those with Keras are in tests/integration/studies."""

import pickle
import textwrap

import numpy as np
import pytest

from fedmq.schemas.errors import AppError
from fedmq.studies.engine.deploy import federation_tables
from fedmq.studies.simulate import simulate
from fedmq.studies.sweep.cell import Cell
from fedmq.studies.sweep.grids import with_values
from fedmq.study.app_problem import AppProblem, _kept_back
from fedmq.study.file import load_study
from fedmq.study.strategy_file import StrategyFromFile
from tests.scenario.studies.federations import TrainingConfig, fedbuff, population, until

APP = """
    import numpy as np
    from fedmq import TrainResult

    class Halfway:
        '''Goes half of the way to its own number, which is its name's.'''

        def __init__(self, number):
            self.number, self.num_examples = number, number

        def train(self, parameters, config):
            return TrainResult({"x": (parameters["x"] + self.number) / 2}, self.number, 1, {})

    def build_trainer(participant_id):
        return Halfway(int(participant_id.removeprefix("sensor-")))

    def initial_parameters():
        return {"x": np.zeros(1)}

    def evaluate(parameters):
        return {"x": float(parameters["x"][0])}
"""
STRATEGY = """
    from fedmq import FedBuff

    class Half(FedBuff):
        def accumulate(self, state, update, staleness):
            state.accumulate(update, 0.5)
            return state

    def build_strategy(**options):
        return Half(**options)
"""


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    return AppProblem(app=str(tmp_path / "app.py"), participant_id="sensor-{number}")


def custom(folder, **options) -> StrategyFromFile:
    (folder / "own.py").write_text(textwrap.dedent(STRATEGY))
    return StrategyFromFile(str(folder / "own.py"), options)


def test_an_app_without_keras_trains_by_its_own_trainers_named_as_deployed(app):
    outcome = simulate(fedbuff(2), app, population(2), until(4, evaluate_interval_s=0), TrainingConfig())
    # Steps of 1/2 and 1 from 0. Then the first participant's of 1/2 from 0 again, and the second's of 5/8 from 3/4.
    assert [e.metrics["x"] for e in outcome.evaluations] == [0, 0.75, 0.75 + (0.5 + 0.625) / 2]


def test_a_strategy_from_a_file_goes_to_other_processes_and_is_tuned_by_its_options(app, tmp_path):
    strategy = pickle.loads(pickle.dumps(custom(tmp_path, buffer_size=2, server_learning_rate=1.0)))
    outcome = simulate(strategy, app, population(2), until(2, evaluate_interval_s=0), TrainingConfig())
    assert outcome.parameters["x"].tolist() == [0.375]
    cell = Cell("s", "own", strategy, population(2), app, until(2), TrainingConfig(), 0)
    changed = with_values(cell, {"strategy.server_learning_rate": 2.0})
    assert changed.strategy.options == {"buffer_size": 2, "server_learning_rate": 2.0}
    assert with_values(cell, {"strategy.server_learning_rate": -1.0}) is None
    assert changed.key != cell.key
    assert 'name = "custom"' in federation_tables(changed.strategy, cell.training, cell.run)


def test_a_changed_app_or_strategy_file_is_another_cell(app, tmp_path):
    def key():
        cell = Cell("s", "own", custom(tmp_path), population(2), app, until(2), TrainingConfig(), 0)
        return cell.key

    before = key()
    assert key() == before
    (tmp_path / "app.py").write_text(textwrap.dedent(APP) + "\n# changed\n")
    assert key() != before


def test_an_app_in_a_study_file_is_found_beside_it_and_its_mistakes_are_said(tmp_path):
    study = """
        name = "s"
        [problem]
        name = "app"
        app = "app.py"
        [run]
        stop = {max_updates = 10}
        [[strategies]]
        label = "own"
        strategy = {name = "custom", file = "own.py"}
        [[populations]]
        participants = 2
        compute = {task_s = {name = "constant", value = 1}}
    """
    (tmp_path / "s.toml").write_text(textwrap.dedent(study))
    with pytest.raises(AppError.__mro__[1], match=r"(?s)there is no app file .*app\.py.*no strategy file .*own\.py"):
        load_study(tmp_path / "s.toml")
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    custom(tmp_path)
    found, _ = load_study(tmp_path / "s.toml")
    assert found.problem.app == str(tmp_path / "app.py")
    assert np.isclose(found.contenders[0].strategy.server_learning_rate, 1.0)


def test_a_part_of_each_participants_rows_is_kept_back_and_nobody_trains_on_it():
    ten, same, five, one = np.arange(10), np.arange(10), np.arange(20, 25), np.array([30])
    left, kept = _kept_back([ten, same, five, one], 0.3, 4)
    assert [len(rows) for rows in left] == [7, 7, 3, 1]
    assert left[0].tolist() == left[1].tolist(), "with the same examples they lose the same"
    assert sorted([*left[0], *left[2], *kept]) == [*range(10), *range(20, 25)]
    assert left[3].tolist() == [30]
    again, _ = _kept_back([ten, same, five, one], 0.3, 4)
    assert [a.tolist() for a in again] == [a.tolist() for a in left]
    assert _kept_back([ten], 0.3, 5)[1].tolist() != _kept_back([ten], 0.3, 4)[1].tolist()
    left, kept = _kept_back([np.arange(2)], 0.9, 0)
    assert (len(left[0]), len(kept)) == (1, 1), "at least one is left to train on"
    with pytest.raises(AppError, match="no participant has two examples"):
        _kept_back([one], 0.3, 4)
