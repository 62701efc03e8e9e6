"""Distillation on a participant: a model of its own, which learns from the consensus and sends predictions.

Li, Wang 2019, FedMD, and Itahara et al. 2020, DS-FL (coordinator.strategies.distillation has the equations). A task
brings the consensus on a public data set, [examples, classes]. The participant

    1. trains its own model towards the consensus, on the public examples ("digest"; "distillation"),
    2. trains it on its own data ("revisit"; "update"),
    3. sends the model's predictions on the public examples.

Rules
1. Models may be unlike. All that travels is one tensor of predictions, as probabilities.
2. The model stays with its participant, in the folder that `keep_in` gives; in the trainer alone if there is none.
3. It moves at the end of each training, and not on a receipt. Predictions are no sums, so a discarded update leaves
   nothing wrong in the consensus, and what was learned is not thrown away.
4. The same task gives the same update, bit for bit. The folder's file has the model before the newest task as well
   (participant.spool.own_model), and a task that comes again starts from that one.
5. A participant without a model (its first task, or a lost disk) begins a new one, whose weights follow from the task's
   seed. It learns from the consensus first, and goes on.
6. A consensus that knows nothing, as in version 0, is not learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from fedmq.participant.spool.own_model import OwnModel, read_own_model, write_own_model
from fedmq.participant.trainer import TrainResult, checked_result
from fedmq.schemas.errors import AppError, TrainerError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

Array = npt.NDArray[Any]

PUBLIC_DATA = "public_data"
"""Name of the version's tensor that has the digest of the public examples. It is an integer tensor: it goes down with
each task, and never up."""
PREDICTIONS = "predictions"
_SAME = 1e-6
"""Largest difference between the classes of a consensus that knows nothing."""
_DISTILLING = 7
"""Purpose of the seed of the training towards the consensus."""


class Learner(Protocol):
    """A model and its data, as distillation needs them. `model` is a mapping name -> array: the model's weights.

    It may also have `cancel()` and `evaluate(model)` as a trainer does, and `public_digest`, bytes that tell public
    data sets apart.
    """

    @property
    def num_examples(self) -> int:
        """Number of the participant's own examples."""

    def start(self, seed: int) -> Mapping[str, Array]:
        """Return a new model. Its random numbers follow from the seed."""

    def distil(self, model: Mapping[str, Array], targets: Array, config: TrainingConfig) -> Mapping[str, Array]:
        """Train towards `targets`, probabilities [public examples, classes], on the public examples."""

    def train(self, model: Mapping[str, Array], config: TrainingConfig) -> Any:
        """Train on the participant's own data. Return a TrainResult, as a trainer does."""

    def predict(self, model: Mapping[str, Array]) -> Array:
        """Return probabilities [public examples, classes]."""


class DistillationTrainer:
    """A trainer around a Keras model that the participant keeps, and whose predictions it sends.

    build_model: a function that returns a compiled Keras model with one output, [examples, classes]: probabilities, or
    logits. Each participant may have another one. data, evaluation_data: as for KerasTrainer. public_x: the public
    examples, the same for all and in the same order. distil_epochs: passes over the public examples in each task;
    training.batch_size and training.learning_rate are those of both trainings. With evaluation_data each update also
    reports the own model's metrics on them, as own_accuracy.

    `DistillationTrainer.around(learner)` takes any other model (`Learner`).
    """

    def __init__(
        self,
        build_model: Callable[[], Any],
        data: Any,
        public_x: Any,
        *,
        evaluation_data: Any = None,
        distil_epochs: int = 1,
        threads: int | None = None,
    ) -> None:
        from fedmq.participant.training.keras.distilling import KerasLearner

        learner = KerasLearner(build_model, data, public_x, evaluation_data=evaluation_data, threads=threads)
        self._begin(learner, distil_epochs)

    @classmethod
    def around(cls, learner: Learner, *, distil_epochs: int = 1) -> Self:
        """Return the trainer of any learner."""
        made = cls.__new__(cls)
        made._begin(learner, distil_epochs)
        return made

    def _begin(self, learner: Learner, distil_epochs: int) -> None:
        if distil_epochs < 1:
            raise AppError(f"DistillationTrainer got distil_epochs = {distil_epochs}, expected 1 or more")
        self.learner = learner
        self._distil_epochs = distil_epochs
        self._folder: Path | None = None
        self._own: OwnModel | None = None

    @property
    def num_examples(self) -> int:
        """Number of the participant's own examples."""
        return self.learner.num_examples

    @property
    def own_model(self) -> Parameters | None:
        """Weights of the participant's own model, by name; None before its first task."""
        return None if self._own is None else self._own.after

    def keep_in(self, folder: Path) -> None:
        """Keep the model in this folder. Called before each task, with the participant's folder for its run."""
        if folder != self._folder:
            self._folder = folder
            self._own = read_own_model(folder)

    def train(self, parameters: Mapping[str, Array], config: TrainingConfig) -> TrainResult:
        """Learn from the consensus, then from the own data. Return predictions on the public examples.

        Raises AppError if the consensus is of other public data, and for FedProx's `proximal_mu`, which pulls towards a
        base model that there is none of.
        """
        if config.proximal_mu:
            raise AppError("training.proximal_mu has no base model to pull to in distillation: leave it out")
        name, consensus = consensus_of(parameters)
        _check_public_data(parameters, getattr(self.learner, "public_digest", None))
        key = _key(parameters, config)
        before = None if self._own is None else self._own.start_of(key)
        model: Mapping[str, Array] = self.learner.start(config.seed) if before is None else before
        if knows_something(consensus):
            model = self.learner.distil(model, consensus, distilling(config, self._distil_epochs))
        result = checked_result(self.learner.train(model, config))
        after = _as_parameters(result.parameters)
        predictions = checked_predictions(self.learner.predict(after), consensus.shape)
        metrics = {**result.metrics, **self._own_metrics(after)}
        self._keep(OwnModel(key, before, after))
        sent = {n: predictions.astype(a.dtype) if n == name else a for n, a in parameters.items()}
        return TrainResult(sent, result.num_examples, result.num_steps, metrics)

    def evaluate(self, parameters: Mapping[str, Array]) -> Mapping[str, float]:  # noqa: ARG002  the consensus is no model
        """Return the own model's metrics on the evaluation data. Raises NotImplementedError without one or the
        other."""
        evaluate = getattr(self.learner, "evaluate", None)
        if self._own is None or evaluate is None:
            raise NotImplementedError("this participant has no model of its own yet, or no evaluation_data")
        metrics: Mapping[str, float] = evaluate(self._own.after)
        return metrics

    def cancel(self) -> None:
        """Ask a running `train` to raise soon. Any thread may call this."""
        cancel = getattr(self.learner, "cancel", None)
        if callable(cancel):
            cancel()

    def _keep(self, own: OwnModel) -> None:
        if self._folder is not None:
            write_own_model(self._folder, own)
        self._own = own

    def _own_metrics(self, model: Parameters) -> dict[str, float]:
        evaluate = getattr(self.learner, "evaluate", None)
        if evaluate is None:
            return {}
        try:
            return {f"own_{name}": float(value) for name, value in evaluate(model).items()}
        except NotImplementedError:
            return {}


