"""Whatever a model draws, and by whichever generator, follows from the task's seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
import tensorflow as tf  # noqa: E402  after the skip

from fedmq.participant.training.keras.model import parameters_of  # noqa: E402  after the skip
from fedmq.participant.training.keras.trainer import KerasTrainer  # noqa: E402
from fedmq.schemas.messages import TrainingConfig  # noqa: E402

X, Y = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)  # one example: the seed decides no order


class Noisy(keras.layers.Layer):
    """A layer that adds noise by this function of a shape, also in an evaluation."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        super().__init__()
        self._draw = draw

    def call(self, x: Any) -> Any:
        return x + self._draw(tf.shape(x))


class WithGenerator(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self._generator = tf.random.Generator.from_non_deterministic_state()

    def call(self, x: Any) -> Any:
        return x + self._generator.normal(tf.shape(x))


def in_a_branch(shape: Any) -> Any:
    return tf.cond(tf.reduce_sum(shape) > 0, lambda: tf.random.normal(shape), lambda: tf.zeros(shape))


LAYERS: dict[str, Callable[[], Any]] = {
    "Dropout": lambda: keras.layers.Dropout(0.5),
    "keras.random": lambda: Noisy(keras.random.normal),
    "tf.random": lambda: Noisy(tf.random.normal),
    "tf.random with a seed": lambda: Noisy(lambda shape: tf.random.uniform(shape, seed=5)),
    "tf.random in a branch": lambda: Noisy(in_a_branch),
    "tf.random.Generator": WithGenerator,
    "tf.random's global generator": lambda: Noisy(lambda shape: tf.random.get_global_generator().normal(shape)),
}


def made(layer: Callable[[], Any], eagerly: bool = False) -> KerasTrainer:
    def build_model() -> Any:
        dense = keras.layers.Dense(2, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(1.0), layer(), dense])
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eagerly)
        return model

    return KerasTrainer(build_model, (X, Y), evaluation_data=(X, Y))


def trained(trainer: KerasTrainer, seed: int, **config: Any) -> Any:
    start = parameters_of(trainer.model).replace({name: np.ones_like(a) for name, a in START.items()})
    result = trainer.train(start, TrainingConfig(epochs=4, seed=seed, **config))
    return [array.tobytes() for array in result.parameters.values()], dict(result.metrics)


START = parameters_of(made(LAYERS["Dropout"]).model)


@pytest.mark.parametrize("eagerly", [False, True], ids=["traced", "eager"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_tasks_random_numbers_follow_from_its_seed(layer: Callable[[], Any], eagerly: bool) -> None:
    trainer = made(layer, eagerly)
    first = trained(trainer, 1)
    measured = trainer.evaluate(START)
    assert trained(trainer, 2) != first
    pulled = trained(trainer, 2, proximal_mu=0.5)
    assert trained(trainer, 1) == first
    keras.utils.set_random_seed(77)  # as another model of this process does
    assert trained(trainer, 1) == first
    assert trained(trainer, 2, proximal_mu=0.5) == pulled
    assert trainer.evaluate(START) == measured
    random.seed(5)
    np.random.seed(5)
    other = made(layer, eagerly)
    assert other.evaluate(START) == measured
    assert trained(other, 1) == first


def test_what_a_trace_draws_is_the_same_in_every_trainer_and_the_process_goes_on_as_before() -> None:
    def drawn(shape: Any) -> Any:
        return np.random.normal(size=3).astype("float32") * random.random()

    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        trainer = made(lambda: Noisy(drawn))
        before = random.getstate(), np.random.get_state()[1].tolist()
        found.append(trained(trainer, 3))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert found[0] == found[1]
