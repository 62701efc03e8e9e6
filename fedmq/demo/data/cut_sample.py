"""Cut the package's MNIST sample from the full file: `python -m fedmq.demo.data.cut_sample mnist.npz [OUT]`.

The sample has the first images of each digit, in the file's order: the same source gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedmq.demo.data.mnist import SAMPLE, Array, Mnist, read_mnist

TRAIN_PER_DIGIT = 800
TEST_PER_DIGIT = 200


def first_of_each(labels: Array, count: int) -> Array:
    """Return the row numbers of the first `count` examples of each label, in the order of the file."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def cut(full: Mnist, train_per_digit: int = TRAIN_PER_DIGIT, test_per_digit: int = TEST_PER_DIGIT) -> Mnist:
    """Return a class-balanced part of `full`."""
    train = first_of_each(full.y_train, train_per_digit)
    test = first_of_each(full.y_test, test_per_digit)
    return Mnist(full.x_train[train], full.y_train[train], full.x_test[test], full.y_test[test])


def main(argv: list[str]) -> None:
    """Read the full file and write the sample."""
    if len(argv) not in (1, 2):
        sys.exit("usage: python -m fedmq.demo.data.cut_sample MNIST_NPZ [OUT]")
    target = Path(argv[1]) if len(argv) == 2 else SAMPLE
    sample = cut(read_mnist(Path(argv[0])))
    np.savez_compressed(target, **sample._asdict())
    print(f"{target}: {len(sample.y_train)} training and {len(sample.y_test)} test images")


if __name__ == "__main__":
    main(sys.argv[1:])
