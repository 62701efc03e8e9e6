"""The demo's app: MNIST, dealt out unequally to participants of different speeds. `fedmq demo` copies it.

demo.json beside it names the data and the participants, and has how many seconds longer each takes for a task.
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
    """Build a small dense network."""
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
    """Return the participant's training images: a share of its own size, with its own mix of digits."""
    data = load_mnist(DEMO["data"])
    deal = dirichlet(data.y_train, len(PARTICIPANTS), DEMO["alpha"], DEMO["seed"], weights=DEMO["weights"])
    rows = deal[PARTICIPANTS.index(participant_id)]
    return data.x_train[rows].astype("float32") / 255, data.y_train[rows]


def load_test_data():
    """Return the images with which the coordinator evaluates."""
    data = load_mnist(DEMO["data"])
    return data.x_test.astype("float32") / 255, data.y_test


class Slowed:
    """A trainer on a slower machine: each task takes `extra_s` seconds longer."""

    def __init__(self, trainer, extra_s):
        self.trainer = trainer
        self.extra_s = extra_s
        self.num_examples = trainer.num_examples

    def train(self, parameters, config):
        """Train as the trainer inside, and return later."""
        result = self.trainer.train(parameters, config)
        time.sleep(self.extra_s)
        return result


def build_trainer(participant_id):
    """Return a Keras trainer on a machine of the participant's own speed."""
    extra_s = DEMO["extra_s"][PARTICIPANTS.index(participant_id)]
    return Slowed(KerasTrainer(build_model, load_data(participant_id)), extra_s)
