"""The Keras trainer against small models. TensorFlow is imported once for all of them (4 s)."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from fedmq.schemas.errors import AppError, ConfigError, TrainerError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

keras = pytest.importorskip("keras")
from fedmq.participant.training.keras.model import built_model, parameters_of, set_parameters  # noqa: E402  after the skip
from fedmq.participant.training.keras.trainer import KerasTrainer  # noqa: E402

layers = keras.layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
CONFIG = TrainingConfig(epochs=2, batch_size=16, seed=7)


def compiled(model: Any, optimizer: Any = "adam") -> Any:
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def sequential() -> Any:
    body = [layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    return compiled(keras.Sequential([keras.Input((4,)), *body, layers.Softmax()]))


def functional() -> Any:
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, activation="relu")(inputs)
    merged = layers.Concatenate()([hidden, layers.Dropout(0.3)(inputs)])
    return compiled(keras.Model(inputs, layers.Dense(2, activation="softmax")(merged)))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, activation="relu")
        self.norm = layers.BatchNormalization()
        self.out = layers.Dense(2, activation="softmax")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.norm(self.hidden(x), training=training))


def subclassed() -> Any:
    return compiled(Subclassed())


def linear(optimizer: Any = None) -> Any:
    """A model with one weight, no bias and mean squared error, whose gradient can be written down."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    return model


ONE_X = np.array([[2.0]], np.float32)
ONE_Y = np.array([[3.0]], np.float32)


def at(trainer: KerasTrainer, weight: float) -> Parameters:
    (name,) = parameters_of(trainer.model)
    return Parameters({name: np.array([[weight]], np.float32)})


def weight_after(trainer: KerasTrainer, start: float, **config: Any) -> float:
    (array,) = trainer.train(at(trainer, start), TrainingConfig(**config)).parameters.values()
    return float(array[0, 0])


def assert_same(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].tobytes() == other[name].tobytes(), name


def differs(one: Any, other: Any) -> bool:
    return any(one[name].tobytes() != other[name].tobytes() for name in one)


@pytest.fixture(params=[sequential, functional, subclassed])
def trainer(request: pytest.FixtureRequest) -> KerasTrainer:
    return KerasTrainer(request.param, (X, Y), evaluation_data=(X, Y))


def start_of(trainer: KerasTrainer) -> Parameters:
    trainer.model(X[:1])
    return parameters_of(trainer.model)


def test_every_kind_of_model_learns(trainer: KerasTrainer) -> None:
    start = start_of(trainer)
    before = trainer.evaluate(start)
    result = trainer.train(start, TrainingConfig(epochs=40, batch_size=10, learning_rate=0.02))
    after = trainer.evaluate(result.parameters)
    assert after["loss"] < 0.7 * before["loss"]
    assert after["accuracy"] > 0.85
    assert (result.num_examples, result.num_steps) == (50, 200)
    assert set(result.metrics) == {"loss", "accuracy"}


def test_the_same_task_gives_the_same_result_bit_for_bit_whatever_came_between(trainer: KerasTrainer) -> None:
    start = start_of(trainer)
    first = trainer.train(start, CONFIG)
    other = trainer.train(start, CONFIG.model_copy(update={"seed": 8, "learning_rate": 0.5, "proximal_mu": 1.0}))
    trainer.evaluate(other.parameters)
    again = trainer.train(start, CONFIG)
    assert_same(first.parameters, again.parameters)
    assert first.metrics == again.metrics
    assert differs(first.parameters, other.parameters)


def test_the_seed_decides_the_order_of_examples() -> None:
    trainer = KerasTrainer(functional, (X, Y))
    start = parameters_of(trainer.model)
    one = trainer.train(start, TrainingConfig(batch_size=16, seed=1))
    two = trainer.train(start, TrainingConfig(batch_size=16, seed=2))
    assert differs(one.parameters, two.parameters)


def test_two_trainers_of_one_model_agree_in_names_and_results() -> None:
    one, two = KerasTrainer(sequential, (X, Y)), KerasTrainer(sequential, (X, Y))
    start = parameters_of(one.model)
    assert list(start) == list(parameters_of(two.model))
    assert_same(one.train(start, CONFIG).parameters, two.train(start, CONFIG).parameters)


