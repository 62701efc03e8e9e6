"""Data that `load_data` may return, as arrays: (x, y) or (x, y, sample_weight), nests of arrays of one length.

Python lists of numbers or texts, tensors and tables become arrays. Class weights, {class: weight} in the place of
sample weights, become sample weights. Other things do not: then the error has the line that converts them.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras, tf
from fedmq.schemas.errors import AppError, shown

Array = npt.NDArray[Any]
Data = tuple[Any, ...]
"""(x,), (x, y) or (x, y, sample_weight); x and y are arrays or nests (dict, tuple, list) of arrays of one length."""

PARTS = ("x", "y", "sample_weight")
_SCALARS = (int, float, complex, str, bytes, np.generic)
_BATCHES = "x, y = map(np.concatenate, zip(*{}))"


def as_data(given: Any, name: str) -> Data:
    """Return the data that a user's function gave as arrays. Raises AppError, with the conversion, if it cannot."""
    _refuse_pipelines(given, name)
    if not isinstance(given, tuple | list) or not 1 <= len(given) <= 3 or (isinstance(given, list) and _is_flat(given)):
        text = shown(given) if given is not None else "None"
        raise AppError(f"{name} is {text}, expected (x, y) or (x, y, sample_weight): return that tuple")
    parts = list(given)
    while len(parts) > 1 and parts[-1] is None:
        parts.pop()
    for part, what in zip(parts, PARTS, strict=False):
        if part is None:
            raise AppError(f"{name} has None in the place of {what}, expected arrays there")
    for part, what in zip(parts, PARTS, strict=False):
        _refuse_pipelines(part, f"{what} of {name}")
    weights = parts.pop() if len(parts) == 3 and is_class_weight(parts[2]) else None
    made = [_as_arrays(part, f"{what} of {name}") for part, what in zip(parts, PARTS, strict=False)]
    if weights is not None:
        made.append(_sample_weights(weights, made[1], name))
    lengths = {path: len(leaf) for part, what in zip(made, PARTS, strict=False) for path, leaf in leaves(part, what)}
    if len(set(lengths.values())) != 1:
        raise AppError(_different_lengths(lengths, made[0], name))
    return tuple(made)


def leaves(part: Any, what: str) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a nest with their places in it, as in x['image'] or y[0]."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from leaves(value, f"{what}[{key!r}]")
    elif isinstance(part, tuple | list):
        for index, value in enumerate(part):
            yield from leaves(value, f"{what}[{index}]")
    else:
        yield what, part


def as_trained(array: Array) -> Array:
    """Return floats in Keras's float type, as `fit` has them."""
    if array.dtype.kind == "f" and array.dtype.name != keras.config.floatx():
        return array.astype(keras.config.floatx())
    return array


def is_class_weight(given: Any) -> bool:
    """Return True for {class: weight}, with whole numbers as classes."""
    return isinstance(given, Mapping) and bool(given) and all(isinstance(key, int | np.integer) for key in given)


def _different_lengths(lengths: Mapping[str, int], x: Any, name: str) -> str:
    if not lengths:
        return f"{name} has no arrays, expected (x, y)"
    firsts: dict[int, str] = {}
    for path, length in lengths.items():
        firsts.setdefault(length, path)
    listed = ", ".join(f"{path} has {length}" for length, path in firsts.items())
    several = isinstance(x, list | tuple) and len(x) in firsts
    advice = f". A list of arrays is a list of inputs: for {len(x)} examples return np.stack(x)" if several else ""
    return f"{name} has arrays of different lengths: {listed}. Each needs one entry for each example{advice}"


def _as_arrays(part: Any, place: str) -> Any:
    if isinstance(part, Mapping):
        return {key: _as_arrays(value, f"{place} at {key!r}") for key, value in part.items()}
    if isinstance(part, tuple | list) and not _is_flat(part):
        made = [_as_arrays(value, f"{place} at {i}") for i, value in enumerate(part)]
        return type(part)(*made) if hasattr(part, "_fields") else type(part)(made)
    return _array(part, place)


