"""A model's steps as traced functions, whose random numbers follow from a seed.

a generator of a layer's own (Dropout)      a variable of the model; the trainer sets it
keras.random without a seed                 Keras's global generator, a variable that the traced step captures
tf.random.Generator                         a variable that the traced step captures
tf.random.uniform and its like              kernels with a state that nobody can set. Their seeds are fixed when the
                                            step is traced, so it is traced again for each task
all of these, run eagerly                   the process's seeds
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedmq.participant.training.generators import seeded_generators
from fedmq.participant.training.keras.backend import keras, tf

KERAS_STATE, TENSORFLOW_STATE = "seed_generator_state", "StateVar"
"""Names of the variables of keras.random.SeedGenerator and tf.random.Generator."""


making = threading.RLock()
"""Held while a model is made or a step is traced. TensorFlow ends the process (SIGSEGV, in one of ten tries here) if
several threads do so at once."""


class Step:
    """A step of a model, a function of a batch.

    It is traced once, unless its kernels have to be seeded anew. `signature` has the batch's specs; None runs the step
    eagerly. The random states among the model's own variables are the caller's to set.
    """

    def __init__(self, step: Callable[[Any], Any], signature: Any, model: Any) -> None:
        self._step, self._signature = step, signature
        self._own = {id(variable.value) for variable in model.variables}
        self._run: Callable[[Any], Any] | None = None if signature is not None else step
        self._states: list[Any] = [] if signature is not None else _generators(model)
        self._redrawn = False

    def __call__(self, batch: Any) -> Any:
        assert self._run is not None, "`begin` comes first"
        return self._run(batch)

    def begin(self, seed: int) -> None:
        """Let the random numbers of the next calls follow from `seed`."""
        if self._run is None:
            self._trace(0)  # what a trace draws is a constant of the step, the same in every process
        if self._redrawn:
            self._trace(seed)
        for variable, word in zip(self._states, _words(seed, len(self._states)), strict=True):
            state = [word, 0] if KERAS_STATE in variable.name else [0, 0, word]
            variable.assign(np.array(state, variable.dtype.as_numpy_dtype))

    def _trace(self, seed: int) -> None:
        with making, seeded_process(seed):
            keras.random.uniform(())  # Keras's global generator has to exist before a trace needs it
        with making, seeded_process(seed) as word:
            if self._redrawn:
                tf.random.set_seed(word)
            traced = tf.function(self._step, input_signature=[self._signature], autograph=False)
            graph = traced.get_concrete_function().graph
        others = [v for v in graph.variables if id(v) not in self._own]
        self._states = [v for v in others if v.name.split("/")[-1].startswith((KERAS_STATE, TENSORFLOW_STATE))]
        self._redrawn = any(_has_seeds(node) for node in _nodes(graph.as_graph_def()))
        self._run = traced


@contextmanager
def seeded_process(seed: int, *, eager: bool = False) -> Iterator[int]:
    """Seed Python's and numpy's generators, and yield the number they were seeded with.

    Afterwards they go on from where they were. With `eager` those of Keras and TensorFlow are seeded too, and stay so.
    """
    word = _words(seed, 1)[0]
    with seeded_generators(word):
        if eager:
            seed_keras(word)
        yield word


def seed_keras(word: int) -> None:
    """Seed the process's generators of Keras and TensorFlow, and with them Python's and numpy's."""
    keras.utils.set_random_seed(word)
    tf.random.get_global_generator().reset_from_seed(word)


def _generators(model: Any) -> list[Any]:
    """Return the states of the tf.random.Generators that are attributes of the model or of its layers."""
    parts = [model, *model._flatten_layers(include_self=False)]
    values = [value for part in parts for value in vars(part).values()]
    return [value.state for value in values if isinstance(value, tf.random.Generator)]


def _words(seed: int, count: int) -> list[int]:
    """Return numbers of 31 bits that follow from the seed, apart from those of the model's own generators."""
    words = np.random.SeedSequence(seed, spawn_key=(2,)).generate_state(max(count, 1))
    return [int(word) >> 1 for word in words[:count]]


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _has_seeds(node: Any) -> bool:
    """Return True for an operation with a random state of its own, which its two seeds begin."""
    return "seed" in node.attr and "seed2" in node.attr