def consensus_of(parameters: Mapping[str, Array]) -> tuple[str, Array]:
    """Return the name and the values of a version's predictions. Raises AppError if it is another kind of model."""
    found = [(name, array) for name, array in parameters.items() if np.asarray(array).dtype.kind == "f"]
    if len(found) != 1 or found[0][1].ndim != 2:
        got = ", ".join(f"{name} {list(array.shape)}" for name, array in found[:3]) or "none"
        raise AppError(
            f"the federation's version has the floating-point tensors {got}, expected one of predictions, "
            "[examples, classes]: a DistillationTrainer goes with the strategy distillation, and with an app that has "
            "build_student and load_public_data on the coordinator"
        )
    return found[0]


def knows_something(consensus: Array) -> bool:
    """Return False for a consensus that has all classes alike, for every example."""
    return bool((consensus.max(axis=1) - consensus.min(axis=1) > _SAME).any())


def distilling(config: TrainingConfig, epochs: int) -> TrainingConfig:
    """Return the settings of the training towards the consensus, in a task with these."""
    seed = int(np.random.SeedSequence(config.seed, spawn_key=(_DISTILLING,)).generate_state(1, np.uint64)[0] >> 1)
    return config.model_copy(update={"epochs": epochs, "max_steps": None, "seed": seed})


def checked_predictions(returned: Any, shape: tuple[int, ...]) -> Array:
    """Return predictions as probabilities, in float64. Raises TrainerError if they are none, or of another shape."""
    rows = np.asarray(returned)
    if rows.shape != shape or rows.dtype.kind != "f":
        raise TrainerError(
            f"predict returned {rows.dtype}{list(rows.shape)}, expected floats of the consensus' shape {list(shape)}: "
            "one row for each public example, one column for each class"
        )
    if not np.isfinite(rows).all() or (rows < 0).any() or (np.abs(rows.sum(axis=1) - 1) > 1e-2).any():
        raise TrainerError("predict returned numbers that are no probabilities: each row is 0 or more and sums to 1")
    return rows.astype(np.float64)


def _check_public_data(parameters: Mapping[str, Array], own: bytes | None) -> None:
    theirs = parameters.get(PUBLIC_DATA)
    if own is not None and theirs is not None and theirs.tobytes() != own:
        raise AppError(
            "this participant's public examples are not the federation's: they must be the same for all, in the same "
            "order and of the same dtype. Look at what public_x and load_public_data have"
        )


def _key(parameters: Mapping[str, Array], config: TrainingConfig) -> str:
    digest = hashlib.blake2b(config.model_dump_json().encode(), digest_size=16)
    for name, array in parameters.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _as_parameters(model: Mapping[str, Any]) -> Parameters:
    return model if isinstance(model, Parameters) else Parameters({n: np.asarray(a) for n, a in model.items()})
