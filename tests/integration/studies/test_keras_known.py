"""Everything that the cohort path knows against the plain path, with fewer, as many and more examples than a batch has;
and what it does not know, which it has to leave alone.

In the ordinary suite several constructs share one model, because compiling takes most of the time.
"""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest

from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.problems.keras import known_layers, known_models
from fedmq.studies.problems.keras.cohort import KerasCohort
from fedmq.studies.problems.lazy_training import Job
from tests.support.full import in_full

K = keras.layers
BATCH, SIZES = 8, (3, 8, 16, 21)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 6)).astype(np.float32)
IMAGES = RNG.standard_normal((64, 6, 6, 2)).astype(np.float32)
SERIES = RNG.standard_normal((64, 8, 2)).astype(np.float32)
WORDS = RNG.integers(0, 9, (64, 8))
CLASSES = RNG.integers(0, 3, 64)
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]
NUMBERS = RNG.uniform(0.1, 0.9, (64, 3)).astype(np.float32)
BITS = RNG.integers(0, 2, (64, 3))
ROWS = [RNG.permutation(64)[:size] for size in SIZES]


def compiled(model: Any, loss: Any, optimizer: Any = None, metrics: Any = None, **options: Any) -> Any:
    for i, variable in enumerate(model.weights):  # weights that a layer would begin with at 0 or 1 differ too
        shift = 0.1 * np.random.default_rng(i).standard_normal(variable.shape)
        variable.assign(np.abs(variable.numpy() + shift) if "variance" in variable.path else variable.numpy() + shift)
    model.compile(optimizer or keras.optimizers.SGD(0.05), loss, metrics=metrics, **options)
    return model


def chain(shape: tuple[int, ...], *layers: Any, dtype: str | None = None) -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def compare(build_model: Any, x: Any, y: Any, rtol: float = 2e-5, **config: Any) -> None:
    """Check that both paths give the same."""
    together = KerasCohort(build_model, x, y, ROWS, path="cohort", chunk=len(ROWS))
    alone = KerasCohort(build_model, x, y, ROWS, path="plain")
    values = {"batch_size": BATCH, "epochs": 2} | config
    todo = [Job(i, together.initial, TrainingConfig(seed=i, **values)) for i in range(len(ROWS))]
    for ours, reference in zip(together.train(todo), alone.train(todo), strict=True):
        assert dict(ours.metrics) == pytest.approx(dict(reference.metrics), rel=1e-4, abs=1e-6)
        for name, expected in reference.parameters.items():
            np.testing.assert_allclose(ours.parameters[name], expected, rtol=rtol, atol=3e-6, err_msg=name)
        assert any(np.abs(p - together.initial[n]).max() > 1e-4 for n, p in ours.parameters.items())


def dense_layers() -> Any:
    return chain(
        (6,),
        K.Rescaling(0.5, 0.1),
        K.Dense(8, kernel_constraint=keras.constraints.MaxNorm(0.4), bias_constraint=keras.constraints.NonNeg()),
        K.LeakyReLU(),
        K.LayerNormalization(),
        K.Dense(8, "tanh", kernel_constraint=keras.constraints.UnitNorm(), kernel_regularizer="l1"),
        K.PReLU(),
        K.Dense(6, kernel_constraint=keras.constraints.MinMaxNorm(0.2, 0.5), kernel_regularizer="l2"),
        K.ELU(),
        K.Dense(6, "relu", bias_regularizer=keras.regularizers.L1L2(0.01, 0.02)),
        K.ReLU(),
        K.Activation("silu"),
        K.Identity(),
        K.Dense(3),
        K.Softmax(),
    )


def merged() -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    a, b = K.Dense(4)(inputs), K.Dense(4, "relu")(inputs)
    parts = [layer()([a, b]) for layer in (K.Add, K.Subtract, K.Multiply, K.Average, K.Maximum, K.Minimum)]
    hidden = K.Concatenate()([*parts, inputs])
    folded = K.Permute((2, 1))(K.Reshape((2, 15))(hidden))
    both = K.Concatenate(axis=1)([K.Flatten()(folded), K.Flatten()(K.RepeatVector(2)(a))])
    return keras.Model(inputs, keras.Sequential([keras.Input((38,)), K.Dense(3, "softmax")])(both))


