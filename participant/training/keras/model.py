"""A Keras model as a federation sees it: the checks on `build_model()`, and weights as Parameters and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras
from fedmq.schemas.errors import AppError, SpecMismatch
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import TensorSpec, check_spec

Model = Any

_AUTOMATIC_SUFFIX = re.compile(r"_\d+$")


def built_model(build_model: Callable[[], Model], example: Any = None) -> Model:
    """Return the model of `build_model()`, with its weights made.

    `example` (inputs with a batch axis) builds a model that does not know its input shape yet.
    Raises AppError if the model cannot be used.
    """
    if keras.backend.backend() != "tensorflow":
        raise AppError(
            f"Keras runs on the {keras.backend.backend()} backend, fedmq's trainer needs tensorflow: "
            "set KERAS_BACKEND=tensorflow before Keras is imported"
        )
    model = build_model()
    if not isinstance(model, keras.Model):
        raise AppError(f"build_model() returned {type(model).__name__}, expected a keras.Model")
    if example is not None and not (model.built and model.weights):
        model(example)
    return model


def parameters_of(model: Model) -> Parameters:
    """Return a copy of the model's weights as Parameters, in the order of `model.weights`.

    Names are "{index:03d}/{path}", without Keras's automatic _N suffix on each part of the path. So two builds of one
    model agree, in one process or in two. Raises AppError for a model without weights.
    """
    return Parameters({name: value_of(v) for name, v in named_variables(model).items()}, _non_trainable(model))


def set_parameters(model: Model, parameters: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put `parameters` into the model, bit for bit. Raises AppError with the differences if they do not fit."""
    variables = named_variables(model)
    try:
        check_spec(Parameters(parameters), tuple(_tensor_spec(n, v) for n, v in variables.items()))
    except SpecMismatch as error:
        raise AppError(f"this app's model is not the federation's: {error}") from None
    for name, variable in variables.items():
        variable.assign(parameters[name])


def named_variables(model: Model) -> dict[str, Any]:
    """Return the model's weights by their names in `parameters_of`. Raises AppError if it has none."""
    if not model.weights:
        raise AppError(
            "the model has no weights yet: begin it with keras.Input(shape=...), or call it once in build_model()"
        )
    found = {}
    for index, variable in enumerate(model.weights):
        parts = [_AUTOMATIC_SUFFIX.sub("", part) for part in variable.path.split("/")]
        found[f"{index:03d}/{'/'.join(parts)}"] = variable
    return found


def value_of(variable: Any) -> npt.NDArray[Any]:
    """Return a copy of the variable's value. TensorFlow's own `numpy()` copies arrays, but gives numpy scalars for
    scalars."""
    return np.asarray(variable.value.numpy())


def check_plain(optimizer: Any) -> None:
    """Raise AppError unless the optimizer makes plain gradient steps, on which a correction and SCAFFOLD's K·η rest."""
    options = ("momentum", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps",
               "use_ema")  # fmt: skip
    used = [name for name in options if getattr(optimizer, name, None)]
    if type(optimizer) is not keras.optimizers.SGD or used:
        raise AppError(
            f"this app compiles {type(optimizer).__name__}{' with ' + ', '.join(used) if used else ''}, and SCAFFOLD "
            "needs plain gradient steps: compile keras.optimizers.SGD without momentum, decay and clipping"
        )


def _non_trainable(model: Model) -> frozenset[str]:
    trainable = {id(v) for v in model.trainable_weights}
    return frozenset(name for name, v in named_variables(model).items() if id(v) not in trainable)


def _tensor_spec(name: str, variable: Any) -> TensorSpec:
    return TensorSpec(name, keras.backend.standardize_dtype(variable.dtype), tuple(variable.shape), variable.trainable)
