"""MNIST from the sample in the package, from a file, or from Keras's own cache (and its download)."""

from __future__ import annotations

import hashlib
import os
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fedmq.schemas.errors import InputError

SAMPLE = Path(__file__).with_name("mnist_sample.npz")
"""Sample of 8,000 training and 2,000 test images, 800 and 200 of each digit (see README.md beside it)."""

FULL_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
FULL_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
"""Digest of the file that `keras.datasets.mnist` downloads and keeps in ~/.keras/datasets."""

KEYS = ("x_train", "y_train", "x_test", "y_test")
DOWNLOAD_TIMEOUT_S = 30.0

Array = npt.NDArray[Any]


class Mnist(NamedTuple):
    """Images as uint8 [n, 28, 28], labels as uint8 [n], as Keras gives them."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


def load_mnist(source: str | Path | None = None, *, download: bool = True) -> Mnist:
    """Read the data set from `source`.

    None is the sample in the package. "full" is all 70,000 images from Keras's cache, downloaded into it on first use
    unless `download` is False. Anything else is the path of an .npz file with Keras's keys.

    Raises InputError if the file is missing or is not MNIST in Keras's layout.
    """
    if source is None:
        return read_mnist(SAMPLE)
    if str(source) != "full":
        return read_mnist(Path(source).expanduser())
    return read_mnist(full_mnist(download=download))


def full_mnist(*, download: bool = True) -> Path:
    """Return the file of all 70,000 images in Keras's cache. Raises InputError if it cannot be had."""
    cached = keras_cache()
    if not cached.exists():
        if not download:
            raise InputError(f"The full MNIST is not in Keras's cache ({cached}): download it, or give an .npz file.")
        _download(cached)
    return cached


def keras_cache() -> Path:
    """Return the path at which keras.datasets keeps the file."""
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "datasets" / "mnist.npz"


def read_mnist(path: Path) -> Mnist:
    """Read and check one .npz file. Raises InputError."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                raise InputError(
                    f"{path} has the arrays {sorted(file.files)}, expected {list(KEYS)}: "
                    "take the mnist.npz that keras.datasets downloads, or cut one: python -m fedmq.demo.data.cut_sample"
                )
            found = Mnist(*(file[key] for key in KEYS))
    except FileNotFoundError:
        raise InputError(f"There is no data file {path}: give the path of an mnist.npz, or leave it out.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} is not a readable .npz file ({e}): give an mnist.npz in Keras's layout.") from e
    for name, images, labels in (("train", found.x_train, found.y_train), ("test", found.x_test, found.y_test)):
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise InputError(
                f"{path}: x_{name} is {list(images.shape)} and y_{name} {list(labels.shape)}, "
                "expected [n, 28, 28] and [n]: this is not MNIST."
            )
    return found


def _download(target: Path) -> None:
    """Download the file into Keras's cache. It gets its name there when its digest has been checked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(FULL_URL, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            body = answer.read()
    except OSError as e:
        raise InputError(
            f"The full MNIST is not in Keras's cache ({target}) and {FULL_URL} cannot be fetched ({e}): "
            "copy an mnist.npz there, or leave the data out to take the sample that fedmq ships."
        ) from e
    digest = hashlib.sha256(body).hexdigest()
    if digest != FULL_SHA256:
        raise InputError(f"{FULL_URL} gave a file with SHA-256 {digest}, expected {FULL_SHA256}: it was not kept.")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.write_bytes(body)
    part.replace(target)