def images() -> Any:
    return chain(
        (6, 6, 2),
        K.ZeroPadding2D(),
        K.Conv2D(3, 3, activation="relu"),
        K.MaxPooling2D(),
        K.UpSampling2D(),
        K.Conv2D(3, 2, strides=2, padding="same"),
        K.AveragePooling2D(2, padding="same", strides=1),
        K.Flatten(),
        K.Dense(3, "softmax"),
    )


def series() -> Any:
    layers = [K.Conv1D(4, 3, activation="gelu"), K.MaxPooling1D(), K.AveragePooling1D(2, strides=1)]
    return chain((8, 2), *layers, K.GlobalMaxPooling1D(), K.Dense(3, "softmax"))


def words() -> Any:
    return chain((8,), K.Embedding(9, 4), K.GlobalAveragePooling1D(), K.Dense(3, "softmax"), dtype="int64")


def places() -> Any:
    return chain((6, 6, 2), K.Conv2D(3, 1))


def pooled(layer: Any) -> Any:
    return lambda: chain((6, 6, 2), K.Conv2D(3, 2), layer(), K.Dense(3, "softmax"))


def normalised() -> Any:
    return chain((6,), K.Dense(5), K.BatchNormalization(), K.Dense(3, "softmax"))


SPARSE = keras.losses.SparseCategoricalCrossentropy
SPARSE_METRICS = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy, keras.metrics.SparseCategoricalCrossentropy]
METRICS = ["accuracy", "mse", "mae", keras.metrics.CategoricalCrossentropy, keras.metrics.TopKCategoricalAccuracy]


def adam() -> Any:
    return keras.optimizers.Adam(0.01)


def momentum() -> Any:
    return keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)


def fresh(metrics: Any) -> Any:
    return [m if isinstance(m, str) else m(k=2) if "TopK" in m.__name__ else m() for m in metrics or []]


CASES: dict[str, tuple[Any, ...]] = {
    "dense": (dense_layers, X, CLASSES, SPARSE, None, SPARSE_METRICS),
    "merged": (merged, X, ONE_HOT, keras.losses.CategoricalCrossentropy, momentum, METRICS),
    "images": (images, IMAGES, CLASSES, SPARSE, adam, ["accuracy"]),
    "series": (series, SERIES, CLASSES[:, None], SPARSE, None, ["accuracy"]),
    "words": (words, WORDS, CLASSES, SPARSE, None, ["accuracy"]),
    "places": (places, IMAGES, np.repeat(IMAGES, 2, -1)[..., :3], keras.losses.MeanSquaredError, None, ["mae"]),
    "batch norm": (normalised, X, CLASSES, SPARSE, None, ["accuracy"]),
    "global average": (pooled(K.GlobalAveragePooling2D), IMAGES, CLASSES, SPARSE, None, None),
    "global max": (pooled(K.GlobalMaxPooling2D), IMAGES, CLASSES, SPARSE, None, None),
}


def built(name: str) -> Any:
    body, _, _, loss, optimizer, metrics = CASES[name]
    return compiled(body(), loss(), optimizer and optimizer(), fresh(metrics))


ALWAYS = ("dense", "batch norm", "words", "global average")
"""Models that are compared in each run of the tests. Each of them compiles two programs."""


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=in_full("four of the models")) for n in CASES]
)
def test_known_layers(name: str) -> None:
    compare(lambda: built(name), CASES[name][1], CASES[name][2])


def classifier(activation: str) -> Any:
    return chain((6,), K.Dense(4, "relu"), K.Dense(3, activation))


