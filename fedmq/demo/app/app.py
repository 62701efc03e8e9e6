"""The demo's app: MNIST, dealt out unequally to participants of different speeds. `fedmq demo` copies it.

demo.json beside it says which data, how many participants, and how much slower than full speed each one is.
"""

import json
import time
from pathlib import Path

import keras

from fedmq import KerasTrainer, load_mnist
from fedmq.demo.data import dirichlet

DEMO = json.loads(Path(__file__).with_name("demo.json").read_text())
PARTICIPANTS = DEMO["participants"]


def build_model():
    """A small dense network."""
    model = keras.Sequential(
        [
            keras.layers.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def load_data(participant_id):
    """Its part of the training images: a share of its own size, with a mix of digits of its own."""
    data = load_mnist(DEMO["data"])
    deal = dirichlet(data.y_train, len(PARTICIPANTS), DEMO["alpha"], DEMO["seed"], weights=DEMO["weights"])
    rows = deal[PARTICIPANTS.index(participant_id)]
    return data.x_train[rows].astype("float32") / 255, data.y_train[rows]


def load_test_data():
    """What the coordinator evaluates with."""
    data = load_mnist(DEMO["data"])
    return data.x_test.astype("float32") / 255, data.y_test


class Slowed:
    """A trainer on a slower machine: it takes a given time longer for each task."""

    def __init__(self, trainer, extra_s):
        self.trainer = trainer
        self.extra_s = extra_s
        self.num_examples = trainer.num_examples

    def train(self, parameters, config):
        """As the trainer inside, but later."""
        result = self.trainer.train(parameters, config)
        time.sleep(self.extra_s)
        return result


def build_trainer(participant_id):
    """Keras, on a machine of its own speed."""
    extra_s = DEMO["extra_s"][PARTICIPANTS.index(participant_id)]
    return Slowed(KerasTrainer(build_model, load_data(participant_id)), extra_s)
