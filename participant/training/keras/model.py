"""A Keras model as a federation sees it: the checks on `build_model()`, and weights as Parameters and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.keras.derived import ADAPTED, computing_layers, digests, refresh, without_suffix
from fedmq.schemas.errors import AppError, SpecMismatch
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import TensorSpec, check_spec

Model = Any


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
    if model is None:
        raise AppError("build_model() returned None, expected a keras.Model: end it with `return model`")
    if not isinstance(model, keras.Model):
        raise AppError(
            f"build_model() returned {type(model).__name__}, expected a keras.Model, compiled: return the model alone"
        )
    if example is not None and not (model.built and model.weights):
        model(example)
    return model


def parameters_of(model: Model, names: Mapping[str, str] | None = None) -> Parameters:
    """Return a copy of the model's weights as Parameters, in the order of `model.weights`.

    Names are "{index:03d}/{path}", without Keras's automatic _N suffix on each part of the path. So two builds of one
    model agree, in one process or in two. After the weights come digests of what layers learned beside their weights
    (participant.training.keras.derived), as integer tensors. `names` (which `set_parameters` returned) renames the
    tensors, and leaves out those that it does not have. Raises AppError for a model without weights.
    """
    variables = named_variables(model)
    arrays = {name: value_of(v) for name, v in variables.items()} | _named_digests(model, len(variables))
    trainable = {id(v) for v in model.trainable_weights}
    fixed = {name for name in arrays if name not in variables or id(variables[name]) not in trainable}
    if names is not None:
        arrays = {names[name]: array for name, array in arrays.items() if name in names}
        fixed = {names[name] for name in fixed if name in names}
    return Parameters(arrays, fixed)


def set_parameters(
    model: Model, parameters: Mapping[str, npt.NDArray[Any]], *, refreshes: bool = True
) -> dict[str, str]:
    """Put `parameters` into the model, bit for bit, and compute what layers derive from them.

    With `refreshes=False` the caller does the latter. Returns their names by the model's own names
    (`received_names`). Raises AppError with the differences if they do not fit.
    """
    theirs = received_names(model, parameters)
    for name, variable in named_variables(model).items():
        variable.assign(parameters[theirs[name]])
    if refreshes:
        refresh(computing_layers(model))
    return theirs


def received_names(model: Model, parameters: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """Return the names in `parameters` by the model's own names. Raises AppError with the differences if they do not
    fit.

    A layer that was built before its model, as by `adapt`, has a shorter path. So two names of one place, shape and
    dtype match if they end with the same layer and weight. Digests that are missing, as in runs of older versions,
    are not compared.
    """
    variables = named_variables(model)
    expected = {name: _tensor_spec(name, v) for name, v in variables.items()}
    own_digests = _named_digests(model, len(variables))
    given = dict(zip((name.partition("/")[0] for name in parameters), parameters, strict=False))
    theirs = {own: _matching(own, given.get(own.partition("/")[0], own)) for own in (*expected, *own_digests)}
    for name, digest in own_digests.items():
        if theirs[name] not in parameters:
            del theirs[name]
        elif not np.array_equal(parameters[theirs[name]], digest):
            raise AppError(_other_state(name))
    back = {received: own for own, received in theirs.items()}
    renamed = Parameters({back.get(name, name): array for name, array in parameters.items()})
    specs = [*expected.values(), *(TensorSpec(n, "uint8", own_digests[n].shape) for n in own_digests if n in theirs)]
    try:
        check_spec(renamed, tuple(specs))
    except SpecMismatch as error:
        raise AppError(f"this app's model is not the federation's: {error}") from None
    return theirs


def _matching(own: str, given: str) -> str:
    """Return `given` if it names the same weight of the same layer, else `own`."""
    (_, *one), (_, *other) = own.split("/"), given.split("/")
    shared = min(len(one), len(other), 2)
    return given if shared and one[-shared:] == other[-shared:] else own


def _other_state(name: str) -> str:
    _, layer, what = name.split("/")
    if what == ADAPTED:
        return (
            f"this app's layer {layer} was adapted to other data than the federation's, and keeps what it learned as "
            "attributes, which do not travel. Keep it in weights: self.add_weight(..., trainable=False)"
        )
    return (
        f"this app's layer {layer} differs from the federation's in its {what.replace('_', ' ')}, and Keras keeps that "
        f"outside of the weights. Give all participants and the coordinator the same, as the argument `{what}` of the "
        "layer: not from `adapt` or from data of their own"
    )


def _named_digests(model: Model, count: int) -> dict[str, npt.NDArray[np.uint8]]:
    return {f"{count + i:03d}/{name}": digest for i, (name, digest) in enumerate(digests(model))}


def named_variables(model: Model) -> dict[str, Any]:
    """Return the model's weights by their names in `parameters_of`. Raises AppError if it has none."""
    if not model.weights:
        raise AppError(
            "the model has no weights yet: begin it with keras.Input(shape=...), or call it once in build_model()"
        )
    found = {}
    for index, variable in enumerate(model.weights):
        parts = [without_suffix(part) for part in variable.path.split("/")]
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


def _tensor_spec(name: str, variable: Any) -> TensorSpec:
    return TensorSpec(name, keras.backend.standardize_dtype(variable.dtype), tuple(variable.shape), variable.trainable)