def _is_flat(part: Any) -> bool:
    """Return True for a number or a text, and for a list of them at any depth, which has no array in it."""
    if isinstance(part, tuple | list):
        return all(_is_flat(value) for value in part)
    return isinstance(part, _SCALARS)


def _array(leaf: Any, place: str) -> Array:
    """Return a leaf as an array with an axis of examples. Raises AppError."""
    if isinstance(leaf, tf.RaggedTensor):
        raise AppError(f"{place} is a RaggedTensor, expected an array: convert it by x.to_tensor().numpy()")
    if isinstance(leaf, tf.SparseTensor):
        raise AppError(f"{place} is a SparseTensor, expected an array: convert it by tf.sparse.to_dense(x).numpy()")
    if hasattr(leaf, "toarray"):
        raise AppError(f"{place} is a sparse {type(leaf).__name__}, expected an array: convert it by x.toarray()")
    try:
        array = np.asarray(leaf)
    except (ValueError, TypeError, RuntimeError) as error:
        array = np.empty(1, object)
        if not isinstance(leaf, tuple | list):
            raise AppError(f"{place} is {shown(leaf)}, which numpy makes no array of: {error}") from None
    if array.ndim == 0:
        raise AppError(f"{place} is a scalar ({shown(leaf)}), expected an array with one entry for each example")
    if array.dtype == object and all(isinstance(value, str | bytes) for value in array.flat):
        array = array.astype(str)
    if array.dtype == object and isinstance(leaf, tuple | list):
        raise AppError(
            f"{place} is a list whose entries have different lengths, expected one shape for all: pad them, as by "
            "keras.utils.pad_sequences(x, padding='post')"
        )
    if array.dtype.kind not in "biufUS" and array.dtype.name != "bfloat16":
        raise AppError(
            f"{place} has the dtype {array.dtype}, expected numbers or texts: convert it, as by "
            "np.stack(x).astype('float32'), or x.astype('float32') for a table's columns"
        )
    return as_trained(array)


def _sample_weights(weights: Mapping[int, float], labels: Any, name: str) -> Array:
    """Return a weight for each example by its class, as Keras has it: 1 for a class without one."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biuf":
        raise AppError(f"{name} has class weights, which need one array of classes as y: give sample weights instead")
    one_hot = labels.ndim > 1 and labels.shape[-1] != 1
    classes = labels.argmax(-1) if one_hot else np.round(labels).astype(np.int64).reshape(labels.shape[:1] or -1)
    if classes.ndim != 1:
        raise AppError(f"{name} has class weights, which need one class for each example: give sample weights instead")
    found = np.ones(len(classes), keras.config.floatx())
    for label, weight in weights.items():
        found[classes == label] = weight
    return found


def _refuse_pipelines(given: Any, place: str) -> None:
    """Raise AppError, with the line that makes arrays of it, for something that gives its examples bit by bit."""
    if isinstance(given, tf.data.Dataset):
        kind, line = "tf.data.Dataset", _BATCHES.format("dataset.as_numpy_iterator()") + " (of batches)"
    elif isinstance(given, keras.utils.PyDataset):
        kind, line = "PyDataset", _BATCHES.format("(dataset[i] for i in range(len(dataset)))")
    elif isinstance(given, types.GeneratorType) or hasattr(given, "__next__"):
        kind = "generator" if isinstance(given, types.GeneratorType) else type(given).__name__
        line = _BATCHES.format("batches") + ", or map(np.stack, zip(*examples)) of single examples"
    elif type(given).__name__ == "DataLoader":
        kind, line = "DataLoader", _BATCHES.format("((x.numpy(), y.numpy()) for x, y in loader)")
    else:
        return
    raise AppError(
        f"{place} is a {kind}, expected arrays, which the task's seed puts in order: collect it once, by {line}, and "
        "return (x, y)"
    )