def test_names_are_canonical_and_batch_norm_statistics_are_not_trainable() -> None:
    parameters = parameters_of(sequential())
    assert list(parameters) == [
        "000/sequential/dense/kernel", "001/sequential/dense/bias",
        "002/sequential/batch_normalization/gamma", "003/sequential/batch_normalization/beta",
        "004/sequential/batch_normalization/moving_mean", "005/sequential/batch_normalization/moving_variance",
        "006/sequential/dense/kernel", "007/sequential/dense/bias",
    ]  # fmt: skip
    assert parameters.non_trainable == {
        "004/sequential/batch_normalization/moving_mean", "005/sequential/batch_normalization/moving_variance",
    }  # fmt: skip


def test_batch_norm_statistics_are_carried_in_and_out() -> None:
    trainer = KerasTrainer(sequential, (X, Y))
    start = parameters_of(trainer.model)
    name = "004/sequential/batch_normalization/moving_mean"
    shifted = start.replace({**start, name: start[name] + np.float32(3)})
    one, two = trainer.train(start, CONFIG).parameters, trainer.train(shifted, CONFIG).parameters
    assert not np.array_equal(one[name], start[name]), "training moves them"
    steps = 2 * 4
    np.testing.assert_allclose(two[name] - one[name], 3 * 0.99**steps, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int64", "bool"])
def test_weights_go_in_and_out_bit_for_bit(dtype: str) -> None:
    class Holds(layers.Layer):
        def build(self, _shape: Any) -> None:
            self.held = self.add_weight(
                shape=(3, 2),
                dtype=dtype,
                trainable=dtype[0] in "fb" and dtype != "bool",
                name="held",
                initializer="zeros",
            )

        def call(self, x: Any) -> Any:
            return x

    model = keras.Sequential([keras.Input((4,)), Holds()])
    (name,) = parameters_of(model)
    like = parameters_of(model)[name]
    bits = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 120, like.nbytes, np.uint8)
    given = bits.view(like.dtype).reshape(3, 2)
    set_parameters(model, {name: given})
    assert_same(parameters_of(model), {name: given})


def test_the_arrays_given_are_never_written_to_and_the_returned_ones_are_the_callers() -> None:
    trainer = KerasTrainer(functional, (X, Y))
    start = parameters_of(trainer.model)
    aligned = {name: _aligned(array) for name, array in start.items()}
    before = {name: array.copy() for name, array in aligned.items()}
    result = trainer.train(Parameters(aligned), CONFIG)
    assert_same(before, aligned)
    kept = {name: array.copy() for name, array in result.parameters.items()}
    trainer.train(Parameters(aligned), CONFIG.model_copy(update={"seed": 99}))
    assert_same(kept, result.parameters)


def _aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a read-only view at a 64-byte boundary, as in a decoded message. TensorFlow could alias such a view."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    view.flags.writeable = False
    return view


def test_one_step_of_gradient_descent_is_the_one_computed_by_hand() -> None:
    trainer = KerasTrainer(linear, (ONE_X, ONE_Y))
    # loss = (2w - 3)², gradient = 4(2w - 3) = -4 at w = 1; w - 0.1·(-4) = 1.4
    assert weight_after(trainer, 1.0) == pytest.approx(1.4)
    assert weight_after(trainer, 1.0, learning_rate=0.05) == pytest.approx(1.2)
    assert weight_after(trainer, 1.0) == pytest.approx(1.4), "the compiled learning rate is back"


@pytest.mark.parametrize("clipped", [False, True])
def test_fedprox_pulls_towards_the_base_by_mu_times_the_distance(clipped: bool) -> None:
    optimizer = keras.optimizers.SGD(0.1, clipvalue=1000.0 if clipped else None)
    trainer = KerasTrainer(lambda: linear(optimizer), (ONE_X, ONE_Y))
    # Step 1 is at the base: no pull, 1.4. Step 2: gradient 4(2·1.4 - 3) = -0.8, pull 0.5·(1.4 - 1) = 0.2.
    assert weight_after(trainer, 1.0, epochs=2, proximal_mu=0.5) == pytest.approx(1.4 + 0.1 * (0.8 - 0.2))
    assert weight_after(trainer, 1.0, epochs=2) == pytest.approx(1.4 + 0.1 * 0.8), "without it the plain step is back"
    # Another base and another μ need no new trace: gradient 4(2·2 - 3) = 4, to 1.6; then 0.8 and 1·(1.6 - 2).
    assert weight_after(trainer, 2.0, epochs=2, proximal_mu=1.0) == pytest.approx(1.6 - 0.1 * (0.8 - 0.4))


