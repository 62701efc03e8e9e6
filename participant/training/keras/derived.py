"""State of layers that is computed from weights, or learned beside them.

Keras's preprocessing layers have two kinds:

    computed from weights    Normalization keeps tensors made of its weights mean and variance. An assignment to the
                             weights does not change them. `refresh` does.
    beside the weights       Discretization keeps bin boundaries, and the lookups a vocabulary, after `adapt`. A
                             Normalization may be given its mean, and Hashing its salt. A user's layer with an `adapt`
                             may keep arrays or numbers as attributes. All these are no weights, so they do not
                             travel. Their digest does, as an integer tensor. A model with others is refused.

A layer of the user's own takes part in the first kind if it has a `finalize_state()`, or reads its variables in a
`load_own_variables` of its own. Keras calls the latter too when it loads a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras, tf

Model = Any
Layer = Any

DIGEST_BYTES = 8
_AUTOMATIC_SUFFIX = re.compile(r"_\d+$")
ADAPTED = "adapted_state"
"""Digest's name for the attributes of a user's layer that has an `adapt`."""
_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup)


def without_suffix(name: str) -> str:
    """Return a name without Keras's automatic _N at its end."""
    return _AUTOMATIC_SUFFIX.sub("", name)


def layers_of(model: Model) -> list[Layer]:
    """Return the model's layers, also those inside of layers."""
    return list(model._flatten_layers(include_self=False))


def computing_layers(model: Model) -> list[Layer]:
    """Return the layers whose state is computed from their weights."""
    return [layer for layer in layers_of(model) if layer.weights and (_finalizes(layer) or _reads_its_own(layer))]


def refresh(layers: list[Layer]) -> None:
    """Compute the state of these layers from their weights again."""
    for layer in layers:
        if _finalizes(layer):
            layer.finalize_state()
        else:
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            layer.load_own_variables(store)


class TracedState:
    """Computed state of layers that a traced function has seen.

    A `tf.function` keeps tensors that it met as constants. So Normalization gets variables in their place, which
    `refresh` assigns to. Other layers are told by their weights: if these change, the functions must be traced again.
    """

    def __init__(self, model: Model) -> None:
        self._layers = computing_layers(model)
        self._held: dict[tuple[int, str], tf.Variable] = {}
        self._seen: list[bytes] | None = None

    def refresh(self) -> bool:
        """Compute the state again after weights were set. Return True if functions must be traced again."""
        if not self._layers:
            return False
        refresh(self._layers)
        for layer in self._layers:
            if isinstance(layer, keras.layers.Normalization):
                for attribute in ("mean", "variance"):
                    self._hold(layer, attribute)
        seen = [
            v.value.numpy().tobytes()
            for layer in self._layers
            if not isinstance(layer, keras.layers.Normalization)
            for v in layer.weights
        ]
        changed = self._seen is not None and seen != self._seen
        self._seen = seen
        return changed

    def _hold(self, layer: Layer, attribute: str) -> None:
        value = getattr(layer, attribute)
        held = self._held.setdefault((id(layer), attribute), value if isinstance(value, tf.Variable) else None)
        if held is None:
            held = self._held[id(layer), attribute] = tf.Variable(value, trainable=False)
        elif held is not value:
            held.assign(value)
        setattr(layer, attribute, held)


def digests(model: Model) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Return a name and a digest for each layer's state beside its weights, sorted by name. The names are
    "layer/bin_boundaries", "layer/vocabulary", "layer/mean", "layer/salt" and "layer/adapted_state"."""
    found = [(f"{without_suffix(layer.name)}/{what}", _digest(state)) for layer, what, state in _beside(model)]
    return sorted(found, key=lambda pair: pair[0])


def _beside(model: Model) -> Iterator[tuple[Layer, str, bytes]]:
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Discretization):
            # float32 as in Keras's summaries: a boundary's last digits may differ from one machine to another
            yield layer, "bin_boundaries", np.asarray(layer.bin_boundaries or (), np.float32).tobytes()
        elif isinstance(layer, _LOOKUPS):
            words = "\n".join(str(word) for word in layer.get_vocabulary())
            weights = getattr(layer, "idf_weights_const", None)
            inverse = b"" if weights is None else np.asarray(weights, np.float32).tobytes()
            yield layer, "vocabulary", words.encode() + inverse
        elif isinstance(layer, keras.layers.Normalization) and not layer.weights:
            given = (np.asarray(value, np.float32) for value in (layer.input_mean, layer.input_variance))
            yield layer, "mean", b"".join(array.tobytes() for array in given)
        elif isinstance(layer, keras.layers.Hashing):
            yield layer, "salt", repr((layer.num_bins, layer.salt)).encode()
        elif _adapts_attributes(layer) and (kept := list(_numbers(layer))):
            yield layer, ADAPTED, b"".join(name.encode() + array.tobytes() for name, array in kept)


def _adapts_attributes(layer: Layer) -> bool:
    """Return True for a user's layer that learns by an `adapt`, and has no weight to keep it in."""
    own = not type(layer).__module__.startswith("keras.")
    return own and callable(getattr(layer, "adapt", None)) and not layer.weights


def _numbers(layer: Layer) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield the public attributes of a layer that are numbers or arrays of them, by name."""
    for name, value in sorted(vars(layer).items()):
        if name.startswith("_") or not isinstance(value, float | np.ndarray | np.number | tf.Tensor | list | tuple):
            continue
        try:
            yield name, np.asarray(value, np.float32)
        except (TypeError, ValueError, NotImplementedError):  # texts, ragged lists, tensors of a traced function
            continue


def _digest(state: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(state).digest()[:DIGEST_BYTES], np.uint8)


def _finalizes(layer: Layer) -> bool:
    return callable(getattr(layer, "finalize_state", None)) and layer.built


def _reads_its_own(layer: Layer) -> bool:
    """Return True if the layer is a user's, with a `load_own_variables` of its own."""
    defined = next(cls for cls in type(layer).__mro__ if "load_own_variables" in vars(cls))
    return not defined.__module__.startswith("keras.")
