"""A Keras model as a learner of distillation (participant.training.distillation), and as its student.

The training towards the consensus is the Keras trainer's own, on a second build of the same model that is compiled with
the cross-entropy against the consensus. So seeds, the state of optimizers, learning rates and `cancel` are as always.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmq.participant.trainer import TrainResult
from fedmq.participant.training.keras.backend import keras
from fedmq.participant.training.keras.conversions import as_trained, leaves
from fedmq.participant.training.keras.data import LazyData
from fedmq.participant.training.keras.model import Model, built_model, parameters_of, set_parameters
from fedmq.participant.training.keras.steps import making, seeded_process
from fedmq.participant.training.keras.trainer import KerasTrainer
from fedmq.schemas.errors import AppError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

Array = npt.NDArray[Any]

_LOOKED_AT = 32
"""Public examples by whose outputs probabilities are told from logits."""
_BATCH = 256
_PROBABLY = 1e-3


class KerasLearner:
    """A compiled Keras model with one output, [examples, classes], its own data, and the public examples."""

    def __init__(
        self,
        build_model: Callable[[], Model],
        data: Any,
        public_x: Any,
        *,
        evaluation_data: Any = None,
        threads: int | None = None,
    ) -> None:
        self._build_model = build_model
        self._public = LazyData((lambda: (public_x(),)) if callable(public_x) else (public_x,), "public_x")
        self._trainer = KerasTrainer(self._built, data, evaluation_data=evaluation_data, threads=threads)
        if type(self._trainer.model).train_step is not keras.Model.train_step:
            raise AppError(
                "DistillationTrainer trains towards the consensus by Keras's own train_step, and the model of "
                "build_model() has another one: use DistillationTrainer.around(learner), with a distil of your own"
            )
        self._distiller: KerasTrainer | None = None
        self._digest: bytes | None = None
        self._logits: bool | None = None

    @property
    def num_examples(self) -> int:
        """Number of the participant's own examples."""
        return self._trainer.num_examples

    @property
    def num_public(self) -> int:
        """Number of public examples."""
        return self._public.num_examples

    @property
    def classes(self) -> int:
        """Number of classes. Raises AppError unless the model gives one row of two classes or more an example."""
        return int(self._outputs(self._trainer.model, slice(0, 1)).shape[1])

    @property
    def public_digest(self) -> bytes:
        """16 bytes that are the same for the same public examples."""
        if self._digest is None:
            digest = hashlib.blake2b(digest_size=16)
            for place, array in leaves(self._x, "x"):
                whole = np.ascontiguousarray(as_trained(array))
                digest.update(f"{place} {whole.dtype} {whole.shape}".encode())
                digest.update(whole.data if whole.dtype.kind not in "OUS" else "\0".join(map(str, whole.flat)).encode())
            self._digest = digest.digest()
        return self._digest

    def start(self, seed: int) -> Parameters:
        """Return a new model. What `build_model` draws follows from the seed, unless it sets a seed of its own."""
        with making, seeded_process(seed, eager=True):
            return parameters_of(self._built())

    def distil(self, model: Mapping[str, Array], targets: Array, config: TrainingConfig) -> Mapping[str, Array]:
        """Train towards the targets on the public examples."""
        data = (self._x, targets.astype(keras.config.floatx()))
        if self._distiller is None:
            self._distiller = KerasTrainer(self._recompiled, data)
        self._distiller.use_data(data)
        return self._distiller.train(model, config).parameters

    def train(self, model: Mapping[str, Array], config: TrainingConfig) -> TrainResult:
        """Train on the participant's own data."""
        return self._trainer.train(model, config)

    def predict(self, model: Mapping[str, Array]) -> Array:
        """Return probabilities for the public examples, in float64."""
        set_parameters(self._trainer.model, model)
        count = self.num_public
        rows = np.concatenate([
            self._outputs(self._trainer.model, slice(at, at + _BATCH)) for at in range(0, count, _BATCH)
        ]).astype(np.float64)  # fmt: skip
        if not self._gives_logits():
            return rows
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
        return np.asarray(rows / rows.sum(axis=1, keepdims=True))

    def evaluate(self, model: Mapping[str, Array]) -> dict[str, float]:
        """Return the compiled loss and metrics on the evaluation data. Raises NotImplementedError without any."""
        return self._trainer.evaluate(model)

    def cancel(self) -> None:
        """Make a running training raise TrainerError soon. Any thread may call this."""
        for trainer in (self._trainer, self._distiller):
            if trainer is not None:
                trainer.cancel()

    @property
    def _x(self) -> Any:
        return self._public.arrays()[0]

    def _built(self) -> Model:
        model = built_model(self._build_model)
        if not (model.built and model.weights):
            model(keras.tree.map_structure(lambda leaf: as_trained(leaf[:1]), self._x))
        return model

    def _recompiled(self) -> Model:
        model = self._built()
        optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
        loss = keras.losses.CategoricalCrossentropy(from_logits=self._gives_logits())
        model.compile(optimizer, loss, run_eagerly=model.run_eagerly, jit_compile=model.jit_compile)
        return model

    def _gives_logits(self) -> bool:
        """Return True if the model's outputs are no probabilities: rows that are 0 or more and sum to 1."""
        if self._logits is None:
            model = self._built()
            rows = self._outputs(model, slice(0, _LOOKED_AT)).astype(np.float64)
            self._logits = bool((rows < 0).any() or (np.abs(rows.sum(axis=1) - 1) > _PROBABLY).any())
        return self._logits

    def _outputs(self, model: Model, rows: slice) -> Array:
        outputs = model(keras.tree.map_structure(lambda leaf: as_trained(leaf[rows]), self._x), training=False)
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] < 2:
            got = f"the shape {list(shape)}" if shape is not None else f"a {type(outputs).__name__}"
            raise AppError(
                f"the model of build_model() gives {got}, expected [examples, classes] with two classes or more: "
                "distillation is for classifiers, and a yes-or-no model needs an output for each of the two"
            )
        return np.asarray(outputs)
