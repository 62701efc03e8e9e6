"""A participant's own model: what it learns from, what is sent, and what is left of it after a crash."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fedmq.participant.spool.own_model import FILE, read_own_model
from fedmq.participant.training.distillation import DistillationTrainer, distilling
from fedmq.participant.training.methods import replies_of
from fedmq.participant.training.task_work import TaskFailed, do_task
from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.messages import Task, TrainingConfig
from fedmq.schemas.parameters import Parameters
from tests.support import distillation_app

FIRST, SECOND = TrainingConfig(seed=1), TrainingConfig(seed=2)


@pytest.fixture
def app(tmp_path: Path) -> ModuleType:
    made = ModuleType("app")
    exec(distillation_app.APP, made.__dict__)
    return made


@pytest.fixture
def trainer(app: ModuleType, tmp_path: Path):
    """Return trainer(folder="own", number=1): a participant's process that has just started."""

    def make(folder: str = "own", number: int = 1) -> DistillationTrainer:
        made = app.build_trainer(f"sensor-{number}")
        (tmp_path / folder).mkdir(exist_ok=True)
        made.keep_in(tmp_path / folder)
        return made

    return make


@pytest.fixture
def start(app: ModuleType) -> Parameters:
    return Parameters(app.initial_parameters(), {"public_data"})


@pytest.fixture
def consensus(start: Parameters) -> Parameters:
    rows = np.random.default_rng(5).dirichlet(np.ones(3), 40).astype(np.float32)
    return start.replace({**start, "predictions": rows})


def sent(trainer: DistillationTrainer, parameters: Parameters, config: TrainingConfig) -> bytes:
    return trainer.train(parameters, config).parameters["predictions"].tobytes()


def test_what_is_sent_is_the_predictions_and_does_not_grow_with_the_model(trainer, start):
    for number, weights in ((1, 9), (2, 15)):
        participant = trainer(f"own-{number}", number)
        result = participant.train(start, FIRST)
        assert {n: (a.dtype.name, a.shape) for n, a in result.parameters.items()} == {
            "predictions": ("float32", (40, 3)),
            "public_data": ("uint8", (16,)),
        }
        assert participant.own_model["w"].size == weights
        np.testing.assert_allclose(
            result.parameters["predictions"], participant.learner.predict(participant.own_model), atol=1e-7
        )
        assert result.metrics["own_accuracy"] == participant.evaluate(start)["accuracy"]


def test_a_participant_learns_the_consensus_first_and_then_its_own_data(trainer, app, start, consensus):
    participant = trainer()
    learner = participant.learner
    own = learner.train(learner.start(1), FIRST).parameters
    participant.train(start, FIRST)
    assert (participant.own_model["w"] == own["w"]).all(), "nothing known to learn"
    distilled = learner.distil(own, consensus["predictions"], distilling(SECOND, 20))
    participant.train(consensus, SECOND)
    assert (participant.own_model["w"] == learner.train(distilled, SECOND).parameters["w"]).all()


def test_the_same_task_gives_the_same_update_and_model_however_often_it_is_trained(trainer, start, consensus, tmp_path):
    whole = trainer("whole")
    expected = [sent(whole, start, FIRST), sent(whole, consensus, SECOND)]
    assert expected[0] != expected[1]
    killed = trainer()
    for task, parameters, config in ((0, start, FIRST), (1, consensus, SECOND)):
        assert sent(killed, parameters, config) == expected[task]
        file = (tmp_path / "own" / FILE).read_bytes()
        assert sent(killed, parameters, config) == expected[task], "in the same process"
        killed = trainer()  # killed between the end of the training and the write of its update
        assert sent(killed, parameters, config) == expected[task]
        assert (tmp_path / "own" / FILE).read_bytes() == file
    assert (killed.own_model["w"] == whole.own_model["w"]).all()


