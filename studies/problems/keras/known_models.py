"""The compiled models and the data that the cohort path knows: losses, metrics, optimizers, shapes and types."""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras, tf
from fedmq.schemas.errors import in_short
from fedmq.studies.problems.keras.known_layers import (
    DTYPES,
    Checks,
    any_value,
    check_config,
    check_layers,
    check_losses,
    check_methods,
    config_of,
    embeddings,
    number,
    off,
    only,
)
from fedmq.studies.problems.keras.rules import NotVectorised, Rule

_CROSS_ENTROPY: Checks = {"from_logits": any_value, "label_smoothing": number, "axis": only(-1)}
_SPARSE: Checks = {"from_logits": any_value, "ignore_class": only(None), "axis": only(-1)}
_FOCAL: Checks = {**_CROSS_ENTROPY, "alpha": number, "gamma": number}
_losses, _metrics = keras.losses, keras.metrics
_LOSSES: dict[type, Checks] = {
    _losses.SparseCategoricalCrossentropy: _SPARSE,
    _losses.CategoricalCrossentropy: _CROSS_ENTROPY,
    _losses.BinaryCrossentropy: _CROSS_ENTROPY,
    _losses.CategoricalFocalCrossentropy: _FOCAL,
    _losses.BinaryFocalCrossentropy: {**_FOCAL, "apply_class_balancing": any_value},
    _losses.MeanSquaredError: {},
    _losses.MeanAbsoluteError: {},
    _losses.MeanAbsolutePercentageError: {},
    _losses.MeanSquaredLogarithmicError: {},
    _losses.Huber: {"delta": number},
    _losses.LogCosh: {},
    _losses.Poisson: {},
    _losses.KLDivergence: {},
    _losses.CategoricalHinge: {},
    _losses.CosineSimilarity: {"axis": only(-1)},
}
"""Losses that have a value for each example, and their arguments."""
_FUNCTIONS = {cls().fn: cls for cls in _LOSSES}
_METRICS: dict[type, Checks] = {
    _metrics.SparseCategoricalAccuracy: {},
    _metrics.CategoricalAccuracy: {},
    _metrics.BinaryAccuracy: {"threshold": number},
    _metrics.SparseTopKCategoricalAccuracy: {"k": number, "from_sorted_ids": off},
    _metrics.TopKCategoricalAccuracy: {"k": number},
    _metrics.SparseCategoricalCrossentropy: _SPARSE,
    _metrics.CategoricalCrossentropy: _CROSS_ENTROPY,
    _metrics.BinaryCrossentropy: _CROSS_ENTROPY,
    _metrics.MeanSquaredError: {},
    _metrics.MeanAbsoluteError: {},
}
"""Metrics that are means over examples."""
_OPTIMIZER: Checks = {
    **dict.fromkeys(("name", "learning_rate", "ema_momentum", "ema_overwrite_frequency"), any_value),
    **dict.fromkeys(("weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema"), off),
    "loss_scale_factor": only(None),
    "gradient_accumulation_steps": only(None),
}
_OPTIMIZERS: dict[type, Checks] = {
    keras.optimizers.SGD: {**_OPTIMIZER, "momentum": number, "nesterov": any_value},
    keras.optimizers.Adam: {**_OPTIMIZER, "beta_1": number, "beta_2": number, "epsilon": number, "amsgrad": off},
}


@dataclass(frozen=True)
class KnownModel:
    """A model of which everything is known."""

    rule: Rule
    loss: type
    whole_batch: str | None
    """Name of a layer that looks at the whole batch."""
    metrics: tuple[Any, ...]


