"""The app file: plain user code that fedmq loads by path and asks for functions by name.

    build_model() -> a compiled Keras model, or a PyTorch model (fedmq.app.models has its further functions)
    load_data(participant_id) -> (x, y)
    load_test_data() -> (x, y)                      optional: the coordinator evaluates with it

or, for any other trainer,

    build_trainer(participant_id) -> a trainer      see fedmq.participant.trainer
    initial_parameters() -> {name: array}
    evaluate(parameters) -> {name: value}           optional: the coordinator evaluates with it

or, for the strategy distillation (fedmq.app.students),

    build_student() -> a compiled Keras model
    load_public_data() -> x
    build_trainer(participant_id), or load_data(participant_id) for own models of the student's kind
    load_test_data() -> (x, y)                      optional, as above
    student_training() -> {setting: value}          optional

and in all cases, if wanted,

    conditions(participant_id) -> bool              True if the participant may take work now
    distil(ensemble, start, seed) -> parameters     for the strategy feddf (fedmq.app.distilling)
    frozen(parameters) -> names                     tensors that no training changes, in place of those that the
                                                    framework knows (participant.training.keras.frozen)
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fedmq.app.models import framework_of, given_data
from fedmq.app.module_names import module_name
from fedmq.app.neighbours import import_neighbours_of
from fedmq.schemas.errors import AppError, in_short
from fedmq.schemas.local.extras import missing_extra

FUNCTIONS = (
    "build_model",
    "load_data",
    "load_test_data",
    "build_trainer",
    "initial_parameters",
    "evaluate",
    "conditions",
    "frozen",
    "build_student",
    "load_public_data",
    "student_training",
    "distil",
)
ARGUMENTS = {"load_data": 1, "build_trainer": 1, "evaluate": 1, "conditions": 1, "frozen": 1, "distil": 3}
"""Number of arguments that fedmq passes to each; the others take none."""


@dataclass(frozen=True, slots=True)
class App:
    """A loaded app file."""

    path: Path
    functions: Mapping[str, Callable[..., Any]]

    def get(self, name: str) -> Callable[..., Any] | None:
        """Return the function of this name, or None. It raises the user's errors as AppError."""
        function = self.functions.get(name)
        return None if function is None else _translated(self.path, name, function)

    def need(self, name: str, why: str) -> Callable[..., Any]:
        """Return the function of this name.

        Raises AppError if there is none; the message lists the functions that the file has.
        """
        function = self.get(name)
        if function is None:
            close = difflib.get_close_matches(name, self._public_names(), n=1, cutoff=0.6)
            hint = f" Did you mean it by {close[0]}?" if close else ""
            there = ", ".join(self._public_names()) or "no functions"
            raise AppError(f"{self.path} has no function {name}, which is needed {why}. It has {there}.{hint}")
        return function

    def _public_names(self) -> list[str]:
        return [name for name in self.functions if not name.startswith("_")]


def load_app(path: str | Path) -> App:
    """Run the app file.

    Raises AppError if it is missing, fails, or has functions of the wrong shape. Raises MissingExtra if it imports a
    package of an extra that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise AppError(f"There is no app file {path}: `app` in the federation file names it, relative to that file.")
    module = _run(path)
    functions = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and (name in FUNCTIONS or value.__module__ == module.__name__)
    }
    app = App(path, functions)
    for name in FUNCTIONS:
        if name in functions:
            _check_arguments(path, name, functions[name])
        elif hasattr(module, name):
            raise AppError(f"{path}: {name} is {type(getattr(module, name)).__name__}, expected a function.")
    return app


def _run(path: Path) -> ModuleType:
    import_neighbours_of(path)
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppError(f"The app file {path} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles inside the app look themselves up here
    try:
        spec.loader.exec_module(module)
    except SyntaxError as e:
        sys.modules.pop(name, None)
        raise AppError(f"{path}, line {e.lineno}: {e.msg}") from e
    except (Exception, SystemExit) as e:
        sys.modules.pop(name, None)
        if (missing := missing_extra(e, f"the app file {path}")) is not None:
            raise missing from e
        raise AppError(f"The app file {path} fails when it is loaded: {_last_frame(path, e)}") from e
    return module


def _check_arguments(path: Path, name: str, function: Callable[..., Any]) -> None:
    count = ARGUMENTS.get(name, 0)
    try:
        inspect.signature(function).bind(*["participant"] * count)
    except TypeError as e:
        named = {"evaluate": "parameters", "frozen": "parameters", "distil": "ensemble, start, seed"}
        expected = f"{name}({named.get(name, 'participant_id')})" if count else f"{name}()"
        raise AppError(
            f"{path}: {name}{inspect.signature(function)} cannot be called as {expected} ({e}): change its arguments."
        ) from None


def _translated(path: Path, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        try:
            return function(*arguments)
        except (Exception, SystemExit) as e:
            if (missing := missing_extra(e, f"{name} in {path}")) is not None:
                raise missing from e
            raise AppError(f"{name} in {path} failed: {_last_frame(path, e)}") from e

    return call


def _last_frame(path: Path, error: BaseException) -> str:
    """Return the error's text with the last line of the user's own file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == path] or list(frames)
    said = in_short(error)
    if not own:
        return said
    return f"{said} ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})"


def trainer_of(app: App, participant_id: str) -> Any:
    """Return the trainer of one participant: the app's own, or one of Keras or PyTorch around its model and data.

    Imports the model's framework if the app has no build_trainer. Raises AppError and MissingExtra.
    """
    build_trainer = app.get("build_trainer")
    if build_trainer is not None:
        trainer = build_trainer(participant_id)
        if not callable(getattr(trainer, "train", None)):
            raise AppError(
                f"build_trainer in {app.path} gave {type(trainer).__name__}, expected an object with "
                "train(parameters, config)."
            )
        return trainer
    model = framework_of(app, "to train with Keras or PyTorch (or build_trainer, to train with anything else)")
    return model.trainer(given_data(app, "load_data", participant_id))