def test_a_training_that_fails_leaves_the_model_as_it_was(trainer, start, consensus, monkeypatch):
    participant = trainer()
    participant.train(start, FIRST)
    before = participant.own_model["w"].copy()
    monkeypatch.setattr(participant.learner, "predict", lambda model: np.full((40, 3), 0.5))
    with pytest.raises(TrainerError, match="no probabilities"):
        participant.train(consensus, SECOND)
    monkeypatch.setattr(participant.learner, "predict", lambda model: np.full((40, 2), 0.5))
    with pytest.raises(TrainerError, match=r"float64\[40, 2\], expected floats of the consensus' shape \[40, 3\]"):
        participant.train(consensus, SECOND)
    for one in (participant, trainer()):
        assert (one.own_model["w"] == before).all()


def test_a_participant_that_lost_its_disk_begins_anew_and_goes_on(trainer, start, consensus):
    trainer().train(start, FIRST)
    lost = trainer("new disk")
    assert lost.own_model is None
    with pytest.raises(NotImplementedError):
        lost.evaluate(consensus)
    learner = lost.learner
    lost.train(consensus, SECOND)
    distilled = learner.distil(learner.start(2), consensus["predictions"], distilling(SECOND, 20))
    assert (lost.own_model["w"] == learner.train(distilled, SECOND).parameters["w"]).all()


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:], lambda b: b"\0" * 9]
)
def test_a_damaged_model_is_set_aside_and_a_new_one_begins(trainer, start, tmp_path, damage):
    trainer().train(start, FIRST)
    file = tmp_path / "own" / FILE
    file.write_bytes(damage(file.read_bytes()))
    participant = trainer()
    assert participant.own_model is None
    assert [path.name.partition("-")[2] for path in file.parent.iterdir()] == [f"set-aside-{FILE}"]
    participant.train(start, FIRST)
    assert read_own_model(file.parent) is not None


def test_each_run_has_a_model_of_its_own(trainer, start, consensus, tmp_path):
    participant = trainer()
    participant.train(start, FIRST)
    (tmp_path / "other run").mkdir()
    participant.keep_in(tmp_path / "other run")
    assert participant.own_model is None
    participant.train(consensus, SECOND)
    participant.keep_in(tmp_path / "own")
    assert read_own_model(tmp_path / "own").after["w"].tolist() == participant.own_model["w"].tolist()


def test_other_models_and_other_public_data_are_refused_with_what_to_do(trainer, start, consensus):
    participant = trainer()
    other = start.replace({**start, "public_data": np.zeros(16, np.uint8)})
    with pytest.raises(AppError, match="public examples are not the federation's"):
        participant.train(other, FIRST)
    with pytest.raises(AppError, match=r"the floating-point tensors w \[3\], expected one of predictions"):
        participant.train(Parameters({"w": np.zeros(3, np.float32)}), FIRST)
    with pytest.raises(AppError, match="proximal_mu has no base model"):
        participant.train(start, TrainingConfig(proximal_mu=0.1))
    assert "scaffold" not in replies_of(participant)
    with pytest.raises(AppError, match="distil_epochs = 0"):
        DistillationTrainer.around(participant.learner, distil_epochs=0)


def test_a_tasks_work_gives_the_trainer_its_folder_and_reports_a_full_disk_as_a_decline(app, start, tmp_path):
    task = Task(task_id="t", run_id="r", participant_id="p", base_version=0, reply="parameters", lease_s=1.0,
                training=FIRST)  # fmt: skip
    trainer = app.build_trainer("sensor-1")
    done = do_task(trainer, task, start, lambda: 0.0, own_folder=tmp_path)
    assert list(done.payload) == ["predictions"]
    assert (tmp_path / FILE).exists()
    with pytest.raises(TaskFailed, match=r"cannot write .*missing/model\.fedmq") as failed:
        do_task(app.build_trainer("sensor-1"), task, start, lambda: 0.0, own_folder=tmp_path / "missing")
    assert failed.value.reason == "trainer_error"
    assert not failed.value.fatal
