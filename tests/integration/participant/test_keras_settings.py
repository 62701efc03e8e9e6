"""The Keras trainer does what arrives and what is set: state derived from weights, all optimizers, callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.app.app import load_app
from fedmq.app.model_worker import Helper
from fedmq.app.parameter_files import read_parameters, write_parameters
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

keras = pytest.importorskip("keras")
from fedmq.participant.training.keras.backend import tf  # noqa: E402  after the skip
from fedmq.participant.training.keras.model import parameters_of, set_parameters  # noqa: E402
from fedmq.participant.training.keras.trainer import KerasTrainer  # noqa: E402

layers = keras.layers

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(60, 3)) * 5 + [10, -20, 30]).astype(np.float32)
Y = (X[:, 0] > 10).astype(np.int64)
CONFIG = TrainingConfig(epochs=2, batch_size=16, seed=7)


def same(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


def moved(trainer: KerasTrainer, start: Parameters, **config: Any) -> dict[str, float]:
    """Return the largest change of each weight in one task."""
    found = trainer.train(start, CONFIG.model_copy(update=config)).parameters
    return {name.rpartition("/")[0]: float(abs(found[name] - start[name]).max()) for name in start}


# Layers with state that is computed from weights


def normalizing(rows: Any = None) -> Any:
    """A model that knows its statistics before it is built, if there are rows."""
    norm = layers.Normalization()
    if rows is not None:
        norm.adapt(rows)
    model = keras.Sequential([keras.Input((3,)), norm, layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_statistics_that_arrive_are_used_in_training_evaluation_and_export() -> None:
    federation = KerasTrainer(lambda: normalizing(X), (X, Y), evaluation_data=(X, Y))
    own = KerasTrainer(lambda: normalizing(X[:4]), (X, Y), evaluation_data=(X, Y))
    start = parameters_of(federation.model)
    own.evaluate(parameters_of(own.model))  # both functions are traced with the participant's own statistics
    own.train(parameters_of(own.model), CONFIG)
    result = federation.train(start, CONFIG)
    assert same(own.train(start, CONFIG).parameters, result.parameters)
    metrics = federation.evaluate(result.parameters)
    assert own.evaluate(result.parameters) == metrics
    exported = normalizing(X[:4])
    set_parameters(exported, result.parameters)
    assert exported.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


APP = """
import keras, numpy as np
X = np.arange(12, dtype="float32").reshape(4, 3)

