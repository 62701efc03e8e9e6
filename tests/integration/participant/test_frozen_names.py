"""The tensors that are known to be frozen in models of Keras and PyTorch. Training leaves them as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedmq.app.app import App
from fedmq.app.models import KerasModel, frozen_names
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def keras_model(step: bool = False, *, own: bool = False) -> Any:
    keras = pytest.importorskip("keras")

    class Own(keras.layers.Dense):
        pass

    class Stepping(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    backbone = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, name="base"), keras.layers.BatchNormalization()]
    )
    backbone.trainable = False
    lora = keras.layers.Dense(5, name="lora")
    still = Own(5, name="own", trainable=False)
    spectral = keras.layers.SpectralNormalization(keras.layers.Dense(3, name="inside", trainable=False))
    body = [backbone, lora, *([still] if own else []), keras.layers.BatchNormalization(), spectral]
    model = (Stepping if step else keras.Sequential)([keras.Input((4,)), *body, keras.layers.Dense(2, name="head")])
    lora.enable_lora(1)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("own", [False, True], ids=["keras's layers", "a layer of one's own"])
def test_keras_knows_frozen_layers_their_statistics_and_loras_base(own):
    pytest.importorskip("keras")
    from fedmq.participant.training.keras.frozen import frozen_names as names_of
    from fedmq.participant.training.keras.model import parameters_of
    from fedmq.participant.training.keras.trainer import KerasTrainer

    names = names_of(keras_model(own=own))
    assert sorted("/".join(name.split("/")[-2:]) for name in names) == [
        "base/bias", "base/kernel", "batch_normalization/beta", "batch_normalization/gamma",
        "batch_normalization/moving_mean", "batch_normalization/moving_variance", "lora/kernel",
    ]  # fmt: skip
    trainer = KerasTrainer(lambda: keras_model(own=own), (X, Y))
    before = parameters_of(trainer.model)
    after = trainer.train(before, TrainingConfig(epochs=2, batch_size=8, learning_rate=0.1)).parameters
    assert {n for n in before if before[n].tobytes() == after[n].tobytes()} >= names
    still = {n for n in before if n not in names and "own" not in n and "inside/bias" not in n}
    assert all(before[n].tobytes() != after[n].tobytes() for n in still)


def test_a_train_step_of_ones_own_may_do_anything():
    pytest.importorskip("keras")
    from fedmq.participant.training.keras.frozen import frozen_names as names_of

    assert names_of(keras_model(step=True)) == set()


def test_torch_knows_parameters_without_gradients():
    torch = pytest.importorskip("torch")
    from fedmq.participant.training.torch.model import frozen_names as names_of

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
            self.head = torch.nn.Linear(2, 1)

    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2), Own())
    for parameter in (*model[0].parameters(), *model[1].parameters()):
        parameter.requires_grad = False
    assert names_of(model) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_an_app_names_them_itself_and_its_own_trainer_may_do_anything(tmp_path):
    functions = {"build_model": keras_model, "frozen": lambda parameters: [n for n in parameters if "head" in n]}
    app = App(tmp_path / "app.py", functions)
    parameters = {"head/kernel": np.ones(1), "base/kernel": np.ones(1)}
    assert frozen_names(app, parameters, lambda: KerasModel(app)) == {"head/kernel"}
    app = App(tmp_path / "app.py", functions | {"frozen": lambda _: "head/kernel"})
    with pytest.raises(AppError, match="expected a list of names"):
        frozen_names(app, parameters, lambda: KerasModel(app))
    app = App(tmp_path / "app.py", {"build_model": keras_model, "build_trainer": lambda _: None})
    assert frozen_names(app, parameters, lambda: KerasModel(app)) == set()