def test_a_correction_is_added_to_the_gradient_of_every_step() -> None:
    trainer = KerasTrainer(linear, (ONE_X, ONE_Y))
    start = at(trainer, 1.0)
    (name,) = start
    correction = {name: np.full_like(start[name], 2.0)}

    def weight(given: Any, **config: Any) -> float:
        return float(trainer.train(start, TrainingConfig(epochs=2, **config), given).parameters[name].item())

    # Gradient 4(2w - 3): -4 + 2, to 1.2; then -2.4 + 2. The pull of FedProx comes on top: 0.5·(1.2 - 1).
    assert weight(correction) == pytest.approx(1.2 + 0.1 * 0.4)
    assert weight(correction, proximal_mu=0.5) == pytest.approx(1.2 + 0.1 * (0.4 - 0.1))
    assert weight(None, proximal_mu=0.5) == pytest.approx(1.46), "nothing of a correction is left in the next task"
    adam = KerasTrainer(lambda: linear(keras.optimizers.Adam(0.1)), (ONE_X, ONE_Y))
    with pytest.raises(AppError, match="compiles Adam, and SCAFFOLD needs plain gradient steps"):
        adam.train(start, TrainingConfig(), correction)


def test_fedprox_works_with_loss_scaling() -> None:
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    trainer = KerasTrainer(lambda: linear(scaled), (ONE_X, ONE_Y))
    assert weight_after(trainer, 1.0, epochs=2, proximal_mu=0.5) == pytest.approx(1.46)


def test_the_reported_loss_is_that_of_the_last_epoch_without_the_proximal_term() -> None:
    trainer = KerasTrainer(linear, (ONE_X, ONE_Y))
    result = trainer.train(at(trainer, 1.0), TrainingConfig(epochs=2, proximal_mu=0.5))
    assert result.metrics["loss"] == pytest.approx((2 * 1.4 - 3) ** 2)


def test_the_optimizer_starts_afresh_in_every_task() -> None:
    trainer = KerasTrainer(lambda: linear(keras.optimizers.Adam(0.1)), (ONE_X, ONE_Y))
    # Adam's first step is the learning rate, whatever the gradient; momentum of an earlier task would show.
    for start in (1.0, 1.0, 5.0):
        sign = 1.0 if start < 1.5 else -1.0
        assert weight_after(trainer, start) == pytest.approx(start + sign * 0.1, abs=1e-5)
    assert int(trainer.model.optimizer.iterations.numpy()) == 1


def test_max_steps_ends_early_and_counts_the_examples_seen() -> None:
    trainer = KerasTrainer(functional, (X, Y))
    start = parameters_of(trainer.model)
    short = trainer.train(start, TrainingConfig(epochs=3, batch_size=16, max_steps=2))
    assert (short.num_steps, short.num_examples) == (2, 32)
    longer = trainer.train(start, TrainingConfig(epochs=3, batch_size=16, max_steps=6))
    assert (longer.num_steps, longer.num_examples) == (6, 50)


def test_a_schedule_and_a_learning_rate_of_the_task_exclude_each_other() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    trainer = KerasTrainer(lambda: linear(keras.optimizers.SGD(schedule)), (ONE_X, ONE_Y))
    assert weight_after(trainer, 1.0) == pytest.approx(1.4)
    with pytest.raises(AppError, match="gives its SGD a schedule: remove one of the two"):
        weight_after(trainer, 1.0, learning_rate=0.1)


def test_a_users_own_train_step_and_sample_weights_are_kept() -> None:
    calls: list[int] = []

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(1, use_bias=False)

        def call(self, x: Any) -> Any:
            return self.dense(x)

        def train_step(self, data: Any) -> Any:
            calls.append(len(data))
            return super().train_step(data)

    def build() -> Any:
        model = Own()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    trainer = KerasTrainer(build, (ONE_X, ONE_Y, np.array([0.5], np.float32)))
    trainer.model(ONE_X)
    assert weight_after(trainer, 1.0) == pytest.approx(1.2)
    assert set(calls) == {3}


def test_inputs_may_be_a_nest_and_data_a_function_called_once() -> None:
    def build() -> Any:
        a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
        out = layers.Dense(2, activation="softmax")(layers.Concatenate()([a, b]))
        return compiled(keras.Model({"a": a, "b": b}, out))

    calls = []

    def load() -> Any:
        calls.append(1)
        return {"a": X[:, :2], "b": X[:, 2:].astype(np.float64)}, Y

    trainer = KerasTrainer(build, load)
    assert calls == []
    start = parameters_of(trainer.model)
    assert trainer.train(start, CONFIG).num_examples == trainer.num_examples == 50
    assert calls == [1]


