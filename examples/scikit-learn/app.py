"""MNIST with scikit-learn: a linear classifier on random features. Its parameters are coef_ and intercept_."""

import os
import re
import zlib
from functools import cache

import numpy as np
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import SGDClassifier

from fedmq import TrainResult
from fedmq.data import dirichlet, load_mnist

SHARES = 5
FEATURES = 1000
DATA = os.environ.get("MNIST")  # "full", or the path of an mnist.npz; without it the sample that fedmq ships


def classifier(parameters, learning_rate=1.0, seed=0):
    model = SGDClassifier(
        "log_loss", alpha=1e-6, learning_rate="constant", eta0=learning_rate, random_state=seed % 2**32
    )
    model.partial_fit(np.zeros((10, FEATURES), "float32"), np.arange(10), classes=np.arange(10))  # makes the arrays
    model.coef_[:], model.intercept_[:] = parameters["coef"], parameters["intercept"]
    return model


class LinearTrainer:
    def __init__(self, x, y):
        self.x, self.y, self.num_examples = x, y, len(x)

    def train(self, parameters, config):
        if config.proximal_mu:
            raise ValueError("SGDClassifier has no FedProx: leave training.proximal_mu out")
        model = classifier(parameters, config.learning_rate or 1.0, config.seed)
        rng = np.random.default_rng(config.seed)
        left = config.max_steps or config.epochs * len(self.x)
        for _ in range(config.epochs):
            rows = rng.permutation(len(self.x))[:left]  # one step for each example
            if len(rows):
                model.partial_fit(self.x[rows], self.y[rows])
            left -= len(rows)
        steps = (config.max_steps or config.epochs * len(self.x)) - left
        arrays = {"coef": model.coef_, "intercept": model.intercept_}
        loss = -np.log(np.clip(model.predict_proba(self.x)[np.arange(len(self.y)), self.y], 1e-9, 1)).mean()
        return TrainResult(arrays, len(self.x), steps, {"loss": float(loss)})


def initial_parameters():
    return {"coef": np.zeros((10, FEATURES), "float32"), "intercept": np.zeros(10, "float32")}


def build_trainer(participant_id):
    data = mnist()
    rows = dirichlet(data.y_train, SHARES, alpha=1.0, seed=1)[share_of(participant_id)]
    return LinearTrainer(features(data.x_train[rows]), data.y_train[rows])


def evaluate(parameters):
    data = mnist()
    return {"accuracy": classifier(parameters).score(features(data.x_test), data.y_test)}


@cache
def mnist():
    return load_mnist(DATA)


def features(images):
    """Draw the same features for everybody (Rahimi and Recht 2007): they depend on random_state alone."""
    sampler = RBFSampler(gamma=0.02, n_components=FEATURES, random_state=0).fit(np.zeros((1, 784), "float32"))
    return sampler.transform((images.reshape(len(images), -1) / 255.0).astype("float32"))


def share_of(participant_id):
    digits = re.search(r"\d+$", participant_id)
    return (int(digits[0]) - 1 if digits else zlib.crc32(participant_id.encode())) % SHARES