OTHER_LOSSES = {
    "binary": (keras.losses.BinaryCrossentropy, "sigmoid", BITS),
    "from logits": (lambda: SPARSE(from_logits=True), "linear", CLASSES),
    "smoothed": (
        lambda: keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        "linear",
        ONE_HOT,
    ),
    "cosine": (keras.losses.CosineSimilarity, "linear", NUMBERS),
    "categorical focal": (keras.losses.CategoricalFocalCrossentropy, "softmax", ONE_HOT),
    "binary focal": (lambda: keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True), "sigmoid", BITS),
    "absolute": (keras.losses.MeanAbsoluteError, "linear", NUMBERS),
    "percentage": (keras.losses.MeanAbsolutePercentageError, "linear", NUMBERS),
    "logarithmic": (keras.losses.MeanSquaredLogarithmicError, "softplus", NUMBERS),
    "huber": (lambda: keras.losses.Huber(0.3), "linear", NUMBERS),
    "log cosh": (keras.losses.LogCosh, "linear", NUMBERS),
    "poisson": (keras.losses.Poisson, "softplus", NUMBERS),
    "divergence": (keras.losses.KLDivergence, "softmax", NUMBERS),
    "categorical hinge": (keras.losses.CategoricalHinge, "linear", ONE_HOT),
}
SHORT = ("binary", "cosine")


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=in_full("two of the losses")) for n in OTHER_LOSSES]
)
def test_known_losses(name: str) -> None:
    loss, activation, y = OTHER_LOSSES[name]
    metrics = [keras.metrics.BinaryAccuracy, keras.metrics.BinaryCrossentropy] if name == "binary" else []
    compare(lambda: compiled(classifier(activation), loss(), metrics=fresh(metrics)), X, y)


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(a.__name__, marks=in_full("activations in the models of the layers' tests"))
        for a in known_layers._ACTIVATIONS
    ],
)
def test_known_activations(activation: str) -> None:
    model = [K.Dense(4, activation), K.Dense(3, "softmax")]
    compare(lambda: compiled(chain((6,), *map(copied, model)), SPARSE()), X, CLASSES)


def copied(layer: Any) -> Any:
    return type(layer).from_config(layer.get_config())


def test_all_that_is_known_is_compared() -> None:
    compared: set[Any] = {keras.layers.InputLayer, *(type(made()) for made, _, _ in OTHER_LOSSES.values())}
    compared |= {keras.metrics.BinaryAccuracy, keras.metrics.BinaryCrossentropy}
    for name, (_, x, y, *_) in CASES.items():
        model = built(name)
        model.train_step((x[:4], y[:4]))
        compared |= {type(part) for part in [*model.layers, model.loss, model.optimizer, *model.metrics[-1].metrics]}
        compared |= {type(part) for v in model.weights for part in (v.regularizer, v.constraint)}
    known: set[type] = {*known_layers._ALL_LAYERS, *known_layers._REGULARIZERS, *known_layers._CONSTRAINTS}
    known |= {*known_models._LOSSES, *known_models._METRICS, *known_models._OPTIMIZERS}
    assert known <= compared


def test_a_metric_of_the_last_epoch_alone_and_fedprox_agree() -> None:
    body = lambda: chain((6,), K.Dense(3, kernel_constraint="max_norm"))  # noqa: E731 - built anew each time
    compare(
        lambda: compiled(body(), SPARSE(from_logits=True), metrics=["accuracy"]), X, CLASSES, epochs=3, proximal_mu=0.5
    )


def test_what_is_infinite_in_one_batch_does_not_spread_by_padding() -> None:
    x = X.copy()
    x[ROWS[3][0]] = 1e38  # the row that padding would take if it took a participant's first
    build = lambda: compiled(chain((6,), K.Dense(3)), "mse")  # noqa: E731 - as above
    together, alone = (KerasCohort(build, x, NUMBERS, ROWS, path=path, chunk=4) for path in ("cohort", "plain"))
    todo = [Job(3, together.initial, TrainingConfig(seed=seed, batch_size=BATCH, max_steps=3)) for seed in range(8)]
    finite = []
    for ours, reference in zip(together.train(todo), alone.train(todo), strict=True):
        for name, expected in reference.parameters.items():
            np.testing.assert_allclose(ours.parameters[name], expected, rtol=2e-5, atol=3e-6)
        finite.append(all(np.isfinite(a).all() for a in reference.parameters.values()))
    assert not all(finite)


class OwnDense(K.Dense):
    pass


class AddsLoss(K.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(x))
        return x


class OwnModel(keras.Sequential):
    pass


class OwnConstraint(keras.constraints.MaxNorm):
    pass


def replaced_call() -> Any:
    layer = K.Dense(4)
    own = layer.call
    layer.call = lambda x: own(x) - keras.ops.mean(x, axis=0, keepdims=True)[:, :1]
    return layer


