"""The cohort path against the plain one, and models without a cohort path."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from fedmq.coordinator.strategies import FedAsync
from fedmq.schemas.errors import AppError, ConfigError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.population.laws import Exponential
from fedmq.studies.problems.keras import compiled_cache as keras_kept
from fedmq.studies.problems.keras import path_choice as choices
from fedmq.studies.problems.keras import vectorised as keras_vectorised
from fedmq.studies.problems.keras.cohort import KerasCohort, KerasFederation
from fedmq.studies.problems.lazy_training import Job
from tests.scenario.studies.federations import Given, population, simulate, until
from tests.support.full import in_full

SIZES = (1, 7, 10, 25, 12, 12)  # with batches of 10: full and short ones, and different numbers of steps
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((200, 6)).astype(np.float32), RNG.integers(0, 3, 200)
ROWS = [RNG.integers(0, 200, n) for n in SIZES]
ROWS_OF_150 = [rows % 150 for rows in ROWS]

OTHERS = in_full("test_keras_known.py and the optimizers left here have the same path")


def app(optimizer, *layers):
    def build_model():
        keras.utils.set_random_seed(3)
        hidden = [make() for make in layers] or [keras.layers.Dense(5, activation="relu", kernel_regularizer="l2")]
        model = keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3)])
        model.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    return build_model


def sgd():
    return keras.optimizers.SGD(0.1)


def jobs(base, rows=ROWS, **config):
    values = {"batch_size": 10, "epochs": 2} | config
    return [Job(i, base, TrainingConfig(seed=i, **values)) for i in range(len(rows))]


def compare(build_model, corrected=False, **config):
    together = KerasCohort(build_model, X, Y, ROWS, path="cohort", chunk=4)
    alone = KerasCohort(build_model, X, Y, ROWS, path="plain")
    todo = jobs(together.initial, **config)
    if corrected:
        noise = [RNG.standard_normal((7, 9)).astype(np.float32) for _ in todo]
        todo = [
            job._replace(correction=Parameters({n: np.resize(r, a.shape) for n, a in together.initial.items()}))
            for job, r in zip(todo, noise, strict=True)
        ]
    for ours, reference in zip(together.train(todo), alone.train(todo), strict=True):
        assert (ours.num_steps, ours.num_examples) == (reference.num_steps, reference.num_examples)
        assert ours.metrics["loss"] == pytest.approx(reference.metrics["loss"], rel=1e-5)
        assert list(ours.parameters) == list(reference.parameters)
        for name, expected in reference.parameters.items():
            np.testing.assert_allclose(ours.parameters[name], expected, atol=2e-6)
        assert any(np.abs(p - together.initial[n]).max() > 1e-3 for n, p in ours.parameters.items())
    return together, todo


@pytest.mark.parametrize(
    ("optimizer", "config"),
    [
        (sgd, {"proximal_mu": 0.5, "learning_rate": 0.05}),
        (sgd, {"corrected": True}),
        pytest.param(lambda: keras.optimizers.SGD(0.1, momentum=0.9), {"max_steps": 3}, marks=OTHERS),
        pytest.param(lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), {}, marks=OTHERS),
        (keras.optimizers.Adam, {}),
    ],
    ids=["sgd", "corrected", "momentum", "nesterov", "adam"],
)
def test_the_cohort_gives_what_each_participants_own_compiled_step_gives(optimizer, config):
    compare(app(optimizer), **config)


def test_batch_norm_agrees_because_its_short_batches_take_the_plain_path():
    together, _ = compare(app(sgd, lambda: keras.layers.Dense(4), keras.layers.BatchNormalization))
    assert "tasks with a short batch one after the other: 'batch_normalization" in together.name


def test_a_participants_bytes_do_not_depend_on_its_cohort():
    backend = KerasCohort(app(sgd), X, Y, ROWS, path="cohort", chunk=4)
    todo = jobs(backend.initial)
    together = backend.train(todo)
    alone = [backend.train([job])[0] for job in todo]
    backwards = backend.train(todo[::-1])[::-1]
    for other in (alone, backwards):
        for a, b in zip(together, other, strict=True):
            assert all(a.parameters[n].tobytes() == b.parameters[n].tobytes() for n in a.parameters)


def test_what_is_done_where_there_is_a_gpu_gives_the_same_bytes_on_a_processor(monkeypatch):
    """Chunks are larger, and weights are copied both ways: everything is as on a GPU, apart from the GPU."""
    asked = []
    experimental = keras_vectorised.tf.config.experimental
    monkeypatch.setattr(experimental, "enable_op_determinism", lambda: asked.append("one order of sums"))
    monkeypatch.setattr(experimental, "enable_tensor_float_32_execution", asked.append)
    backend = KerasCohort(app(sgd), X, Y, ROWS, path="cohort")
    here = backend.train(jobs(backend.initial))
    monkeypatch.setattr(keras_vectorised, "sees_gpu", lambda: True)
    monkeypatch.setattr(keras_vectorised, "_viewed", lambda tensor: tensor.numpy())
    monkeypatch.setattr(keras_vectorised.tf.experimental.dlpack, "from_dlpack", None)
    there = KerasCohort(app(sgd), X, Y, ROWS, path="cohort")
    assert asked == [False, "one order of sums"]
    for a, b in zip(here, there.train(jobs(backend.initial)), strict=True):
        assert all(a.parameters[n].tobytes() == b.parameters[n].tobytes() for n in a.parameters)


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU here")
def test_a_gpu_is_used_without_a_flag():
    before = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    compare(app(sgd))
    assert tf.config.experimental.get_memory_info("GPU:0")["peak"] > before


def test_the_faster_path_is_chosen_once_and_named_with_both_times():
    backend = KerasCohort(app(sgd), X, Y, ROWS, chunk=4)
    backend.train(jobs(backend.initial))
    name = backend.name
    assert "ms vectorised" in name
    assert "ms by itself" in name
    backend.train(jobs(backend.initial))
    assert backend.name == name


def test_all_cells_of_a_study_take_the_path_that_the_first_one_chose(monkeypatch, tmp_path):
    monkeypatch.setattr(choices, "_folder", None)
    choices.keep_in(tmp_path)
    first = KerasCohort(app(sgd), X, Y, ROWS, chunk=4)
    first.train(jobs(first.initial))
    monkeypatch.setattr(KerasCohort, "_measured", None)
    second = KerasCohort(app(sgd), X, Y, ROWS[:3], chunk=4, seed=1)
    second.train(jobs(second.initial, ROWS[:3], learning_rate=0.5))
    assert second.name == first.name
    with pytest.raises(TypeError, match="not callable"):  # no path was chosen for these, so it would be measured
        KerasCohort(app(sgd), X, Y, ROWS, chunk=4).train(jobs(second.initial, batch_size=5))


def test_what_was_compiled_of_a_model_serves_the_next_federation_as_if_it_were_new(monkeypatch):
    """The second federation has other data, other rows and another initial model.

    Nothing is left of the first's training.
    """
    monkeypatch.setattr(keras_kept, "_kept", {})
    build_model, built = app(lambda: keras.optimizers.Adam(0.01), lambda: keras.layers.Dense(4)), []

    def counted():
        built.append(1)
        return build_model()

    def trained(seed, path):
        x = np.random.default_rng(seed).standard_normal((150, 6)).astype(np.float32)
        federation = KerasFederation(counted, x, Y[:150], ROWS_OF_150, test=(x, Y[:150]), path=path, chunk=4, seed=seed)
        results = federation.backend.train(jobs(federation.initial))
        return [[a.tobytes() for a in r.parameters.values()] for r in results], federation.evaluate(federation.initial)

    alone = {}
    for path in ("cohort", "plain"):
        keras_kept._kept.clear()
        alone[path] = trained(7, path)
    keras_kept._kept.clear()
    trained(1, "cohort")
    built.clear()
    assert trained(7, "cohort") == alone["cohort"]
    assert len(built) == 1, "the initial model alone"
    assert trained(7, "plain") == alone["plain"]
    assert len(built) == 2


def test_a_model_by_an_object_that_cannot_be_hashed_is_built_each_time():
    class Builds:
        __hash__ = None

        def __call__(self):
            return app(sgd)()

    backend = KerasCohort(Builds(), X, Y, ROWS, path="plain")
    assert len(backend.train(jobs(backend.initial))) == len(ROWS)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (keras.optimizers.RMSprop, "its optimizer is RMSprop"),
        (lambda: keras.optimizers.SGD(0.1, clipnorm=1.0), "its SGD has clipnorm = 1.0"),
        (lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)), "has a schedule"),
        (lambda: keras.optimizers.Adam(amsgrad=True), "its Adam has amsgrad = True"),
    ],
)
def test_a_model_without_a_cohort_path_takes_the_plain_one_and_says_why(optimizer, reason):
    backend = KerasCohort(app(optimizer), X, Y, ROWS)
    assert reason in backend.name
    with pytest.raises(AppError, match=reason):
        KerasCohort(app(optimizer), X, Y, ROWS, path="cohort")


@pytest.mark.parametrize("path", ["cohort", "plain"])
def test_a_correction_of_anything_but_plain_gradient_steps_is_refused(path):
    backend = KerasCohort(app(lambda: keras.optimizers.SGD(0.1, momentum=0.9)), X, Y, ROWS, path=path, chunk=4)
    (job, *_) = jobs(backend.initial)
    with pytest.raises(AppError, match="SGD with momentum, and SCAFFOLD needs plain gradient steps"):
        backend.train([job._replace(correction=backend.initial)])


def test_more_memory_than_the_limit_is_refused_with_the_number():
    with pytest.raises(ConfigError, match=r"about [\d,]+ bytes, the limit is 1,000"):
        KerasFederation(app(sgd), X, Y, ROWS, memory_bytes=1000)


def test_a_keras_federation_runs_in_the_engine_the_same_bytes_on_one_path():
    def digest(chunk):
        federation = KerasFederation(app(sgd), X, Y, ROWS, test=(X, Y), path="cohort", chunk=chunk)
        people = population(len(ROWS), Exponential(mean=1))
        run = until(12, concurrency=4, evaluate_interval_s=2.0)
        outcome = simulate(FedAsync(), Given(federation), people, run, TrainingConfig(batch_size=10))
        assert outcome.evaluations[-1].metrics["loss"] > 0
        return outcome.digest()

    assert digest(4) == digest(4)