def known_arrays(data: tuple[Any, ...]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return x and y. Raises NotVectorised unless they are two arrays of a known type."""
    if len(data) != 2:
        raise NotVectorised("the examples have weights")
    for what, array in zip(("inputs", "labels"), data, strict=True):
        if not isinstance(array, np.ndarray):
            raise NotVectorised(f"the {what} are a {type(array).__name__} of arrays, known is one array")
        if array.dtype.name not in DTYPES:
            raise NotVectorised(f"the {what} are of type {array.dtype}, known are {', '.join(sorted(DTYPES))}")
    return data[0], data[1]


def known_model(model: Any, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> KnownModel:
    """Look at everything in a model, and call its loss and metrics once, so that they have their variables.

    `x` and `y` are all examples: what they hold has to be known too, because a compiled program checks nothing. Raises
    NotVectorised, with the construct and the reason, if something is not known.
    """
    if keras.config.floatx() != "float32":
        raise NotVectorised(f"Keras's floatx is {keras.config.floatx()}, known is float32")
    rule = _known_optimizer(model.optimizer)
    whole_batch = check_layers(model)
    if embeddings(model) and rule.num_slots:  # Keras moves the slots of the words in a batch alone
        raise NotVectorised("it has an Embedding, known with SGD without momentum")
    loss = _known_loss(model)
    check_examples(model, loss, x, y)
    try:
        with tf.GradientTape() as tape:
            predicted = model(x[:1], training=True)
            if isinstance(predicted, dict | list | tuple):
                raise NotVectorised("the model gives named outputs")
            if len(predicted) != 1:  # a constant in it has a batch's length of its own
                raise NotVectorised(f"the model gives {len(predicted)} predictions for one example")
            value = model.compute_loss(x[:1], y[:1], predicted)
    except (tf.errors.OpError, NotImplementedError, TypeError, ValueError) as error:
        raise NotVectorised(f"it cannot be called on one example: {in_short(error)}") from None
    check_losses(model)
    for variable, gradient in zip(model.trainable_weights, tape.gradient(value, model.trainable_weights), strict=True):
        if gradient is None:  # the optimizer leaves it out
            raise NotVectorised(f"the weight {variable.path} has no part in the loss")
    model.compute_metrics(x[:1], y[:1], predicted)
    return KnownModel(rule, loss, whole_batch, _known_metrics(model))


def _known_optimizer(optimizer: Any) -> Rule:
    name = type(optimizer).__name__
    checks = _OPTIMIZERS.get(type(optimizer))
    if checks is None:
        raise NotVectorised(f"its optimizer is {name}, known are SGD and Adam")
    check_methods(optimizer, f"its {name}")
    if not isinstance(optimizer._learning_rate, keras.Variable):
        raise NotVectorised(f"the learning rate of its {name} has a schedule")
    check_config(config_of(optimizer.get_config, f"its {name}"), checks, f"its {name}")
    if any(v is not optimizer._learning_rate and np.any(v.numpy()) for v in optimizer.variables):
        raise NotVectorised(f"its {name} begins with a state of earlier steps")
    return Rule(optimizer)


def _known_loss(model: Any) -> type:
    """Return the class of the model's loss."""
    config = config_of(model.get_compile_config, "compile()")
    for key in ("loss_weights", "weighted_metrics"):
        if config.get(key, "?") is not None:
            raise NotVectorised(f"it is compiled with {key}")
    if config.get("run_eagerly", "?") is not False:
        raise NotVectorised("it is compiled with run_eagerly")
    loss: Any = _by_name(model.loss) if isinstance(model.loss, str) else model.loss
    by_function = _of_function(loss)
    if by_function is not None:
        return by_function
    cls: type = type(loss)
    checks = _LOSSES.get(cls)
    if checks is None:
        shown = getattr(loss, "__name__", cls.__name__)
        raise NotVectorised(f"its loss is {shown}, which the cohort path does not know as one of single examples")
    what = f"its {cls.__name__}"
    check_methods(loss, what)
    if _of_function(loss.fn) is not cls:
        raise NotVectorised(f"{what} has a function of its own")
    if loss.reduction != "sum_over_batch_size" or loss.dtype != "float32":
        raise NotVectorised(f"{what} has reduction = {loss.reduction!r} in {loss.dtype}, known is the mean in float32")
    check_config(loss._fn_kwargs, checks, what)
    return cls


def _of_function(loss: Any) -> type | None:
    """Return the class of a loss that is one of Keras's functions."""
    return _FUNCTIONS.get(loss) if isinstance(loss, FunctionType) else None


def _by_name(name: str) -> Any:
    try:
        return _losses.get(name)
    except ValueError:
        return None


def check_examples(model: Any, loss: type, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """Raise NotVectorised unless each example has the shape that the model and the loss take, and known values."""
    takes, gives = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    if x.shape[1:] != takes or x.ndim < 2:
        raise NotVectorised(f"an example has the shape {list(x.shape[1:])}, the model takes {list(takes)}")
    labels = y.shape[1:]
    sparse = loss is _losses.SparseCategoricalCrossentropy
    fits = (gives[:-1], (*gives[:-1], 1)) if sparse else (gives, gives[:-1] if gives[-1:] == (1,) else gives)
    if not gives or None in gives or labels not in fits:
        raise NotVectorised(f"a label has the shape {list(labels)}, and the model gives {list(gives)}")
    if sparse and len(y):
        _check_numbers(y, gives[-1], "labels")
    for layer in embeddings(model):
        _check_numbers(x, layer.input_dim, f"inputs of {layer.name!r}")


def _check_numbers(array: npt.NDArray[Any], count: int, what: str) -> None:
    """Raise NotVectorised unless all values are whole numbers below `count`. The plain path says what is wrong."""
    if array.dtype.kind == "f" and not (np.floor(array) == array).all():
        raise NotVectorised(f"the {what} are not all whole numbers")
    if len(array) and not (array.min() >= 0 and array.max() < count):
        raise NotVectorised(f"the {what} go from {array.min()} to {array.max()}, expected 0 to {count - 1}")


def _known_metrics(model: Any) -> tuple[Any, ...]:
    tracker, *others = model.metrics
    if type(tracker) is not _metrics.Mean or len(others) > 1:
        raise NotVectorised(f"it has the metrics {[m.name for m in model.metrics]}, known are those of compile()")
    found = tuple(others[0].metrics) if others else ()
    for metric in found:
        checks = _METRICS.get(type(metric))
        if checks is None:
            shown = f"{metric.name!r} is a {type(metric).__name__}"
            raise NotVectorised(f"its metric {shown}, which the cohort path does not know")
        what = f"its metric {metric.name!r}"
        check_methods(metric, what)
        if metric._fn is not type(metric)()._fn or metric.dtype != "float32":
            raise NotVectorised(f"{what} has a function of its own, or is not in float32")
        check_config(metric._fn_kwargs, checks, what)
    names = [metric.name for metric in found]
    if len({"loss", *names}) != len(names) + 1:
        raise NotVectorised(f"its metrics have the names {names}, known are different ones")
    return found
