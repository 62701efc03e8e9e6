"""The Keras trainer: it makes a trainer (`participant.trainer`) of a compiled model and its data.

It calls the model's own `train_step`, so a compiled loss, metrics, optimizer, mixed precision, or an overridden
`train_step` work as in `fit`. One `tf.function` does that; it is traced once and kept. `fit` builds a data adapter, a
`tf.data` pipeline and callbacks on every call, which costs more than the whole training of a small task.

Rules
1. Nothing of one task is left in the next. Weights come from the task. The state of all optimizers, the learning rate,
   the metrics and the seed generators (Dropout) go back to fixed values by assignment: nothing is rebuilt or traced
   again, unless a layer draws by tf.random's own kernels (participant.training.keras.steps). Whatever is drawn follows
   from the task's seed, and in an evaluation from a fixed one. Callbacks are made anew for each task.
   After an unfreezing the task says which weights train. The model is built anew when these change.
2. The same parameters, config (with its seed) and data give the same result, bit for bit, on one machine.
3. The trainer never writes to the arrays that it is given. The arrays that it returns belong to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.environment import threads_from_environment
from fedmq.participant.training.keras.backend import tf
from fedmq.participant.training.keras.callbacks import TaskCallbacks, numbers
from fedmq.participant.training.keras.checks import Units, check_labels, explained, takes_the_data, units_of
from fedmq.participant.training.keras.data import Data, LazyData, length
from fedmq.participant.training.keras.frozen import made_to_train, unfreeze
from fedmq.participant.training.keras.loop import Loop
from fedmq.participant.training.keras.model import Model, built_model, parameters_of, received_names
from fedmq.participant.training.keras.optimizers import held_by
from fedmq.participant.training.keras.steps import making, seeded_process
from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import UNFROZEN, TrainingConfig
from fedmq.schemas.parameters import Parameters

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

    data: (x, y) or (x, y, sample_weight), or a function without arguments that returns it; called once, on first use
    (participant.training.keras.conversions says what x and y may be). evaluation_data: the same, for `evaluate`.
    callbacks: a function without arguments that returns new Keras callbacks for each task; `fit`'s own order of calls.
    threads: see `limit_threads`; None reads FEDMQ_TF_THREADS, or leaves the choice to TensorFlow. Raises AppError if
    the model is not compiled or cannot be built.
    """

    def __init__(
        self,
        build_model: Callable[[], Model],
        data: Data | Callable[[], Data] | None = None,
        *,
        evaluation_data: Data | Callable[[], Data] | None = None,
        callbacks: Callable[[], Sequence[Any]] | None = None,
        threads: int | None = None,
    ) -> None:
        threads = threads if threads is not None else threads_from_environment()
        if threads is not None:
            limit_threads(threads)
        self._data = LazyData(data, "data")
        self._evaluation_data = LazyData(evaluation_data, "evaluation_data")
        self._cancelled = threading.Event()
        with making:
            self.model = built_model(build_model)
        if not self.model.compiled or (self.model.optimizer is None and not held_by(self.model)):
            raise AppError(
                "build_model() returned a model that is not compiled: call "
                "model.compile(optimizer=..., loss=...) before returning it"
            )
        self._callbacks = callbacks
        self._build_model = build_model
        self._unfrozen = frozenset[str]()
        """Names of the weights that train although the app's model freezes them."""
        self._made: Loop | None = None
        self._units: Units = None

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
        Raises AppError if the parameters do not fit the model, or if a setting of `config` would reach none of its
        steps, and TrainerError if there is nothing to train on or after `cancel()`.
        """
        self._cancelled.clear()
        if self.num_examples == 0:
            raise TrainerError("there are no training examples: `data` is empty")
        loop = self._steps_of(parameters, config)
        loop.set_parameters(parameters)
        loop.reset(config, correction)
        steps, seen = 0, 0
        logs: Mapping[str, Any] = {}
        calls = TaskCallbacks(self._callbacks, self.model, config, self.num_examples)
        with loop.drawing(config.seed):
            for epoch, batches in enumerate(self._data.epochs(config)):
                self.model.reset_metrics()
                calls.epoch_begins(epoch)
                for batch in batches:
                    if self._cancelled.is_set():
                        raise TrainerError(f"training was cancelled after {steps} steps")
                    calls.batch_begins()
                    logs = loop.train_step(batch)
                    steps += 1
                    seen += length(batch)
                    if calls.batch_ends(logs):
                        break
                if calls.epoch_ends():
                    break
        if correction is not None:
            loop.optimizers.check_rate(config.learning_rate)
        loop.optimizers.finish()
        calls.train_ends()
        metrics = numbers(logs)
        trained = parameters_of(self.model, loop.names)
        if not all(np.isfinite(a).all() for a in trained.values() if a.dtype.kind == "f"):
            self._blame(self._data)
        return TrainResult(trained, min(seen, self.num_examples), steps, metrics)

    def evaluate(self, parameters: Mapping[str, npt.NDArray[Any]], batch_size: int = 256) -> dict[str, float]:
        """Return the compiled loss and metrics of `parameters` on the evaluation data.

        Raises NotImplementedError if the trainer was given none.
        """
        if self._evaluation_data.source is None:
            raise NotImplementedError("this trainer was given no evaluation_data")
        if self._evaluation_data.num_examples == 0:
            raise TrainerError("there are no examples to evaluate on: `evaluation_data` is empty")
        loop = self._steps(self._evaluation_data)
        loop.set_parameters(parameters)
        loop.reset_for_evaluation()
        self.model.reset_metrics()
        logs: Mapping[str, Any] = {}
        with loop.drawing(0):
            for batch in self._evaluation_data.in_order(batch_size):
                logs = loop.test_step(batch)
        metrics = numbers(logs)
        if not np.isfinite(list(metrics.values())).all():
            self._blame(self._evaluation_data)
        return metrics

    def cancel(self) -> None:
        """Make a running `train` raise TrainerError before its next step. Any thread may call this."""
        self._cancelled.set()

    def _steps_of(self, parameters: Mapping[str, npt.NDArray[Any]], config: TrainingConfig) -> Loop:
        """Return the steps of a model in which those weights train that the task says. If they are others than in the
        task before, the model is built anew: its optimizer has slots for what it trains."""
        loop = self._steps(self._data)
        wanted = frozenset[str]()
        if config.extra.get(UNFROZEN) is not None and isinstance(parameters, Parameters):
            theirs = received_names(self.model, parameters)
            wanted = frozenset(
                name
                for name, variable in made_to_train(self.model).items()
                if (name in self._unfrozen or not variable.trainable) and theirs[name] not in parameters.non_trainable
            )
        if wanted == self._unfrozen:
            return loop
        with making, seeded_process(0):
            self.model = built_model(self._build_model)
        self._unfrozen, self._made = wanted, None
        return self._steps(self._data)

    def _steps(self, data: LazyData) -> Loop:
        """Return the model's steps. Raises AppError or TrainerError, with the place, if they cannot take these data."""
        takes_the_data(self.model, data)
        if self._made is not None:
            check_labels(self.model, self._units, data)
            return self._made
        first = data.first()
        with explained(self.model, data), making, seeded_process(0):  # the first step may draw what later ones keep
            self._units = units_of(self.model, first)
            check_labels(self.model, self._units, data)
            if self._unfrozen:
                if not (self.model.built and self.model.weights):
                    self.model(first[0])
                unfreeze(self.model, self._unfrozen)
            self._made = Loop(self.model, first)
        return self._made

    def _blame(self, data: LazyData) -> None:
        """Raise TrainerError if the data hold a number that is not finite: a result has one."""
        if place := data.not_finite():
            raise TrainerError(
                f"the result is not finite, and {data.name} is not either: {place}. Remove such examples, or fill "
                "them, before they are returned"
            )
