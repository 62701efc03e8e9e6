"""An app's model, by its framework: version 0, a trainer, the central evaluation and the exported file.

`build_model()` decides. If it returns a torch.nn.Module, the app also has

    loss(output, y) -> the mean loss of a batch
    optimizer(params) -> a new torch.optim.Optimizer
    metrics(output, y) -> {name: value}             optional
    collate(items) -> (x, y)                        optional: for items of a Dataset that are no pairs

and in any other case the model is a compiled Keras model. An app with build_student in place of build_model has a
consensus as its model, and a Keras model that learns it (fedmq.app.students). Each framework is imported when it is
first needed, and an app of the one never loads the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fedmq.schemas.errors import AppError, shown
from fedmq.schemas.local.files import remove, tighten
from fedmq.schemas.parameters import Parameters

Evaluate = Callable[[Parameters], Mapping[str, float]]
_OF_TORCH = ("loss", "optimizer")
_TRAINING = "to train a PyTorch model (or build_trainer, for a fedmq.TorchTrainer of your making)"


class Functions(Protocol):
    """The part of an app (fedmq.app.app.App) that is needed here."""

    @property
    def path(self) -> Path: ...

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]: ...

    def get(self, name: str) -> Callable[..., Any] | None: ...

    def need(self, name: str, why: str) -> Callable[..., Any]: ...


class Framework(Protocol):
    """An app's model."""

    suffix: str
    """Ending of the exported file's name."""

    def initial(self) -> Parameters:
        """Return version 0. Raises AppError."""

    def frozen(self) -> frozenset[str]:
        """Return the names of the tensors that are known not to change in any training. Raises AppError."""

    def trainable(self) -> frozenset[str]:
        """Return the names of the tensors that an optimizer may step, frozen ones among them. Raises AppError."""

    def trainer(self, data: Any) -> Any:
        """Return a trainer of the model on these data. Raises AppError."""

    def evaluator(self, test_data: Any) -> Evaluate:
        """Return the evaluation on these data. Raises AppError."""

    def export(self, parameters: Parameters, target: Path) -> None:
        """Write the model with these parameters to a file, whole or not at all. Raises AppError."""


def framework_of(app: Functions, why: str) -> Framework:
    """Return the app's model. `why` says what it is needed for. Raises AppError if the app has none."""
    if "build_student" in app.functions:
        return StudentModel(app)
    app.need("build_model", why)
    return TorchModel(app) if is_torch(app) else KerasModel(app)


def has_model(app: Functions) -> bool:
    """Return True if the app has a model of a framework: build_model, or build_student."""
    return "build_model" in app.functions or "build_student" in app.functions


def is_torch(app: Functions) -> bool:
    """Return True if `build_model()` returns a torch.nn.Module.

    It is called only if the app has imported PyTorch, or has the functions that go with it.
    """
    if "torch" not in sys.modules and not all(name in app.functions for name in _OF_TORCH):
        return False
    build_model = app.get("build_model")
    model = None if build_model is None else build_model()
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


class KerasModel:
    """A compiled Keras model."""

    suffix = ".keras"

    def __init__(self, app: Functions, function: str = "build_model") -> None:
        self._build_model = app.need(function, "for a Keras model")

    def initial(self) -> Parameters:
        """See Framework."""
        from fedmq.participant.training.keras.model import built_model, parameters_of

        return parameters_of(built_model(self._build_model))

    def frozen(self) -> frozenset[str]:
        """See Framework."""
        from fedmq.participant.training.keras.frozen import frozen_names
        from fedmq.participant.training.keras.model import built_model

        return frozen_names(built_model(self._build_model))

    def trainable(self) -> frozenset[str]:
        """See Framework."""
        from fedmq.participant.training.keras.frozen import made_to_train
        from fedmq.participant.training.keras.model import built_model

        return frozenset(made_to_train(built_model(self._build_model)))

    def trainer(self, data: Any) -> Any:
        """See Framework."""
        from fedmq.participant.training.keras.trainer import KerasTrainer

        return KerasTrainer(self._build_model, data)

    def evaluator(self, test_data: Any) -> Evaluate:
        """See Framework."""
        from fedmq.participant.training.keras.trainer import KerasTrainer

        return KerasTrainer(self._build_model, evaluation_data=test_data).evaluate

    def export(self, parameters: Parameters, target: Path) -> None:
        """See Framework."""
        from fedmq.participant.training.keras.model import built_model, set_parameters

        model = built_model(self._build_model)
        set_parameters(model, parameters)
        if getattr(model, "optimizer", None) is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)  # else Keras warns of its variables at each load
        _written(target, model.save)


