"""MNIST with unlike models: half of the participants have a dense network, half a convolutional one.

They agree on the digits of 2,000 public images, whose labels nobody uses. Only predictions of these travel.
"""

import os
import re
import zlib
from functools import cache

import keras
import numpy as np

from fedmq import DistillationTrainer
from fedmq.data import dirichlet, load_mnist

SHARES = 6
PUBLIC = 2000
ALPHA = 1.0  # the smaller, the more unlike are the participants' digits
HELD_OUT = 1000  # training images on which choose.py judges, in place of the test images
CHOOSING = os.environ.get("CHOOSING") == "yes"  # nobody trains on them then
DATA = os.environ.get("MNIST")  # "full", or the path of an mnist.npz; without it the sample that fedmq ships


def dense():
    return compiled([keras.layers.Flatten(), keras.layers.Dense(128, "relu")])


def convolutional():
    return compiled([
        keras.layers.Reshape((28, 28, 1)),
        keras.layers.Conv2D(16, 3, 2, activation="relu"),
        keras.layers.Conv2D(32, 3, 2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, "relu"),
    ])  # fmt: skip


def compiled(layers):
    model = keras.Sequential([keras.Input((28, 28)), *layers, keras.layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


build_model_of = {0: dense, 1: convolutional}


def build_trainer(participant_id):
    own = share_of(participant_id)
    return DistillationTrainer(
        build_model_of[own % 2], private()[own], load_public_data(), evaluation_data=load_test_data(), distil_epochs=2
    )


def build_student():
    return convolutional()


def student_training():
    return {"epochs": 10, "batch_size": 32}


def load_public_data():
    return images(mnist().x_train[public_rows()])


def load_test_data():
    if CHOOSING:
        rows = shuffled()[PUBLIC:][:HELD_OUT]
        return images(mnist().x_train[rows]), mnist().y_train[rows]
    return images(mnist().x_test), mnist().y_test


@cache
def private():
    data = mnist()
    rows = np.sort(shuffled()[PUBLIC + HELD_OUT * CHOOSING :])
    deal = dirichlet(data.y_train[rows], SHARES, alpha=ALPHA, seed=1)
    return [(images(data.x_train[rows[own]]), data.y_train[rows[own]]) for own in deal]


def public_rows():
    return shuffled()[:PUBLIC]


def shuffled():
    return np.random.default_rng(0).permutation(len(mnist().y_train))


def images(pixels):
    return pixels.astype("float32") / 255


@cache
def mnist():
    return load_mnist(DATA)


def share_of(participant_id):
    digits = re.search(r"\d+$", participant_id)
    return (int(digits[0]) - 1 if digits else zlib.crc32(participant_id.encode())) % SHARES
