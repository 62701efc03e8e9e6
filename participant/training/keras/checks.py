"""Do the data fit the model? Errors that name the place in the data and the fix, in place of a library's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras, tf
from fedmq.participant.training.keras.conversions import PARTS, leaves
from fedmq.participant.training.keras.data import Data, LazyData
from fedmq.schemas.errors import AppError, TrainerError, in_short

Model = Any
Units = Any
"""Number of units of the model's last layer, or a nest of them for several outputs; None if it is not known."""

_SPARSE = (keras.losses.SparseCategoricalCrossentropy, keras.losses.sparse_categorical_crossentropy)
_CATEGORICAL = (keras.losses.CategoricalCrossentropy, keras.losses.categorical_crossentropy)
_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.binary_crossentropy)


def takes_the_data(model: Model, data: LazyData) -> None:
    """Raise AppError if the data have no y, and Keras's own train_step needs one."""
    needs = model.loss is not None and type(model).train_step is keras.Model.train_step
    if needs and type(model).compute_loss is keras.Model.compute_loss and len(data.arrays()) == 1:
        raise AppError(
            f"{data.name} is x without y, and the model compiles the loss {_loss_name(model.loss)}: return (x, y), "
            "which is (x, x) for an autoencoder"
        )


@contextmanager
def explained(model: Model, data: LazyData) -> Iterator[None]:
    """Raise TrainerError, with what Keras says and the shapes on both sides, if a step on the data fails."""
    try:
        yield
    except (ValueError, TypeError, tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        shape = getattr(model, "input_shape", None)
        takes = "" if shape is None else f"; the model takes x of shape {shape}"
        raise TrainerError(
            f"the model cannot make a step on {data.name}: {in_short(error)} ({data.name} is {_shapes(data)}{takes})"
            f"{_other_loss(model, data)}"
        ) from error


def _other_loss(model: Model, data: LazyData) -> str:
    """Return advice if y has class numbers and the loss takes a column for each class, or the other way round."""
    arrays = data.arrays()
    y = arrays[1] if len(arrays) > 1 else None
    if not isinstance(y, np.ndarray) or not y.size:
        return ""
    one_hot = y.ndim > 1 and bool(((y == 0) | (y == 1)).all() and (y.sum(axis=-1) == 1).all())
    if one_hot and _is(model.loss, _SPARSE):
        return ": y seems to have a column for each class, so compile categorical_crossentropy, or return y.argmax(-1)"
    if y.ndim == 1 and y.dtype.kind in "iu" and _is(model.loss, _CATEGORICAL):
        return ": y seems to have the numbers of classes, so compile sparse_categorical_crossentropy"
    return ""


def check_labels(model: Model, units: Units, data: LazyData) -> None:
    """Raise AppError, with the place, if labels are outside of the range that the compiled loss takes.

    On a GPU TensorFlow would give NaN for them, and a binary cross-entropy takes them as they are.
    """
    arrays = data.arrays()
    if len(arrays) < 2:
        return
    for loss, number, (place, labels) in _pairs(model.loss, units, arrays[1]):
        if labels.dtype.kind not in "biuf" or not labels.size:
            continue
        if _is(loss, _SPARSE) and number is not None:
            bad = (labels < 0) | (labels >= number)
            if getattr(loss, "ignore_class", None) is not None:
                bad &= labels != loss.ignore_class
            if labels.dtype.kind == "f":
                why = "classes are whole numbers: number them from 0, or compile a loss for such values"
                _refuse_labels(
                    (labels != np.floor(labels)) & np.isfinite(labels), labels, f"{place} of {data.name}", why
                )
            _refuse_labels(bad, labels, f"{place} of {data.name}", (
                f"the model has {number} units, for classes from 0 to {number - 1}: number the classes from 0, or give "
                "the last layer a unit for each class"
            ))  # fmt: skip
        elif _is(loss, _BINARY) and len(arrays) == 2:
            why = "binary_crossentropy takes numbers from 0 to 1: name the classes 0 and 1"
            _refuse_labels((labels < 0) | (labels > 1), labels, f"{place} of {data.name}", why)


def units_of(model: Model, example: Data) -> Units:
    """Return the units of the model's last layer, where a loss needs them."""
    if not any(_is(loss, _SPARSE) for loss in _flat(model.loss)):
        return None
    try:
        return keras.tree.map_structure(lambda t: t.shape[-1] if len(t.shape) else None, model(example[0]))
    except (NotImplementedError, ValueError, TypeError, AttributeError, tf.errors.OpError):
        return None  # a model whose own train_step calls parts of it


def _pairs(loss: Any, units: Units, y: Any) -> Iterator[tuple[Any, int | None, tuple[str, npt.NDArray[Any]]]]:
    """Yield loss, units and labels of each output, if the three have one structure."""
    if isinstance(loss, Mapping) and isinstance(y, Mapping):
        for key in loss.keys() & y.keys():
            own = units.get(key) if isinstance(units, Mapping) else None
            yield from _pairs(loss[key], own, y[key])
    elif isinstance(loss, Sequence) and not isinstance(loss, str):
        if isinstance(y, Sequence) and len(y) == len(loss):
            several = units if isinstance(units, Sequence) and len(units) == len(loss) else [None] * len(loss)
            for one, own, labels in zip(loss, several, y, strict=True):
                yield from _pairs(one, own, labels)
    elif isinstance(y, np.ndarray):
        yield loss, units if isinstance(units, int) else None, next(leaves(y, "y"))


def _refuse_labels(bad: npt.NDArray[Any], labels: npt.NDArray[Any], where: str, why: str) -> None:
    if bad.any():
        at = np.argwhere(bad)[0].tolist()
        raise AppError(f"{where} has the label {labels[tuple(at)]} at {at}, and {why}")


def _is(loss: Any, kinds: tuple[Any, Any]) -> bool:
    cls, function = kinds
    if isinstance(loss, str):
        return loss in (cls.__name__, function.__name__)
    return type(loss) is cls or loss is function


def _flat(loss: Any) -> list[Any]:
    return keras.tree.flatten(loss) if isinstance(loss, Mapping | list | tuple) else [loss]


def _loss_name(loss: Any) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "name", None) or getattr(loss, "__name__", loss))


def _shapes(data: LazyData) -> str:
    return ", ".join(
        f"{place} {array.dtype}{list(array.shape)}"
        for what, part in zip(PARTS, data.arrays(), strict=False)
        for place, array in leaves(part, what)
    )
