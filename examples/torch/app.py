"""MNIST with PyTorch: the file that a user writes. fedmq finds its functions by name."""

import os
import re
import zlib

import torch

from fedmq.data import dirichlet, load_mnist

SHARES = 5
DATA = os.environ.get("MNIST")  # "full", or the path of an mnist.npz; without it the sample that fedmq ships


def build_model():
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )  # fmt: skip


def loss(output, y):
    return torch.nn.functional.cross_entropy(output, y)


def optimizer(params):
    return torch.optim.Adam(params, lr=0.001)


def load_data(participant_id):
    """Read the device's own files. Here sensor-1 to sensor-5 take their shares of MNIST instead."""
    data = load_mnist(DATA)
    rows = dirichlet(data.y_train, SHARES, alpha=1.0, seed=1)[share_of(participant_id)]
    return (data.x_train[rows] / 255.0).astype("float32"), data.y_train[rows]


def share_of(participant_id):
    digits = re.search(r"\d+$", participant_id)
    return (int(digits[0]) - 1 if digits else zlib.crc32(participant_id.encode())) % SHARES


def load_test_data():
    data = load_mnist(DATA)
    return (data.x_test / 255.0).astype("float32"), data.y_test
