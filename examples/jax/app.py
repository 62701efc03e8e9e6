"""MNIST with JAX: any pytree is a model. Its leaves travel under the names of their paths."""

import os
import re
import zlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from fedmq import TrainResult
from fedmq.data import dirichlet, load_mnist

SHARES = 5
DATA = os.environ.get("MNIST")  # "full", or the path of an mnist.npz; without it the sample that fedmq ships


def new_model():
    rng = np.random.default_rng(0)
    layers = {"hidden": (784, 128), "output": (128, 10)}
    return {
        name: {"w": rng.normal(0, shape[0] ** -0.5, shape).astype("float32"), "b": np.zeros(shape[1], "float32")}
        for name, shape in layers.items()
    }


def logits(model, x):
    hidden = jax.nn.relu(x @ model["hidden"]["w"] + model["hidden"]["b"])
    return hidden @ model["output"]["w"] + model["output"]["b"]


def loss(model, x, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits(model, x)), y[:, None], 1).mean()


def named(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def model_of(arrays):
    paths, structure = jax.tree_util.tree_flatten_with_path(new_model())
    return jax.tree_util.tree_unflatten(structure, [jnp.asarray(arrays[jax.tree_util.keystr(p)]) for p, _ in paths])


@jax.jit
def step(model, base, correction, batch, settings):
    rate, mu = settings
    value, gradients = jax.value_and_grad(loss)(model, *batch)
    moved = jax.tree.map(lambda w, g, b, c: w - rate * (g + mu * (w - b) + c), model, gradients, base, correction)
    return moved, value


class JaxTrainer:
    def __init__(self, x, y):
        self.x, self.y, self.num_examples = x, y, len(x)

    def train(self, parameters, config, correction=None):
        base = model = model_of(parameters)
        added = jax.tree.map(jnp.zeros_like, base) if correction is None else model_of(correction)
        settings = config.learning_rate or 0.1, config.proximal_mu
        rng, losses = np.random.default_rng(config.seed), []
        for _ in range(config.epochs):
            order = rng.permutation(len(self.x))
            for rows in np.split(order, range(config.batch_size, len(order), config.batch_size)):
                if len(losses) == config.max_steps:
                    break
                batch = self.x[rows], self.y[rows]
                model, value = step(model, base, added, batch, settings)
                losses.append(value)
        return TrainResult(named(model), len(self.x), len(losses), {"loss": float(np.mean(losses))})


def initial_parameters():
    return named(new_model())


def build_trainer(participant_id):
    data = mnist()
    rows = dirichlet(data.y_train, SHARES, alpha=1.0, seed=1)[share_of(participant_id)]
    return JaxTrainer(flat(data.x_train[rows]), data.y_train[rows].astype("int32"))


def evaluate(parameters):
    data = mnist()
    scores = logits(model_of(parameters), flat(data.x_test))
    return {"accuracy": float((np.asarray(scores).argmax(1) == data.y_test).mean())}


@cache
def mnist():
    return load_mnist(DATA)


def flat(images):
    return (images.reshape(len(images), -1) / 255.0).astype("float32")


def share_of(participant_id):
    digits = re.search(r"\d+$", participant_id)
    return (int(digits[0]) - 1 if digits else zlib.crc32(participant_id.encode())) % SHARES