class TorchModel:
    """A PyTorch model, with the app's own loss and optimizer."""

    suffix = ".pt"

    def __init__(self, app: Functions) -> None:
        self._app = app
        self._build_model = app.need("build_model", "for a PyTorch model")

    def initial(self) -> Parameters:
        """See Framework."""
        from fedmq.participant.training.torch.model import built_model, parameters_of

        return parameters_of(built_model(self._build_model))

    def frozen(self) -> frozenset[str]:
        """See Framework."""
        from fedmq.participant.training.torch.model import built_model, frozen_names

        return frozen_names(built_model(self._build_model))

    def trainable(self) -> frozenset[str]:
        """See Framework."""
        from fedmq.participant.training.torch.model import built_model, made_to_train

        return frozenset(made_to_train(built_model(self._build_model)))

    def trainer(self, data: Any = None, evaluation_data: Any = None) -> Any:
        """Return a TorchTrainer. See Framework."""
        from fedmq.participant.training.torch.trainer import TorchTrainer

        functions = self._app.functions  # without the app's own AppErrors: a batch that fails costs one task
        for name in _OF_TORCH[: 1 if data is None else 2]:
            self._app.need(name, "to evaluate a PyTorch model" if data is None else _TRAINING)
        return TorchTrainer(
            self._build_model,
            functions["loss"],
            data,
            functions.get("optimizer"),
            evaluation_data=evaluation_data,
            metrics=functions.get("metrics"),
            collate=functions.get("collate"),
        )

    def evaluator(self, test_data: Any) -> Evaluate:
        """See Framework."""
        evaluate: Evaluate = self.trainer(evaluation_data=test_data).evaluate
        return evaluate

    def export(self, parameters: Parameters, target: Path) -> None:
        """Write the state_dict, with all its names, as torch.load(target, weights_only=True) reads it."""
        from fedmq.participant.training.torch.model import built_model, save

        _written(target, lambda beside: save(built_model(self._build_model), parameters, beside))


def frozen_flags(app: Functions, parameters: Parameters, model: Callable[[], Framework]) -> dict[str, bool]:
    """Return the tensors of version 0 that no update moves, each with True if an optimizer would step it once it is not
    frozen any more. Raises AppError."""
    names = frozen_names(app, parameters, model)
    if not names:
        return {}
    known = frozenset(parameters.keys() - parameters.non_trainable)
    if has_model(app) and app.get("initial_parameters") is None:
        known = model().trainable()
    order = [*(name for name in parameters if name in names), *sorted(names - parameters.keys())]
    return {name: name in known for name in order}


def frozen_names(app: Functions, parameters: Mapping[str, Any], model: Callable[[], Framework]) -> frozenset[str]:
    """Return the names of the tensors of version 0 that no update moves: the app's own answer, or those that the
    framework knows. A trainer of the app's own may change everything. Raises AppError."""
    own = app.get("frozen")
    if own is not None:
        named = own(parameters)
        if isinstance(named, str) or not isinstance(named, Iterable) or not all(isinstance(n, str) for n in named):
            raise AppError(f"frozen in {app.path} gave {shown(named)}, expected a list of names of tensors")
        return frozenset(named)
    if app.get("build_model") is None or app.get("build_trainer") is not None:
        return frozenset()
    return model().frozen() & parameters.keys()


class StudentModel:
    """A consensus, and the Keras model that learns it."""

    suffix = ".keras"

    def __init__(self, app: Functions) -> None:
        from fedmq.app.students import Students

        self._keras = KerasModel(app, "build_student")
        self._students = Students(app)

    def initial(self) -> Parameters:
        """See Framework."""
        return self._students.initial()

    def frozen(self) -> frozenset[str]:
        """See Framework."""
        return frozenset()

    def trainable(self) -> frozenset[str]:
        """See Framework."""
        return frozenset()

    def trainer(self, data: Any) -> Any:
        """See Framework."""
        return self._students.trainer(data)

    def evaluator(self, test_data: Any) -> Evaluate:
        """See Framework."""
        evaluate = self._keras.evaluator(test_data)
        return lambda parameters: evaluate(self._students.distilled(parameters))

    def export(self, parameters: Parameters, target: Path) -> None:
        """Write the student of these predictions. See Framework."""
        self._keras.export(self._students.distilled(parameters), target)


def given_data(app: Functions, name: str, *arguments: Any) -> Any:
    """Return what load_data or load_test_data gives. Raises AppError if that is nothing."""
    data = app.need(name, "for a participant's examples" if arguments else "to evaluate")(*arguments)
    if data is None:
        raise AppError(f"{name} in {app.path} returned None, expected (x, y): end it with `return x, y`")
    return data


def _written(target: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: a restart exports again only if the file is missing."""
    beside = target.with_name(f"{target.stem}.part{target.suffix}")
    remove(beside)
    write(beside)
    tighten(beside)
    beside.replace(target)
