"""The Keras trainer: it makes a trainer (`participant.trainer`) of a compiled model and its data.

It calls the model's own `train_step`, so a compiled loss, metrics, optimizer, mixed precision, or an overridden
`train_step` work as in `fit`. One `tf.function` does that; it is traced once and kept. `fit` builds a data adapter, a
`tf.data` pipeline and callbacks on every call, which costs more than the whole training of a small task.

Rules
1. Nothing of one task is left in the next. Weights come from the task. The optimizer's state, the learning rate, the
   metrics and the seed generators (Dropout) go back to fixed values by assignment: nothing is rebuilt or traced again,
   unless a layer draws by tf.random's own kernels (participant.training.keras.steps). Whatever is drawn follows
   from the task's seed, and in an evaluation from a fixed one.
2. The same parameters, config (with its seed) and data give the same result, bit for bit, on one machine.
3. The trainer never writes to the arrays that it is given. The arrays that it returns belong to the caller.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.keras.backend import keras, tf
from fedmq.participant.training.keras.data import Data, LazyData, length
from fedmq.participant.training.keras.model import (
    Model,
    built_model,
    check_plain,
    named_variables,
    parameters_of,
    set_parameters,
    value_of,
)
from fedmq.participant.training.keras.steps import KERAS_STATE, Step, making, seeded_process
from fedmq.schemas.errors import AppError, ConfigError, TrainerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import TrainingConfig

log = EventLog(__name__)


def limit_threads(threads: int) -> None:
    """Let TensorFlow use this many threads in an operation. After its first operation this only logs a warning."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        why = "TensorFlow is running already; set FEDMQ_TF_THREADS earlier"
        log.warning("threads_not_applied", threads=threads, why=why)


