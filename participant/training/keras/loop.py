"""A model's training and test steps, and the fixed state from which each task starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.training.keras.backend import keras, tf
from fedmq.participant.training.keras.data import Data
from fedmq.participant.training.keras.derived import TracedState
from fedmq.participant.training.keras.model import Model, named_variables, set_parameters
from fedmq.participant.training.keras.optimizers import Optimizers
from fedmq.participant.training.keras.steps import KERAS_STATE, Step, seeded_process
from fedmq.schemas.messages import TrainingConfig


class Loop:
    """The training and test steps of one model. `example` is the first example of its data."""

    def __init__(self, model: Model, example: Data) -> None:
        if not (model.built and model.weights):
            model(example[0])
        self.model = model
        self.optimizers = Optimizers(model)
        self._seeds = [v for v in model.variables if v.name == KERAS_STATE]
        self._mu = tf.Variable(0.0, trainable=False, dtype=tf.float32)
        self._anchors: dict[int, tf.Variable] = {}
        self._corrections: dict[int, tf.Variable] = {}
        # One eager step makes the loss and metric variables: inside a traced function that would be too late. Every
        # task overwrites what this step does to the weights.
        packed = _packed(example)
        self.optimizers.first_step(packed)
        self._derived = TracedState(model)
        self.names: Mapping[str, str] = {}
        """Names of the parameters that were set last, by the model's own (model.received_names)."""
        self._signature = keras.tree.map_structure(_spec, packed)
        self._plain: Step
        self._trace()

    def set_parameters(self, parameters: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put `parameters` into the model. Raises AppError if they do not fit."""
        self.names = set_parameters(self.model, parameters, refreshes=False)
        if self._derived.refresh():
            self._trace()

    def reset(self, config: TrainingConfig, correction: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """Put everything but the weights back to its start, and set up this task's settings."""
        self.optimizers.reset(config.learning_rate)
        self.optimizers.check_reached(config, correction is not None)
        self._step = self._plain
        if config.proximal_mu > 0 or correction is not None:
            self._pull_by(config.proximal_mu, correction)
            assert self._pulled is not None
            self._step = self._pulled
        self._seed(config.seed, self._step)

    def reset_for_evaluation(self) -> None:
        """Seed what the model draws in an evaluation, always in the same way."""
        self._seed(0, self._test)

    def drawing(self, seed: int) -> AbstractContextManager[object]:
        """Return a context in which a model that runs eagerly draws by `seed`; others draw in their traced steps."""
        return seeded_process(seed, eager=True) if self.model.run_eagerly else nullcontext()

    def train_step(self, batch: Data) -> Any:
        """Train a step on a batch, and return its logs."""
        return self._step(_packed(batch))

    def test_step(self, batch: Data) -> Any:
        """Evaluate a batch, and return the logs so far."""
        return self._test(_packed(batch))

    def _trace(self) -> None:
        self._plain = self._step = self._traced(self._train_plain)
        self._pulled: Step | None = None
        self._test = self._traced(self.model.test_step)

    def _pull_by(self, mu: float, correction: Mapping[str, npt.NDArray[Any]] | None) -> None:
        """Keep the present weights as FedProx's w_base, and the correction of each gradient."""
        names = {id(v): self.names[name] for name, v in named_variables(self.model).items()}
        for variable in {id(v): v for v in (*self.model.trainable_variables, *self.optimizers.moved)}.values():
            if id(variable) not in self._anchors:
                self._anchors[id(variable)] = tf.Variable(variable.value, trainable=False)
                self._corrections[id(variable)] = tf.Variable(tf.zeros_like(variable.value), trainable=False)
            self._anchors[id(variable)].assign(variable.value)
            own = None if correction is None else correction.get(names.get(id(variable), ""))
            self._corrections[id(variable)].assign(tf.zeros_like(variable.value) if own is None else own)
        self._mu.assign(mu)
        if self._pulled is None:
            self._pulled = self._traced(self._train_pulled)

    def _seed(self, seed: int, step: Step) -> None:
        # Neighbouring layers get different streams.
        seeds = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(max(len(self._seeds), 1))
        for variable, own in zip(self._seeds, seeds, strict=False):
            variable.assign(np.array([own >> 1, 0], dtype=variable.dtype))
        step.begin(seed)

    def _traced(self, step: Callable[[Any], Any]) -> Step:
        return Step(step, None if self.model.run_eagerly else self._signature, self.model)

    def _train_plain(self, data: Any) -> Any:
        with self.optimizers.hooked():
            return self.model.train_step(data)

    def _train_pulled(self, data: Any) -> Any:
        """Train a step with additions to each gradient, made before the optimizer clips or scales it.

        The additions are FedProx's (Li et al. 2020), ∇(μ/2·‖w - w_base‖²) = μ·(w - w_base), and a method's correction
        (SCAFFOLD). The hook is in place only while this function runs or is traced.
        """
        with self.optimizers.hooked(self._with_pull):
            return self.model.train_step(data)

    def _with_pull(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        pulled: list[Any] = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None or id(variable) not in self._anchors:
                pulled.append(gradient)
                continue
            weight = tf.convert_to_tensor(variable.value)
            pull = tf.cast(self._mu, weight.dtype) * (weight - self._anchors[id(variable)])
            pull += self._corrections[id(variable)]
            pulled.append(tf.convert_to_tensor(gradient) + tf.cast(pull, gradient.dtype))
        return pulled


def _packed(batch: Data) -> Any:
    """Return a batch as `fit` gives it to a train_step: (x, y), (x, y, sample_weight), or x alone."""
    return keras.utils.pack_x_y_sample_weight(*batch)


def _spec(leaf: npt.NDArray[Any]) -> Any:
    return tf.TensorSpec([None, *leaf.shape[1:]], tf.convert_to_tensor(leaf).dtype)
