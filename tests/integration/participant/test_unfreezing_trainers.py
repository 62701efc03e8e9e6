"""Trainers train what the task says after an unfreezing: the same bits as a model that never froze these layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedmq.app.app import App
from fedmq.app.models import KerasModel, TorchModel, frozen_flags
from fedmq.schemas.messages import UNFROZEN, TrainingConfig
from fedmq.schemas.parameters import Parameters

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
BEFORE = TrainingConfig(epochs=2, batch_size=8, learning_rate=0.1, seed=5)
AFTER = TrainingConfig(epochs=2, batch_size=8, learning_rate=0.1, seed=5, extra={UNFROZEN: 3})


def of_task(parameters: Parameters, trains: set[str]) -> Parameters:
    """Return the tensors of a task in which these are trainable."""
    return Parameters(dict(parameters), set(parameters) - trains)


def changed(before: Parameters, after: Any) -> set[str]:
    return {name for name in before if before[name].tobytes() != np.asarray(after[name]).tobytes()}


def same(one: Any, other: Any) -> bool:
    return all(np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes() for name in one)


# Keras


def keras_model(frozen: bool = True, **adam: Any) -> Any:
    keras = pytest.importorskip("keras")
    norm = keras.layers.BatchNormalization()
    backbone = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, name="deep"), norm, keras.layers.Dense(5, name="last")]
    )
    backbone.trainable = not frozen
    norm.trainable = False
    if not frozen:
        norm.gamma.trainable = norm.beta.trainable = True
    layers = [keras.Input((4,)), backbone, keras.layers.Dropout(0.2, seed=1), keras.layers.Dense(2, name="head")]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **adam)
    return model


def keras_trainer(**build: Any) -> Any:
    pytest.importorskip("keras")
    from fedmq.participant.training.keras.trainer import KerasTrainer

    return KerasTrainer(lambda: keras_model(**build), (X, Y))


def keras_names(parameters: Parameters) -> dict[str, str]:
    return {"/".join(name.split("/")[-2:]): name for name in parameters}


@pytest.mark.parametrize("eagerly", [False, True], ids=["traced", "eager"])
def test_keras_trains_what_the_task_says_as_a_model_that_never_froze_it(eagerly):
    from fedmq.participant.training.keras.model import parameters_of

    trainer, twin = keras_trainer(run_eagerly=eagerly), keras_trainer(frozen=False, run_eagerly=eagerly)
    base = parameters_of(trainer.model)
    names = keras_names(base)
    head = {names["head/kernel"], names["head/bias"]}
    assert changed(base, trainer.train(base, BEFORE).parameters) - {n for n in base if "seed" in n} == head

    weights = {name for short, name in names.items() if "moving" not in short and "seed" not in short}
    after = trainer.train(of_task(base, weights), AFTER)
    assert changed(base, after.parameters) - {n for n in base if "seed" in n} == weights  # the statistics stay
    twins = twin.train(Parameters(dict(zip(parameters_of(twin.model), base.values(), strict=True))), BEFORE)
    assert [a.tobytes() for a in after.parameters.values()] == [a.tobytes() for a in twins.parameters.values()]
    assert after.metrics == twins.metrics

    again = trainer.train(base, BEFORE)  # a task from before the unfreezing that came late
    assert changed(base, again.parameters) - {n for n in base if "seed" in n} == head
    assert same(trainer.train(of_task(base, weights), AFTER).parameters, after.parameters)


def test_keras_trains_a_part_of_a_frozen_block():
    from fedmq.participant.training.keras.model import parameters_of

    trainer = keras_trainer()
    base = parameters_of(trainer.model)
    names = keras_names(base)
    part = {names[short] for short in ("last/kernel", "last/bias", "head/kernel", "head/bias")}
    after = trainer.train(of_task(base, part), AFTER)
    assert changed(base, after.parameters) - {n for n in base if "seed" in n} == part


def test_a_participant_that_freezes_more_than_the_coordinator_is_left_alone_without_an_unfreezing():
    from fedmq.participant.training.keras.model import parameters_of

    trainer = keras_trainer()
    base = parameters_of(trainer.model)
    names = keras_names(base)
    after = trainer.train(of_task(base, set(base)), BEFORE)
    assert names["deep/kernel"] not in changed(base, after.parameters)


def test_loras_base_trains_after_its_unfreezing():
    keras = pytest.importorskip("keras")
    from fedmq.participant.training.keras.model import parameters_of
    from fedmq.participant.training.keras.trainer import KerasTrainer

    def build() -> Any:
        dense = keras.layers.Dense(3, name="lora")
        model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2, name="head")])
        dense.enable_lora(1)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    trainer = KerasTrainer(build, (X, Y))
    base = parameters_of(trainer.model)
    kernel = next(name for name in base if name.endswith("lora/kernel"))
    assert kernel not in changed(base, trainer.train(base, BEFORE).parameters)
    assert kernel in changed(base, trainer.train(of_task(base, set(base)), AFTER).parameters)


def test_an_apps_frozen_tensors_say_whether_an_optimizer_would_step_them(tmp_path):
    pytest.importorskip("keras")
    from fedmq.participant.training.keras.model import parameters_of

    app = App(tmp_path / "app.py", {"build_model": keras_model})
    parameters = parameters_of(keras_model())
    flags = frozen_flags(app, parameters, lambda: KerasModel(app))
    assert {"/".join(name.split("/")[-2:]): trains for name, trains in flags.items()} == {
        "deep/kernel": True, "deep/bias": True, "batch_normalization/gamma": True, "batch_normalization/beta": True,
        "batch_normalization/moving_mean": False, "batch_normalization/moving_variance": False,
        "last/kernel": True, "last/bias": True,
    }  # fmt: skip
    own = App(tmp_path / "app.py", {"build_trainer": print, "frozen": lambda _: ["a", "b"]})
    given = Parameters({"a": np.ones(1), "b": np.ones(1), "w": np.ones(1)}, {"b"})
    assert frozen_flags(own, given, lambda: KerasModel(own)) == {"a": True, "b": False}


# PyTorch


def torch_model(frozen: bool = True) -> Any:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))
    model[1].eval()
    for parameter in (*model[0].parameters(), *model[1].parameters()):
        parameter.requires_grad = not frozen
    return model


def torch_trainer(**build: Any) -> Any:
    torch = pytest.importorskip("torch")
    from fedmq.participant.training.torch.trainer import TorchTrainer

    return TorchTrainer(lambda: torch_model(**build), torch.nn.CrossEntropyLoss(), (X, Y), torch.optim.Adam)


def test_torch_trains_what_the_task_says_as_a_model_that_never_froze_it():
    from fedmq.participant.training.torch.model import parameters_of

    trainer, twin = torch_trainer(), torch_trainer(frozen=False)
    base = parameters_of(trainer.model)
    head, weights = {"2.weight", "2.bias"}, {name for name in base if name.endswith(("weight", "bias"))}
    assert changed(base, trainer.train(base, BEFORE).parameters) == head
    after = trainer.train(of_task(base, weights), AFTER)
    assert changed(base, after.parameters) == weights
    assert same(after.parameters, twin.train(base, BEFORE).parameters)
    part = trainer.train(of_task(base, head | {"0.weight"}), AFTER)
    assert changed(base, part.parameters) == head | {"0.weight"}
    assert changed(base, trainer.train(of_task(base, weights), BEFORE).parameters) == head
    app = App(torch_model.__module__, {"build_model": torch_model, "loss": print, "optimizer": print})  # type: ignore[arg-type]
    flags = frozen_flags(app, base, lambda: TorchModel(app))
    assert flags == dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), True)