def outside(activation: Any = None, **options: Any) -> Any:
    """Return a model with a loss that was added from outside of its layers."""
    model = chain((6,), K.Dense(4, activation), K.Dense(3, "softmax", **options))
    model.layers[0].activity_regularizer = keras.regularizers.L2(0.1)
    return model


def operation() -> Any:
    inputs = keras.Input((6,))
    return keras.Model(inputs, K.Dense(3, "softmax")(inputs - keras.ops.mean(inputs, axis=0, keepdims=True)))


def with_state() -> Any:
    model = compiled(classifier("softmax"), SPARSE(), keras.optimizers.Adam())
    model.train_step((X[:4], CLASSES[:4]))
    return model


def unused_weight() -> Any:
    model = merged()
    model.extra = K.Dense(2, name="unused")
    model.extra.build((None, 2))
    return compiled(model, SPARSE())


def own_method(model: Any) -> Any:
    model.train_step = model.test_step
    return model


def layer(*layers: Any) -> Any:
    return lambda: compiled(chain((6,), *[make() for make in layers], K.Dense(3, "softmax")), SPARSE())


def loss(made: Any, activation: str = "softmax", **options: Any) -> Any:
    return lambda: compiled(classifier(activation), made() if isinstance(made, type) else made, **options)


def optimizer(make: Any) -> Any:
    return lambda: compiled(classifier("softmax"), SPARSE(), make())


def called_with(**arguments: Any) -> Any:
    def build_model() -> Any:
        inputs = keras.Input((6,))
        hidden = K.BatchNormalization()(inputs, **arguments)
        return compiled(keras.Model(inputs, K.Dense(3, "softmax")(hidden)), SPARSE())

    return build_model


def times(constant: Any) -> Any:
    def build_model() -> Any:
        inputs = keras.Input((6,))
        return compiled(keras.Model(inputs, K.Multiply()([K.Dense(3)(inputs), constant])), "mse")

    return build_model