def test_a_model_that_differs_is_refused_with_the_difference() -> None:
    trainer = KerasTrainer(functional, (X, Y))
    start = parameters_of(trainer.model)
    name = next(iter(start))
    with pytest.raises(AppError, match=rf"{name}.*float32\[4, 9\]"):
        trainer.train(start.replace({**start, name: np.zeros((4, 9), np.float32)}), CONFIG)
    with pytest.raises(AppError, match="not the federation's"):
        trainer.train(Parameters({"x": np.zeros(1, np.float32)}), CONFIG)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]), "not compiled"),
        (lambda: None, "returned None, expected a keras.Model: end it with `return model`"),
        (lambda: (functional(), 1), "returned tuple, expected a keras.Model, compiled: return the model alone"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_at_start(build: Callable[[], Any], text: str) -> None:
    with pytest.raises(AppError, match=text):
        KerasTrainer(build, (X, Y))


def test_a_model_without_weights_has_no_parameters_and_says_what_to_do() -> None:
    with pytest.raises(AppError, match=r"keras\.Input"):
        parameters_of(subclassed())
    assert len(parameters_of(built_model(subclassed, X[:1]))) == 8


@pytest.mark.parametrize(
    ("data", "text"),
    [((X, Y[:-1]), "different lengths"), (X, "expected \\(x, y\\)"), ((X, 3), "scalar")],
)
def test_data_that_does_not_fit_is_refused(data: Any, text: str) -> None:
    with pytest.raises(AppError, match=text):
        _ = KerasTrainer(functional, data).num_examples


def test_without_examples_there_is_nothing_to_train_on() -> None:
    trainer = KerasTrainer(functional, (X[:0], Y[:0]))
    assert trainer.num_examples == 0
    with pytest.raises(TrainerError, match="no training examples"):
        trainer.train(parameters_of(trainer.model), CONFIG)


def test_without_evaluation_data_there_is_no_evaluation() -> None:
    trainer = KerasTrainer(functional, (X, Y))
    with pytest.raises(NotImplementedError, match="evaluation_data"):
        trainer.evaluate(parameters_of(trainer.model))


def test_an_evaluation_is_keras_own() -> None:
    trainer = KerasTrainer(functional, evaluation_data=(X, Y))
    start = parameters_of(trainer.model)
    ours = trainer.evaluate(start, batch_size=16)
    theirs = trainer.model.evaluate(X, Y, verbose=0, return_dict=True)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_cancelled_training_raises() -> None:
    trainer = KerasTrainer(functional, (X, Y))
    start = parameters_of(trainer.model)
    raised: list[Exception] = []

    def train() -> None:
        try:
            trainer.train(start, TrainingConfig(epochs=10_000, batch_size=1))
        except TrainerError as error:
            raised.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        trainer.cancel()
        thread.join(0.05)
    assert "cancelled" in str(raised[0])


def test_nothing_is_traced_again_and_memory_does_not_grow_over_200_tasks() -> None:
    traces: list[int] = []

    class Counts(layers.Layer):
        def call(self, x: Any) -> Any:
            traces.append(1)
            return x

    def build() -> Any:
        body = [Counts(), layers.Dense(256, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.2)]
        return compiled(keras.Sequential([keras.Input((4,)), *body, layers.Dense(2, activation="softmax")]))

    trainer = KerasTrainer(build, (X, Y), evaluation_data=(X, Y))
    parameters: Any = parameters_of(trainer.model)

    def task(number: int) -> None:
        nonlocal parameters
        config = TrainingConfig(batch_size=16, seed=number, proximal_mu=0.1 * (number % 2), learning_rate=1e-3)
        parameters = trainer.train(Parameters(dict(parameters)), config).parameters
        trainer.evaluate(parameters)

    for number in range(20):
        task(number)
    warm = len(traces)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for number in range(200):
        task(number)
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    assert len(traces) == warm
    assert grown < 8 * 1024**2, f"{grown / 1024**2:.1f} MiB over 200 tasks"


def test_a_number_of_threads_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_TF_THREADS", "all")
    with pytest.raises(ConfigError, match="FEDMQ_TF_THREADS is 'all', expected a whole number"):
        KerasTrainer(functional, (X, Y))


def test_models_are_made_by_one_thread_at_a_time() -> None:
    """TensorFlow ends the process now and then if several threads make their first models at once."""
    made: list[str] = []

    def second() -> None:
        KerasTrainer(lambda: made.append("second") or linear())

    other = threading.Thread(target=second)

    def first() -> Any:
        other.start()
        other.join(0.2)
        assert made == []
        made.append("first")
        return linear()

    KerasTrainer(first)
    other.join()
    assert made == ["first", "second"]
