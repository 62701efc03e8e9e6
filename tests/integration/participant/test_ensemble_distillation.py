"""FedDF's distillation in Keras and PyTorch: one step and many of a linear model equal the numpy twin's."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from fedmq import Distiller
from fedmq.participant.training.keras.model import built_model, parameters_of
from fedmq.participant.training.torch.model import parameters_of as torch_parameters_of
from fedmq.schemas.errors import AppError
from fedmq.schemas.parameters import Parameters
from tests.support import two_classes as twin

EXACT = 1e-7


def keras_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="float64")])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def keras_probabilities():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax", dtype="float64")])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def torch_model():
    return torch.nn.Linear(2, 2).double()


def torch_probabilities():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Softmax(dim=1)).double()


def names(build_model):
    if build_model in (torch_model, torch_probabilities):
        return list(torch_parameters_of(build_model()))
    return list(parameters_of(built_model(build_model)))


def as_parameters(build_model, w, b):
    transposed = build_model in (torch_model, torch_probabilities)
    return Parameters(dict(zip(names(build_model), (w.T.copy() if transposed else w, b), strict=True)))


def sgd(build_model):
    if build_model in (torch_model, torch_probabilities):
        return lambda parameters: torch.optim.SGD(parameters, twin.RATE)
    return lambda: keras.optimizers.SGD(twin.RATE)


MODELS = [keras_model, keras_probabilities, torch_model, torch_probabilities]


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("build_model", MODELS)
def test_steps_of_plain_descent_are_the_twins(build_model, temperature, steps):
    distiller = Distiller(
        build_model, lambda: twin.X, steps=steps, batch_size=2, temperature=temperature, optimizer=sgd(build_model)
    )
    ensemble = [(as_parameters(build_model, w, b), weight) for w, b, weight in twin.MODELS]
    start = as_parameters(build_model, *twin.START)
    made = distiller.distil(ensemble, start, seed=3)
    expected = as_parameters(build_model, *twin.stepped(temperature, steps))
    assert list(made) == list(expected)
    for name in expected:
        np.testing.assert_allclose(made[name], expected[name], rtol=0, atol=steps * EXACT)
    again = distiller.distil(ensemble, start, seed=3)
    assert [made[name].tobytes() for name in made] == [again[name].tobytes() for name in made]


@pytest.mark.parametrize("build_model", MODELS)
def test_adam_with_a_cosine_comes_to_the_ensembles_outputs_and_rests_there(build_model):
    ensemble = [(as_parameters(build_model, w, b), weight) for w, b, weight in twin.MODELS]
    start = as_parameters(build_model, *twin.START)
    made = Distiller(build_model, twin.X, steps=400, batch_size=2, learning_rate=0.05).distil(ensemble, start, seed=0)
    w, b = (np.asarray(made[name], np.float64) for name in made)
    w = w.T if build_model in (torch_model, torch_probabilities) else w
    np.testing.assert_allclose(twin.softmax(twin.X @ w + b), twin.softmax(twin.MEAN_LOGITS), atol=1e-3)


def test_the_first_step_of_adam_has_the_given_rate_and_the_last_one_none():
    """Adam's first step is η in each direction, whatever the gradient; the cosine is at 1 there."""
    for build_model in (keras_model, torch_model):
        ensemble = [(as_parameters(build_model, w, b), weight) for w, b, weight in twin.MODELS]
        start = as_parameters(build_model, *twin.START)
        one = Distiller(build_model, twin.X, steps=1, batch_size=2, learning_rate=0.01).distil(ensemble, start, seed=0)
        for name in one:
            np.testing.assert_allclose(np.abs(one[name] - start[name]), 0.01, rtol=1e-3)


def test_a_model_that_is_no_classifier_is_refused():
    def one_output():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        return model

    given = parameters_of(built_model(one_output))
    with pytest.raises(AppError, match="distillation is for classifiers"):
        Distiller(one_output, twin.X).distil([(given, 1.0)], given, 0)
    single = torch_parameters_of(torch.nn.Linear(2, 1))
    with pytest.raises(AppError, match="distillation is for classifiers"):
        Distiller(lambda: torch.nn.Linear(2, 1), twin.X).distil([(single, 1.0)], single, 0)
