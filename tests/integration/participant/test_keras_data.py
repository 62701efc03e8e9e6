"""Data that load_data may return to the Keras trainer, and what the errors say about the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

keras = pytest.importorskip("keras")
from fedmq.participant.training.keras.backend import tf  # noqa: E402  after the skip
from fedmq.participant.training.keras.conversions import as_data  # noqa: E402
from fedmq.participant.training.keras.model import parameters_of  # noqa: E402
from fedmq.participant.training.keras.trainer import KerasTrainer  # noqa: E402

layers = keras.layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
CONFIG = TrainingConfig(batch_size=8, seed=3)


def model(loss: Any = "sparse_categorical_crossentropy", units: int = 2, activation: str = "softmax") -> Any:
    made = keras.Sequential([keras.Input((6,)), layers.Dense(units, activation=activation)])
    made.compile(keras.optimizers.SGD(0.1), loss)
    return made


START = parameters_of(model())


def trained(data: Any, build: Callable[[], Any] = model) -> Parameters:
    trainer = KerasTrainer(build, data)
    zeros = Parameters({name: np.zeros_like(a) for name, a in parameters_of(trainer.model).items()})
    return trainer.train(zeros, CONFIG).parameters  # type: ignore[return-value]


def assert_same(one: Any, other: Any) -> None:
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


def batches() -> Any:
    for start in range(0, 20, 4):
        yield X[start : start + 4], Y[start : start + 4]


@pytest.mark.parametrize(
    "data",
    [(X.tolist(), Y.tolist()), [X, list(Y)], (tf.constant(X), tf.constant(Y)), (X, Y, None), (X, Y, [1.0] * 20)],
)
def test_lists_and_tensors_are_trained_as_arrays(data: Any) -> None:
    assert_same(trained(data), trained((X, Y)))


@pytest.mark.parametrize("labels", [Y, Y.reshape(-1, 1).astype(np.float32), np.eye(2)[Y]])
def test_class_weights_are_the_sample_weights_of_their_classes(labels: Any) -> None:
    def build() -> Any:
        return model("categorical_crossentropy" if labels.shape[-1] == 2 else "sparse_categorical_crossentropy")

    weighted = trained((X, labels, {1: 5.0}), build)
    assert_same(weighted, trained((X, labels, np.where(Y == 1, 5.0, 1.0)), build))
    theirs = build()
    theirs.set_weights([np.zeros_like(w) for w in theirs.get_weights()])
    theirs.fit(X, labels, batch_size=20, class_weight={1: 5.0}, verbose=0)
    trainer = KerasTrainer(build, (X, labels, {1: 5.0}))
    zeros = Parameters({name: np.zeros_like(a) for name, a in START.items()})
    ours = trainer.train(zeros, TrainingConfig(batch_size=20)).parameters
    for one, other in zip(ours.values(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_train_step_of_ones_own_may_do_without_y_and_gets_x_as_from_fit() -> None:
    class Autoencoder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(6)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def train_step(self, data: Any) -> Any:
            return super().train_step((data, data))

    def build() -> Any:
        made = Autoencoder()
        made(X[:1])
        made.compile("sgd", "mse")
        return made

    for data in ((X, None), (X,), (X, None, None)):
        assert_same(trained(data, build), trained((X,), build))
    with pytest.raises(AppError, match=r"data is x without y, and the model compiles the loss mse: return \(x, y\)"):
        trained((X, None), lambda: model("mse", 6))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), "data is a tf.data.Dataset, expected arrays.*as_numpy"),
        ((tf.data.Dataset.from_tensor_slices(X), Y), "x of data is a tf.data.Dataset, expected arrays"),
        (Batches(), "data is a PyDataset, expected arrays"),
        (batches(), r"data is a generator, expected arrays.*zip\(\*batches\)"),
        ((tf.ragged.constant([[1], [2, 3]]), [0, 1]), r"x of data is a RaggedTensor.*to_tensor\(\)"),
        ((tf.sparse.from_dense(X), Y), r"x of data is a SparseTensor.*tf\.sparse\.to_dense"),
        (([[1, 2], [3]], [0, 1]), "x of data is a list whose entries have different lengths.*pad_sequences"),
        ((list(X), Y), r"x\[0\] has 6, y has 20.*for 20 examples return np\.stack\(x\)"),
        ((np.array([{}] * 20), Y), "x of data has the dtype object, expected numbers or texts"),
        ((X, Y, np.ones(20), 4), "data is a tuple of 4, expected"),
        ((None, Y), "data has None in the place of x"),
        ((X, None, np.ones(20)), "data has None in the place of y"),
        (({}, {}), "data has no arrays"),
        (None, r"data is None, expected \(x, y\)"),
    ],
)
def test_what_is_no_array_is_refused_with_the_conversion(given: Any, text: str) -> None:
    with pytest.raises(AppError, match=text):
        as_data(given, "data")


def test_the_conversions_that_the_errors_name_work() -> None:
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    lazy = Batches()
    for parts in (dataset.as_numpy_iterator(), (lazy[i] for i in range(len(lazy))), batches()):
        x, y = map(np.concatenate, zip(*parts, strict=True))
        assert (x.tobytes(), y.tobytes()) == (X.tobytes(), Y.tobytes())


@pytest.mark.parametrize(
    ("build", "labels", "text"),
    [
        (model, np.where(Y == 1, 7, 0), r"y of data has the label 7 at \[\d+\], and the model has 2 units"),
        (model, Y - 1, "has the label -1 at .*classes from 0 to 1: number the classes from 0"),
        (lambda: model(keras.losses.SparseCategoricalCrossentropy()), Y + 1, "has the label 2 at"),
        (model, np.where(Y == 1, 0.5, 0.0), r"has the label 0\.5 at .*classes are whole numbers"),
        (lambda: model("binary_crossentropy", 1, "sigmoid"), 2 * Y - 1, "label -1 at .*takes numbers from 0 to 1"),
    ],
)
def test_labels_out_of_range_are_refused_with_their_place(build: Callable[[], Any], labels: Any, text: str) -> None:
    with pytest.raises(AppError, match=text):
        trained((X, labels), build)
    with pytest.raises(AppError, match=text.replace("of data", "of evaluation_data")):
        KerasTrainer(build, evaluation_data=(X, labels)).evaluate(parameters_of(build()))


def test_an_ignored_class_is_not_out_of_range() -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    trained((X, np.where(Y == 1, -1, 0)), lambda: model(loss))


def test_numbers_that_are_not_finite_are_told_with_their_place_if_they_spoil_the_result() -> None:
    spoilt = X.copy()
    spoilt[3, 2] = np.nan
    with pytest.raises(TrainerError, match=r"data is not either: x has nan at \[3, 2\]\. Remove such examples"):
        trained((spoilt, Y))
    with pytest.raises(TrainerError, match=r"evaluation_data is not either: x has nan at \[3, 2\]"):
        KerasTrainer(model, evaluation_data=(spoilt, Y)).evaluate(START)

    def fills() -> Any:
        body = [layers.Lambda(lambda x: tf.where(tf.math.is_nan(x), 0.0, x)), layers.Dense(2, activation="softmax")]
        made = keras.Sequential([keras.Input((6,)), *body])
        made.compile("sgd", "sparse_categorical_crossentropy")
        return made

    trained((spoilt, Y), fills)


def test_data_of_another_shape_are_told_by_keras_own_sentence_and_the_shapes_of_both_sides() -> None:
    with pytest.raises(TrainerError) as caught:
        trained((X[:, :5], Y))
    said = str(caught.value)
    assert "expected axis -1 of input shape to have value 6, but received input with shape (1, 5)" in said
    assert "(data is x float32[20, 5], y int64[20]; the model takes x of shape (None, 6))" in said
    assert "\x1b" not in said
    assert "kwargs" not in said


@pytest.mark.parametrize(
    ("loss", "labels", "text"),
    [
        (
            "sparse_categorical_crossentropy",
            np.eye(2)[Y],
            r"compile categorical_crossentropy, or return y\.argmax\(-1\)$",
        ),
        ("categorical_crossentropy", Y, "so compile sparse_categorical_crossentropy$"),
        ("categorical_crossentropy", np.eye(3)[Y], r"\(None, 6\)\)$"),
    ],
)
def test_labels_for_another_loss_are_told_from_other_mistakes(loss: str, labels: Any, text: str) -> None:
    with pytest.raises(TrainerError, match=text):
        trained((X, labels), lambda: model(loss))