UNKNOWN: dict[str, tuple[Any, Any, Any, str]] = {
    # layers
    "subclass": (layer(lambda: OwnDense(4)), X, CLASSES, "is a OwnDense, which the cohort path does not know"),
    "lambda": (layer(lambda: K.Lambda(lambda x: x - keras.ops.mean(x, 0))), X, CLASSES, "is a Lambda"),
    "dropout": (layer(lambda: K.Dropout(0.5)), X, CLASSES, "'dropout.*' is a Dropout"),
    "add_loss": (layer(AddsLoss), X, CLASSES, "is a AddsLoss"),
    "activity": (
        layer(lambda: K.Dense(4, activity_regularizer="l2")),
        X,
        CLASSES,
        "an activity regulariser, which looks",
    ),
    "activity set": (lambda: compiled(outside(), SPARSE()), X, CLASSES, "an activity regulariser"),
    "call": (layer(replaced_call), X, CLASSES, "has a call of its own"),
    "activation": (
        layer(lambda: K.Dense(4, lambda x: x - keras.ops.mean(x, 0))),
        X,
        CLASSES,
        "an activation of its own",
    ),
    "axis": (layer(lambda: K.Softmax(axis=0)), X, CLASSES, "axis = 0"),
    "renorm": (layer(lambda: K.BatchNormalization(axis=1)), X, CLASSES, "axis = 1"),
    "mask": (
        lambda: compiled(
            chain(
                (8,),
                K.Embedding(9, 4, mask_zero=True),
                K.GlobalAveragePooling1D(),
                K.Dense(3, "softmax"),
                dtype="int64",
            ),
            SPARSE(),
        ),
        WORDS,
        CLASSES,
        "mask_zero = True",
    ),
    "rows": (lambda: compiled(words(), SPARSE(), adam()), WORDS, CLASSES, "an Embedding, known with SGD without"),
    "operation": (lambda: compiled(operation(), SPARSE()), X, CLASSES, "is no layer that the cohort path knows"),
    "float16": (layer(lambda: K.Dense(4, dtype="mixed_bfloat16")), X, CLASSES, "computes in mixed_bfloat16"),
    "model": (
        lambda: compiled(OwnModel([keras.Input((6,)), K.Dense(3, "softmax")]), SPARSE()),
        X,
        CLASSES,
        "the model is a OwnModel",
    ),
    "train_step": (
        lambda: own_method(compiled(classifier("softmax"), SPARSE())),
        X,
        CLASSES,
        "a train_step of its own",
    ),
    "unused": (unused_weight, X, CLASSES, "unused/kernel has no part in the loss"),
    "constraint": (
        layer(lambda: K.Dense(4, kernel_constraint=OwnConstraint(1))),
        X,
        CLASSES,
        "a OwnConstraint, which",
    ),
    "regulariser": (
        layer(lambda: K.Dense(4, kernel_regularizer=keras.regularizers.OrthogonalRegularizer())),
        X,
        CLASSES,
        "a OrthogonalRegularizer",
    ),
    # losses
    "dice": (loss(keras.losses.Dice, "sigmoid"), X, BITS.astype("float32"), "its loss is Dice"),
    "tversky": (loss(keras.losses.Tversky, "sigmoid"), X, BITS.astype("float32"), "its loss is Tversky"),
    "dice by name": (loss("dice", "sigmoid"), X, BITS.astype("float32"), "its loss is dice"),
    "hinge": (loss(keras.losses.Hinge, "linear"), X, BITS, "its loss is Hinge"),
    "function": (loss(lambda y, p: keras.ops.mean(p), "linear"), X, NUMBERS, "its loss is <lambda>"),
    "loss axis": (loss(keras.losses.CosineSimilarity(axis=0), "linear"), X, NUMBERS, "axis = 0"),
    "ignored": (loss(SPARSE(ignore_class=0)), X, CLASSES, "ignore_class = 0"),
    "sum": (loss(keras.losses.MeanSquaredError(reduction="sum")), X, NUMBERS, "reduction = 'sum'"),
    "weighted mean": (
        loss(keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")),
        X,
        NUMBERS,
        "reduction =",
    ),
    "loss weights": (loss(SPARSE, loss_weights=[2.0]), X, CLASSES, "compiled with loss_weights"),
    "weighted metrics": (loss(SPARSE, weighted_metrics=["accuracy"]), X, CLASSES, "with weighted_metrics"),
    "eager": (loss(SPARSE, run_eagerly=True), X, CLASSES, "with run_eagerly"),
    # metrics and optimizers
    "metric": (
        lambda: compiled(classifier("sigmoid"), "mse", metrics=[keras.metrics.AUC()]),
        X,
        BITS,
        "is a AUC, which the cohort path does not know",
    ),
    "own metric": (loss(SPARSE, metrics=[lambda y, p: keras.ops.max(p)]), X, CLASSES, "its metric"),
    "optimizer": (optimizer(keras.optimizers.AdamW), X, CLASSES, "its optimizer is AdamW"),
    "average": (optimizer(lambda: keras.optimizers.SGD(use_ema=True)), X, CLASSES, "use_ema = True"),
    "steps before": (with_state, X, CLASSES, "state of earlier steps"),
    # examples
    "labels": (loss(SPARSE), X, CLASSES + 1, "labels go from 1 to 3, expected 0 to 2"),
    "words": (lambda: compiled(words(), SPARSE()), WORDS + 5, CLASSES, "expected 0 to 8"),
    "a mask's length": (called_with(mask=np.ones(8, bool)), X, CLASSES, "it cannot be called on one example: Inval"),
    "a constant's length": (times(np.ones((8, 3))), X, NUMBERS, "the model gives 8 predictions for one example"),
    "strings": (loss(SPARSE), X.astype("U8"), CLASSES, "the inputs are of type <U8"),
    "objects": (loss(SPARSE), X, CLASSES.astype("U1").astype(object), "the labels are of type object"),
    "complex": (loss(SPARSE), X.astype("complex64"), CLASSES, "of type complex64"),
    "shape": (loss(keras.losses.MeanSquaredError), X, NUMBERS[:, 0], "a label has the shape"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_takes_the_plain_path_with_a_line_that_says_which_and_why(name: str) -> None:
    build_model, x, y, reason = UNKNOWN[name]
    found = KerasCohort(build_model, x, y, ROWS)
    assert re.fullmatch(rf"Keras, one compiled step after the other \(.*{reason}.*\)", found.name)
