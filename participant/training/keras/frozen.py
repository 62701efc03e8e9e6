"""Weights of a Keras model that no training changes: a list of what is known, not a guess.

Known, in layers of Keras's own, if the model has Keras's own `train_step`:

- weights that were made to be trained and are not: all weights of a layer with trainable=False, and LoRA's base (the
  kernel of a layer after `enable_lora`), because no optimizer steps them
- the moving mean and variance of a BatchNormalization with trainable=False, because Keras runs it in inference mode

Not known are the weights inside of a SpectralNormalization, which it assigns in each step. A user's own layers and
models may do anything, so theirs are not known either: the app names them by its function `frozen`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.keras.derived import layers_of
from fedmq.participant.training.keras.model import Model, named_variables


def frozen_names(model: Model) -> frozenset[str]:
    """Return the names in `parameters_of` of the weights that no training of this model changes."""
    step = next(cls for cls in type(model).__mro__ if "train_step" in vars(cls))
    if not _is_keras_own(step):
        return frozenset()
    layers = [model, *layers_of(model)]
    assigned = {
        id(v) for layer in layers if isinstance(layer, keras.layers.SpectralNormalization) for v in layer.weights
    }
    still = {id(v) for layer in layers for v in _still(layer)} - assigned
    return frozenset(name for name, variable in named_variables(model).items() if id(variable) in still)


def made_to_train(model: Model) -> dict[str, Any]:
    """Return the weights that were made to be trained, by their names in `parameters_of`, whether they are or not."""
    layers = [model, *layers_of(model)]
    made = {id(v) for layer in layers for v in layer._trainable_variables}
    return {name: variable for name, variable in named_variables(model).items() if id(variable) in made}


def unfreeze(model: Model, names: Collection[str]) -> None:
    """Let these weights, of those in `made_to_train`, be trained, although the model's own layers are not trainable.

    A BatchNormalization that its model froze goes on in inference mode, so its statistics stay as they are. Keras's own
    guide to fine-tuning asks for that (https://keras.io/guides/transfer_learning/).
    """
    model._trainable = True  # the setter would do so to all layers below
    for name, variable in made_to_train(model).items():
        if name in names:
            variable.trainable = True


def _still(layer: Any) -> list[Any]:
    if not _is_keras_own(type(layer)):
        return []
    found = [v for v in layer._trainable_variables if not v.trainable]
    if type(layer) is keras.layers.BatchNormalization and not layer.trainable:
        found += layer._non_trainable_variables
    return found


def _is_keras_own(cls: type[Any]) -> bool:
    return cls.__module__.startswith("keras.")