class KerasTrainer:
    """A trainer of the model of `build_model()` on `data`.

    data: (x, y) or (x, y, sample_weight), or a function without arguments that returns it; called once, on first use.
    evaluation_data: the same, for `evaluate`. threads: see `limit_threads`; None reads FEDMQ_TF_THREADS, or leaves the
    choice to TensorFlow. Raises AppError if the model is not compiled or cannot be built.
    """

    def __init__(
        self,
        build_model: Callable[[], Model],
        data: Data | Callable[[], Data] | None = None,
        *,
        evaluation_data: Data | Callable[[], Data] | None = None,
        threads: int | None = None,
    ) -> None:
        threads = threads if threads is not None else _threads_from_environment()
        if threads is not None:
            limit_threads(threads)
        self._data = LazyData(data, "data")
        self._evaluation_data = LazyData(evaluation_data, "evaluation_data")
        self._cancelled = threading.Event()
        with making:
            self.model = built_model(build_model)
        if not self.model.compiled or self.model.optimizer is None:
            raise AppError(
                "build_model() returned a model that is not compiled: call "
                "model.compile(optimizer=..., loss=...) before returning it"
            )
        self._trainer: _Loop | None = None

    @property
    def num_examples(self) -> int:
        """Number of training examples. The first use loads them."""
        return self._data.num_examples

    def use_data(self, data: Data | Callable[[], Data]) -> None:
        """Train on other data from the next task on. Only the number of examples may differ, because the traced
        functions stay. Studies use this: one model trains for many participants."""
        self._data = LazyData(data, "data")

    def use_evaluation_data(self, data: Data | Callable[[], Data]) -> None:
        """Evaluate on other data from now on, under the rule of `use_data`."""
        if data is not self._evaluation_data.source:
            self._evaluation_data = LazyData(data, "evaluation_data")

    def train(
        self,
        parameters: Mapping[str, npt.NDArray[Any]],
        config: TrainingConfig,
        correction: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> TrainResult:
        """Train from `parameters` for `config.epochs` passes over the data, or for `config.max_steps` steps.

        `correction` is added to the gradient of every step (`participant.trainer`). It needs an app that compiles plain
        SGD; other apps get AppError. Metrics are those of the last epoch, "loss" (without FedProx's term) among them.
        Raises AppError if the parameters do not fit the model, and TrainerError if there is nothing to train on or
        after `cancel()`.
        """
        self._cancelled.clear()
        if self.num_examples == 0:
            raise TrainerError("there are no training examples: `data` is empty")
        loop = self._loop()
        set_parameters(self.model, parameters)
        loop.reset(config, correction)
        steps, seen = 0, 0
        logs: Mapping[str, Any] = {}
        with loop.drawing(config.seed):
            for batches in self._data.epochs(config):
                self.model.reset_metrics()
                for batch in batches:
                    if self._cancelled.is_set():
                        raise TrainerError(f"training was cancelled after {steps} steps")
                    logs = loop.train_step(batch)
                    steps += 1
                    seen += length(batch)
        self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        return TrainResult(parameters_of(self.model), min(seen, self.num_examples), steps, _metrics(logs))

    def evaluate(self, parameters: Mapping[str, npt.NDArray[Any]], batch_size: int = 256) -> dict[str, float]:
        """Return the compiled loss and metrics of `parameters` on the evaluation data.

        Raises NotImplementedError if the trainer was given none.
        """
        if self._evaluation_data.source is None:
            raise NotImplementedError("this trainer was given no evaluation_data")
        if self._evaluation_data.num_examples == 0:
            raise TrainerError("there are no examples to evaluate on: `evaluation_data` is empty")
        loop = self._loop()
        set_parameters(self.model, parameters)
        loop.reset_for_evaluation()
        self.model.reset_metrics()
        logs: Mapping[str, Any] = {}
        with loop.drawing(0):
            for batch in self._evaluation_data.in_order(batch_size):
                logs = loop.test_step(batch)
        return _metrics(logs)

    def cancel(self) -> None:
        """Make a running `train` raise TrainerError before its next step. Any thread may call this."""
        self._cancelled.set()

    def _loop(self) -> _Loop:
        if self._trainer is None:
            source = self._data if self._data.source is not None else self._evaluation_data
            first = source.first()
            with making, seeded_process(0):  # the first step may draw what later ones keep
                self._trainer = _Loop(self.model, first)
        return self._trainer


class _Loop:
    """The model's steps as functions that are traced once, and the fixed state from which each task starts."""

    def __init__(self, model: Model, example: Data) -> None:
        if not (model.built and model.weights):
            model(example[0])
        self.model = model
        optimizer = model.optimizer
        self._inner = getattr(optimizer, "inner_optimizer", optimizer)
        optimizer.build(model.trainable_variables)
        # Slots of zeros, which most are, cost no RAM: calloc's pages are never touched.
        self._initial = [(v, _compact(value_of(v))) for v in optimizer.variables]
        self._seeds = [v for v in model.variables if v.name == KERAS_STATE]
        self._mu = tf.Variable(0.0, trainable=False, dtype=tf.float32)
        self._anchors: dict[int, tf.Variable] = {}
        self._corrections: dict[int, tf.Variable] = {}
        self._apply = self._inner.apply
        # One eager step makes the loss and metric variables: inside a traced function that would be too late. Every
        # task overwrites what this step does to the weights.
        model.train_step(example)
        self._signature = keras.tree.map_structure(_spec, example)
        self._plain = self._traced(self._train_plain)
        self._pulled: Step | None = None
        self.test_step = self._traced(self._test)
        self.train_step = self._plain

    def reset(self, config: TrainingConfig, correction: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """Put everything but the weights back to its start, and set up this task's settings."""
        for variable, value in self._initial:
            variable.assign(value)
        if config.learning_rate is not None:
            if not isinstance(self.model.optimizer.learning_rate, keras.Variable):
                raise TrainerError(
                    "training.learning_rate is set, but the app compiles its optimizer with a schedule: "
                    "remove one of the two"
                )
            self.model.optimizer.learning_rate.assign(config.learning_rate)
        self.train_step = self._plain
        if correction is not None:
            check_plain(self._inner)
        if config.proximal_mu > 0 or correction is not None:
            self._pull_by(config.proximal_mu, correction)
            assert self._pulled is not None
            self.train_step = self._pulled
        self._seed(config.seed, self.train_step)

    def reset_for_evaluation(self) -> None:
        """Seed what the model draws in an evaluation, always in the same way."""
        self._seed(0, self.test_step)

    def _pull_by(self, mu: float, correction: Mapping[str, npt.NDArray[Any]] | None) -> None:
        """Keep the present weights as FedProx's w_base, and the correction of each gradient."""
        names = {id(v): name for name, v in named_variables(self.model).items()}
        for variable in self.model.trainable_variables:
            if id(variable) not in self._anchors:
                self._anchors[id(variable)] = tf.Variable(variable.value, trainable=False)
                self._corrections[id(variable)] = tf.Variable(tf.zeros_like(variable.value), trainable=False)
            self._anchors[id(variable)].assign(variable.value)
            own = tf.zeros_like(variable.value) if correction is None else correction[names[id(variable)]]
            self._corrections[id(variable)].assign(own)
        self._mu.assign(mu)
        if self._pulled is None:
            self._pulled = self._traced(self._train_pulled)

    def drawing(self, seed: int) -> AbstractContextManager[object]:
        """Return a context in which a model that runs eagerly draws by `seed`; others draw in their traced steps."""
        return seeded_process(seed, eager=True) if self.model.run_eagerly else nullcontext()

    def _seed(self, seed: int, step: Step) -> None:
        # Neighbouring layers get different streams.
        seeds = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(max(len(self._seeds), 1))
        for variable, own in zip(self._seeds, seeds, strict=False):
            variable.assign(np.array([own >> 1, 0], dtype=variable.dtype))
        step.begin(seed)

    def _traced(self, step: Callable[[Any], Any]) -> Step:
        signature = None if self.model.run_eagerly else self._signature
        return Step(step, signature, self.model)

    def _train_plain(self, data: Any) -> Any:
        return self.model.train_step(data)

    def _train_pulled(self, data: Any) -> Any:
        """Train a step with additions to each gradient, made before the optimizer clips or scales it.

        The additions are FedProx's (Li et al. 2020), ∇(μ/2·‖w - w_base‖²) = μ·(w - w_base), and a method's correction
        (SCAFFOLD). The hook is in place only while this function runs or is traced.
        """
        # Keras's train_step and a user's own have only the optimizer's instance in common.
        self._inner.apply = self._apply_with_pull
        try:
            return self.model.train_step(data)
        finally:
            del self._inner.apply

    def _apply_with_pull(self, gradients: Any, trainable_variables: Any = None) -> Any:
        variables = self.model.trainable_variables if trainable_variables is None else list(trainable_variables)
        pulled: list[Any] = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is None:
                pulled.append(None)
                continue
            weight = tf.convert_to_tensor(variable.value)
            pull = tf.cast(self._mu, weight.dtype) * (weight - self._anchors[id(variable)])
            pull += self._corrections[id(variable)]
            pulled.append(tf.convert_to_tensor(gradient) + tf.cast(pull, gradient.dtype))
        return self._apply(pulled, trainable_variables)

    def _test(self, data: Any) -> Any:
        return self.model.test_step(data)


def _threads_from_environment() -> int | None:
    value = os.environ.get("FEDMQ_TF_THREADS", "")
    if value and not (value.isdecimal() and int(value) > 0):
        raise ConfigError(f"FEDMQ_TF_THREADS is {value!r}, expected a whole number of at least 1")
    return int(value) if value else None


def _compact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.any() else np.zeros(array.shape, array.dtype)


def _spec(leaf: npt.NDArray[Any]) -> Any:
    return tf.TensorSpec([None, *leaf.shape[1:]], tf.convert_to_tensor(leaf).dtype)


def _metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars. Nested metrics are flattened by their own names, as `fit` logs them."""
    found: dict[str, float] = {}
    for name, value in logs.items():
        if isinstance(value, Mapping):
            found.update(_metrics(value))
        elif np.ndim(value) == 0:
            found[name] = float(value)
    return found
