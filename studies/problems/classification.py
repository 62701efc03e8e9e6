"""Softmax regression on images or other arrays, dealt out to any number of participants (studies.population.deals)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedmq.schemas.errors import InputError
from fedmq.schemas.local.files import open_to_read
from fedmq.studies.population.deals import AnyDeal, Iid, Rows
from fedmq.studies.population.population import Member
from fedmq.studies.problems.softmax import SoftmaxFederation
from fedmq.studies.value import Value

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MOST_CLASSES = 100_000
Part = Annotated[float, Field(ge=0, lt=1)]
KEPT_BACK = "{part:.0%} of the training examples, kept from all participants"


class Softmax(Value):
    """Softmax regression on a data file."""

    name: Literal["softmax"] = "softmax"
    data: str
    """An .npz file with x_train, y_train, x_test and y_test. Bytes are scaled from 0 to 255 to 0 to 1."""
    deal_by: AnyDeal = Iid()
    """Way in which a participant's `examples` are chosen."""
    validation_part: Part = 0.0
    """Part of the training examples that is kept from all participants, and evaluated on in place of the test set. The
    trials of the tuning have one."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    """Metrics of an evaluation."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files that the problem reads."""
        return (self.data,)

    def deal(self, members: Sequence[Member], seed: int) -> SoftmaxFederation:
        arrays = load_arrays(Path(self.data))
        classes = 1 + max(int(class_numbers(y).max()) for y in (arrays[1], arrays[3]))
        x, y, x_test, y_test = validated(arrays, self.validation_part, seed)
        labels = class_numbers(y)
        rows = self.deal_by.deal(labels, members, seed)
        return SoftmaxFederation(_features(x), labels, rows, classes, (_features(x_test), class_numbers(y_test)))

    def for_tuning(self, part: float) -> tuple[Softmax, str]:
        """Return the problem of the trials (studies.problems.problem.ForTuning)."""
        return self.model_copy(update={"validation_part": part}), KEPT_BACK.format(part=part)


def load_arrays(path: Path) -> tuple[npt.NDArray[Any], ...]:
    """Read x_train, y_train, x_test and y_test as the file has them.

    Raises InputError if they do not fit each other or are not numbers.
    """
    try:
        with open_to_read(path, 2**63 - 1, named_by_user=True) as raw, np.load(raw, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise InputError(f"{path} has the arrays {sorted(file.files)}, expected {', '.join(_KEYS)}")
            arrays = tuple(file[key] for key in _KEYS)
    except FileNotFoundError:
        raise InputError(f"there is no data file {path}") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as e:
        raise InputError(f"the data file {path} cannot be read as .npz: {e}") from e
    for part, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if x.ndim < 2 or len(x) != len(y) or not len(x):
            raise InputError(
                f"{path}: x_{part} is {list(x.shape)} and y_{part} {list(y.shape)}, expected as many rows in both, at "
                "least one"
            )
        if x.dtype.kind not in "fiub" or (x.dtype.kind == "f" and not np.isfinite(x).all()):
            raise InputError(f"{path}: x_{part} has values that are not finite numbers ({x.dtype})")
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise InputError(f"{path}: a row of x_train is {arrays[0].shape[1:]}, of x_test {arrays[2].shape[1:]}")
    return arrays


def validated(arrays: tuple[npt.NDArray[Any], ...], part: float, seed: int) -> tuple[npt.NDArray[Any], ...]:
    """Move a random part of the training examples into the place of the test set. `arrays` come from `load_arrays`."""
    x, y = arrays[:2]
    if not part or len(x) < 2:
        return arrays
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1003,))).permutation(len(x))
    count = min(max(1, round(part * len(x))), len(x) - 1)
    kept, left = np.sort(order[:count]), np.sort(order[count:])
    return x[left], y[left], x[kept], y[kept]


def class_numbers(y: npt.NDArray[Any]) -> Rows:
    """Return labels as int64 [n]. Raises InputError if they are not class numbers from 0."""
    flat = y.reshape(len(y), -1)
    if flat.shape[1] != 1 or flat.dtype.kind not in "iufb":
        raise InputError(f"labels are {list(y.shape)} of {y.dtype}, expected one class number for each example")
    labels = flat[:, 0].astype(np.int64)
    if (labels != flat[:, 0]).any() or labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise InputError(
            f"labels go from {flat.min()} to {flat.max()}, expected whole class numbers from 0, below {_MOST_CLASSES:,}"
        )
    return labels


def _features(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    flat = x.reshape(len(x), -1)
    scaled = flat.astype(np.float32)
    return scaled / np.float32(255) if flat.dtype == np.uint8 else scaled
