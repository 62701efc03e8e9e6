"""The coordinator's end of a distillation, over children made of plain functions."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from fedmq.app.app import load_app
from fedmq.app.ensembles import distil
from fedmq.app.model_distiller import ModelDistiller
from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.coordinator.decisions.commands import Distil
from fedmq.coordinator.decisions.events import DistilFailed, Distilled
from fedmq.coordinator.strategies.protocol import Ensemble
from fedmq.schemas.errors import AppError
from fedmq.schemas.frozen import split_off
from fedmq.schemas.parameters import Parameters

DEADLINE_S = 30.0
APP = """
def distil(ensemble, start, seed):
    assert len(ensemble) == 2
    for _ in range(2):  # as often as it is asked for
        mean = sum(weight * parameters["w"] for parameters, weight in ensemble)
    assert list(start) == NAMES, list(start)
    return {"w": mean + start["w"] + seed, "unknown": 1}
"""


def model(*values: float) -> Parameters:
    return Parameters({"w": np.array(values, np.float32), "steps": np.array(3)}, {"steps"})


def order(version: int = 1) -> Distil:
    return Distil(version, 7, Ensemble(model(1.0, 2.0), (model(4.0, 0.0), model(0.0, 8.0)), (0.75, 0.25)))


class Child:
    """A child that does the work in this process."""

    def __init__(self, path: Path, names: list[str], text: str = APP) -> None:
        path.write_text(text.replace("NAMES", repr(names)))
        self._app = load_app(path)
        self.killed = 0

    def distil(self, asked) -> None:
        distil(self._app, asked)

    def kill(self) -> None:
        self.killed += 1


def answer(distiller: ModelDistiller, *asked, **more):
    answers: Queue = Queue()
    distiller.submit(*asked, answers.put, **more)
    return answers.get(timeout=DEADLINE_S)


def test_an_app_distils_from_the_files_and_leaves_none(tmp_path):
    distiller = ModelDistiller(Child(tmp_path / "app.py", ["w", "steps"]), tmp_path / "distil")
    found = answer(distiller, order())
    assert isinstance(found, Distilled)
    assert found.version == 1
    assert {name: array.tolist() for name, array in found.tensors.items()} == {"w": [11.0, 11.0]}
    assert list((tmp_path / "distil").iterdir()) == []


def test_the_app_sees_whole_models_and_answers_with_what_moves(tmp_path):
    whole = Parameters({"base": np.array([5.0], np.float32), **model(1.0, 2.0)}, {"steps"})
    _, part = split_off(whole, ["base"])
    distiller = ModelDistiller(Child(tmp_path / "app.py", ["base", "w", "steps"]), tmp_path / "distil")
    found = answer(distiller, order(), part=part)
    assert isinstance(found, Distilled), found
    assert list(found.tensors) == ["w"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def distil(ensemble, start, seed):\n    raise ValueError('too hot')", "too hot"),
        ("def distil(ensemble, start, seed):\n    return None", "gave None, expected name -> array"),
        ("def distil(ensemble, start, seed):\n    return {}", "gave no tensor 'w'"),
        ("def other():\n    pass", "has no function distil"),
    ],
)
def test_what_the_app_does_wrong_is_the_reason_of_a_failure(tmp_path, text, why):
    distiller = ModelDistiller(Child(tmp_path / "app.py", [], text), tmp_path / "distil")
    found = answer(distiller, order(4))
    assert isinstance(found, DistilFailed)
    assert found.version == 4
    assert why in found.reason


class Liar:
    """A child that says that it is done."""

    killed = 0

    def __init__(self, write=lambda target: None) -> None:
        self._write = write

    def distil(self, asked) -> None:
        self._write(Path(asked["to"]))

    def kill(self) -> None:
        self.killed += 1


def test_a_child_that_writes_nothing_or_too_much_or_another_format_costs_its_version_alone(tmp_path):
    def large(target: Path) -> None:
        write_parameters(target, Parameters({"w": np.zeros(5_000_000, np.float32)}))

    for write in (lambda target: None, large, lambda target: target.write_bytes(b"\xff" * 100)):
        found = answer(ModelDistiller(Liar(write), tmp_path / "distil"), order())
        assert isinstance(found, DistilFailed)
        assert "version.safetensors" in found.reason


def test_an_order_that_is_given_up_has_no_answer_and_its_child_is_ended_once(tmp_path):
    begun, end = threading.Event(), threading.Event()

    def write(target: Path) -> None:
        begun.set()
        assert end.wait(DEADLINE_S)

    child = Liar(write)
    distiller = ModelDistiller(child, tmp_path / "distil")
    distiller.give_up()
    assert child.killed == 0  # nothing was at work
    answers: Queue = Queue()
    distiller.submit(order(1), answers.put)
    assert begun.wait(DEADLINE_S)
    distiller.give_up()
    assert child.killed == 1
    end.set()
    distiller.submit(order(2), answers.put)
    assert answers.get(timeout=DEADLINE_S).version == 2
    assert answers.empty()
    distiller.give_up()
    assert child.killed == 1


def test_a_child_that_outlived_its_coordinator_writes_where_nobody_reads(tmp_path):
    """Another coordinator's order removes the folder of the one before, and reads from its own."""
    targets: list[Path] = []

    def write(target: Path) -> None:
        for old in targets:
            with pytest.raises(FileNotFoundError):
                write_parameters(old, model(9.0, 9.0))
        targets.append(target)
        write_parameters(target, model(1.0, 1.0).select(["w"]))

    for version in (1, 2):
        found = answer(ModelDistiller(Liar(write), tmp_path / "distil"), order(version))
        assert isinstance(found, Distilled)
        assert found.tensors["w"].tolist() == [1.0, 1.0]
    assert len(set(targets)) == 2


def test_a_file_that_is_missing_fails_with_its_name(tmp_path):
    asked = {"part": None, "distil": [], "weights": [], "start": str(tmp_path / "start"), "seed": 0, "to": "x"}
    with pytest.raises(Exception, match="start"):
        distil(load_app(_app(tmp_path)), asked)
    assert not (tmp_path / "x").exists()


def test_a_distil_with_other_arguments_is_refused_when_the_app_is_loaded(tmp_path):
    path = tmp_path / "app.py"
    path.write_text("def distil(ensemble, start):\n    pass")
    with pytest.raises(
        AppError, match=r"distil\(ensemble, start\) cannot be called as distil\(ensemble, start, seed\)"
    ):
        load_app(path)


def _app(folder: Path) -> Path:
    path = folder / "app.py"
    path.write_text(APP.replace("NAMES", "[]"))
    return path


def test_parameters_of_a_version_are_read_back_with_their_flags(tmp_path):
    write_parameters(tmp_path / "p", model(1.0, 2.0))
    assert read_parameters(tmp_path / "p").non_trainable == {"steps"}
