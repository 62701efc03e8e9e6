"""MNIST with very unlike participants: the coordinator distils each version on images without labels."""

import os
import re
import zlib
from functools import cache

import keras
import numpy as np

import fedmq
from fedmq.data import dirichlet, load_mnist

SHARES = 10
PUBLIC = 1000
ALPHA = float(os.environ.get("ALPHA", "0.1"))  # the smaller, the more unlike are the participants' digits
STEPS = int(os.environ.get("STEPS", "300"))  # of each distillation
DATA = os.environ.get("MNIST")  # "full", or the path of an mnist.npz; without it the sample that fedmq ships


def build_model():
    model = keras.Sequential([
        keras.Input((784,)),
        keras.layers.Dense(64, "relu"),
        keras.layers.Dense(10),
    ])  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


def load_data(participant_id):
    return private()[share_of(participant_id)]


def load_test_data():
    return images(mnist().x_test), mnist().y_test


def load_public_data():
    return images(mnist().x_train[shuffled()[:PUBLIC]])  # their labels are not used


distiller = fedmq.Distiller(build_model, load_public_data, steps=STEPS)


def distil(ensemble, start, seed):
    return distiller.distil(ensemble, start, seed)


@cache
def private():
    data, rows = mnist(), np.sort(shuffled()[PUBLIC:])
    deal = dirichlet(data.y_train[rows], SHARES, alpha=ALPHA, seed=1)
    return [(images(data.x_train[rows[own]]), data.y_train[rows[own]]) for own in deal]


def shuffled():
    return np.random.default_rng(0).permutation(len(mnist().y_train))


def images(pixels):
    return pixels.reshape(len(pixels), 784).astype("float32") / 255


@cache
def mnist():
    return load_mnist(DATA)


def share_of(participant_id):
    digits = re.search(r"\d+$", participant_id)
    return (int(digits[0]) - 1 if digits else zlib.crc32(participant_id.encode())) % SHARES