def build_model():
    norm = keras.layers.Normalization()
    norm.adapt(X[:2])
    model = keras.Sequential([keras.Input((3,)), norm, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model

def load_test_data():
    return X, X[:, :1]
"""


def test_the_coordinators_evaluation_and_export_use_the_statistics_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    helper = Helper(load_app(tmp_path / "app.py"))
    helper.answer({"initial": str(tmp_path / "initial.safetensors")})
    initial = read_parameters(tmp_path / "initial.safetensors")
    mean, variance, *_ = initial
    trained = initial.replace({**initial, mean: initial[mean] + np.float32(2), variance: initial[variance] * 4})
    write_parameters(tmp_path / "final.safetensors", trained)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    kernel, bias = list(trained.values())[-2:]
    by_hand = (x - trained[mean]) / np.sqrt(trained[variance]) @ kernel + bias
    answer = helper.answer({"evaluate": str(tmp_path / "final.safetensors"), "version": 1})
    assert answer["metrics"]["loss"] == pytest.approx(np.mean((by_hand - x[:, :1]) ** 2), rel=1e-5)
    exported = helper.answer({"export": str(tmp_path / "final.safetensors"), "to": str(tmp_path / "final")})["written"]
    np.testing.assert_allclose(keras.saving.load_model(exported)(x), by_hand, rtol=1e-4, atol=1e-5)


def test_a_layer_that_was_adapted_before_its_model_was_built_has_the_names_of_one_that_was_not() -> None:
    plain = parameters_of(normalizing())
    assert next(iter(plain)).endswith("/normalization/mean")
    assert next(iter(parameters_of(normalizing(X)))) == "000/normalization/mean"
    adapted = KerasTrainer(lambda: normalizing(X), (X, Y))
    result = adapted.train(plain, CONFIG)
    assert list(result.parameters) == list(plain)
    assert result.parameters.non_trainable == plain.non_trainable
    assert same(result.parameters, KerasTrainer(normalizing, (X, Y)).train(plain, CONFIG).parameters)
    with pytest.raises(AppError, match="not the federation's"):
        adapted.train(Parameters({name.replace("mean", "median"): a for name, a in plain.items()}), CONFIG)


@pytest.mark.parametrize("how", ["finalize_state", "load_own_variables"])
def test_a_users_layer_that_derives_state_from_its_weights_is_refreshed(how: str) -> None:
    class Doubled(layers.Layer):
        def build(self, _shape: Any) -> None:
            self.held = self.add_weight(shape=(), trainable=False, initializer="ones", name="held")
            self.shift = self.add_weight(shape=(), initializer="zeros", name="shift")
            self._derive()

        def _derive(self) -> None:
            self.twice = 2.0 * float(self.held.numpy())

        def call(self, x: Any) -> Any:
            return x * self.twice + self.shift

        if how == "finalize_state":

            def finalize_state(self) -> None:
                self._derive()
        else:

            def load_own_variables(self, store: Any) -> None:
                super().load_own_variables(store)
                self._derive()

    def build() -> Any:
        model = keras.Sequential([keras.Input((1,)), Doubled()])
        model.compile("sgd", "mse")
        return model

    one = np.ones((1, 1), np.float32)
    trainer = KerasTrainer(build, evaluation_data=(one, one))
    start = parameters_of(trainer.model)
    (name,) = start.non_trainable
    for held in (1.0, 3.0, 1.0):
        loss = trainer.evaluate(start.replace({**start, name: np.array(held, np.float32)}))["loss"]
        assert loss == pytest.approx((2 * held - 1) ** 2)


def binned(rows: Any, words: Any = ("a", "b")) -> Any:
    bins, look = layers.Discretization(num_bins=4, output_mode="one_hot"), layers.StringLookup(output_mode="one_hot")
    bins.adapt(rows)
    look.adapt(np.array(words))
    number, word = keras.Input((1,)), keras.Input((1,), dtype="string")
    both = layers.Concatenate()([bins(number), layers.Reshape((3,))(look(word))])
    model = keras.Model([number, word], layers.Dense(1)(both))
    model.compile("sgd", "mse")
    return model


def test_bins_and_vocabularies_of_other_data_are_refused_because_they_do_not_travel() -> None:
    start = parameters_of(binned(X[:, 0]))
    assert list(start)[2:] == ["002/discretization/bin_boundaries", "003/string_lookup/vocabulary"]
    assert {a.dtype.name for a in list(start.values())[2:]} == {"uint8"}
    data = ([X[:, :1], np.array(["a", "b"] * 30).reshape(-1, 1)], Y.astype(np.float32))
    result = KerasTrainer(lambda: binned(X[:, 0]), data).train(start, CONFIG)
    assert same({n: result.parameters[n] for n in list(start)[2:]}, {n: start[n] for n in list(start)[2:]})
    with pytest.raises(AppError, match=r"layer discretization differs.* bin boundaries.*argument `bin_boundaries`"):
        KerasTrainer(lambda: binned(X[:30, 0]), data).train(start, CONFIG)
    with pytest.raises(AppError, match=r"layer string_lookup differs.* vocabulary.*argument `vocabulary`"):
        set_parameters(binned(X[:, 0], ["b", "c"]), start)


class Learning(layers.Layer):
    """A user's layer that keeps what it has adapted to as an attribute."""

    def adapt(self, rows: Any) -> None:
        self.centre = rows.mean(0)

    def call(self, x: Any) -> Any:
        return x - self.centre


def learning(rows: Any) -> Any:
    layer = Learning(name="mine")
    layer.adapt(rows)
    return layer


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda rows: layers.Normalization(mean=rows.mean(0), variance=rows.var(0), name="mine"), "argument `mean`"),
        (lambda rows: layers.Normalization(mean=[0.0] * 3, variance=rows.var(0), name="mine"), "argument `mean`"),
        (learning, r"self\.add_weight\(\.\.\., trainable=False\)"),
    ],
)
def test_numbers_that_a_layer_keeps_beside_its_weights_are_compared(layer: Any, said: str) -> None:
    def built(rows: Any) -> Any:
        model = keras.Sequential([keras.Input(X.shape[1:]), layer(rows), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    start = parameters_of(built(X))
    set_parameters(built(X.copy()), start)
    with pytest.raises(AppError, match=f"this app's layer mine .*{said}"):
        set_parameters(built(X[:5]), start)


def test_the_salt_of_a_hashing_layer_is_compared() -> None:
    def built(salt: int) -> Any:
        hashed = layers.Hashing(4, salt=salt, output_mode="one_hot")
        model = keras.Sequential([keras.Input((1,), dtype="string"), hashed, layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    with pytest.raises(AppError, match="layer hashing differs from the federation's in its salt"):
        set_parameters(built(1), parameters_of(built(2)))


def test_a_run_of_an_older_version_has_no_digests_and_goes_on() -> None:
    model = binned(X[:, 0])
    older = Parameters(dict(list(parameters_of(model).items())[:2]))
    names = set_parameters(model, older)
    assert list(parameters_of(model, names)) == list(older)


# Optimizers


class TwoSteps(keras.Model):
    """A model that gives each of its layers an optimizer of its own, as a GAN does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layers.Dense(4, name="first"), layers.Dense(1, name="second")

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))

    def compile_own(self, own: Any) -> None:
        self.compile()
        self.own = own

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = keras.ops.mean(keras.ops.square(self(x, training=True)[:, 0] - tf.cast(y, tf.float32)))
        for layer, optimizer in zip((self.first, self.second), self.optimizers(), strict=True):
            weights = layer.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}

    def optimizers(self) -> Any:
        return self.own


ELSEWHERE: dict[str, Any] = {}


class FromElsewhere(TwoSteps):
    """A model whose optimizers are no attributes."""

    def optimizers(self) -> Any:
        return ELSEWHERE["own"]


def two_steps(kind: type[TwoSteps] = TwoSteps, make: Any = keras.optimizers.Adam) -> Any:
    keras.utils.set_random_seed(3)
    model = kind()
    model(X[:1])
    own = [make(0.01), make(0.02)]
    model.compile_own(own if kind is TwoSteps else None)
    ELSEWHERE["own"] = own
    return model


@pytest.mark.parametrize("kind", [TwoSteps, FromElsewhere])
def test_all_optimizers_start_afresh_take_the_learning_rate_and_pull_to_the_base(kind: type[TwoSteps]) -> None:
    trainer = KerasTrainer(lambda: two_steps(kind), (X, Y))
    start = parameters_of(trainer.model)
    first = trainer.train(start, CONFIG)
    faster = moved(trainer, start, learning_rate=1.0)
    pulled = moved(trainer, start, epochs=5, proximal_mu=1e4)
    free = moved(trainer, start, epochs=5)
    assert len(free) == 4
    for weight, distance in free.items():
        assert faster[weight] > 0.25
        assert pulled[weight] != distance
    assert same(first.parameters, trainer.train(start, CONFIG).parameters)


def test_scaffold_looks_at_the_optimizers_that_make_the_steps() -> None:
    trainer = KerasTrainer(lambda: two_steps(make=keras.optimizers.SGD), (X, Y))
    start = parameters_of(trainer.model)
    config = TrainingConfig(learning_rate=1e-4, max_steps=1)
    zero = {name: np.zeros_like(a) for name, a in start.items()}
    plain = trainer.train(start, config, zero).parameters
    shifted = trainer.train(start, config, {name: a + np.float32(100) for name, a in zero.items()}).parameters
    for name in start:
        np.testing.assert_allclose(plain[name] - shifted[name], 1e-2, rtol=1e-2, err_msg=name)
    adam = KerasTrainer(two_steps, (X, Y))
    with pytest.raises(AppError, match="compiles Adam, and SCAFFOLD needs plain"):
        adam.train(start, config, zero)


class ByHand(TwoSteps):
    """A model that steps without an optimizer."""

    def train_step(self, data: Any) -> Any:
        for weight in self.trainable_weights:
            weight.assign_sub(0.5 * keras.ops.ones_like(weight))
        return {"loss": 0.0}


@pytest.mark.parametrize("setting", ["learning_rate", "proximal_mu"])
def test_a_setting_that_would_reach_no_step_is_refused(setting: str) -> None:
    trainer = KerasTrainer(lambda: two_steps(ByHand), (X, Y))
    start = parameters_of(trainer.model)
    assert max(moved(trainer, start).values()) == pytest.approx(0.5 * 8)
    with pytest.raises(AppError, match=rf"training\.{setting} cannot reach 000/.*without a Keras optimizer"):
        trainer.train(start, CONFIG.model_copy(update={setting: 0.1}))


# Callbacks


def test_callbacks_are_new_for_each_task_and_called_in_the_order_of_fit() -> None:
    def keys(given: Any) -> Any:
        return sorted(given) if isinstance(given, dict) else given

    class Notes(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Any] = []

        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_") and "test" not in name and "predict" not in name:
                return lambda *given, logs=None: self.calls.append((name, *map(keys, given), *keys(logs or {})))
            return super().__getattribute__(name)

    made: list[Any] = []

    def callbacks() -> list[Any]:
        made.append(Notes())
        return [made[-1]]

    trainer = KerasTrainer(lambda: normalizing(X), (X, Y), callbacks=callbacks)
    start = parameters_of(trainer.model)
    with_notes = trainer.train(start, CONFIG)
    trainer.train(start, CONFIG)
    fitted = Notes()
    normalizing(X).fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[fitted])
    assert made[0].calls == made[1].calls == fitted.calls
    assert same(with_notes.parameters, KerasTrainer(lambda: normalizing(X), (X, Y)).train(start, CONFIG).parameters)


def test_a_callback_may_stop_a_training_and_set_the_rate_for_this_task_alone() -> None:
    class Stops(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate.assign(0.5)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = logs["loss"] > 0

    stops: list[Any] = [Stops()]
    trainer = KerasTrainer(lambda: normalizing(X), (X, Y), callbacks=lambda: stops)
    start = parameters_of(trainer.model)
    assert trainer.train(start, CONFIG.model_copy(update={"epochs": 5})).num_steps == 4
    assert max(moved(trainer, start).values()) > 0.4
    stops.clear()
    assert trainer.train(start, CONFIG).num_steps == 8
    assert max(moved(trainer, start).values()) < 0.1
    stops.append("no callback")
    with pytest.raises(AppError, match=r"callbacks returned a list of 1, expected a list of keras\.callbacks"):
        trainer.train(start, CONFIG)
