"""The student of a distillation: a model that learns a consensus, and is evaluated and exported for the federation.

An app for the strategy `distillation` has

    build_student() -> a compiled Keras model
    load_public_data() -> x                         the public examples, the same for all
    student_training() -> {setting: value}          optional: epochs (10), batch_size (32), learning_rate, seed (0)

in place of build_model, and load_test_data as every app. Version 0 has the predictions of somebody who knows nothing,
and a digest of the public examples.

Each student begins anew, with weights and orders that follow from the seed. So an evaluation depends on the consensus
alone, and the exported student is the one that was evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import ValidationError

from fedmq.participant.training.distillation import (
    PREDICTIONS,
    PUBLIC_DATA,
    DistillationTrainer,
    consensus_of,
    knows_something,
)
from fedmq.schemas.errors import AppError, shown
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

if TYPE_CHECKING:
    from fedmq.participant.training.keras.distilling import KerasLearner

EPOCHS = 10
_SETTINGS = ("epochs", "batch_size", "learning_rate", "seed")


class Functions(Protocol):
    """The part of an app (fedmq.app.app.App) that is needed here."""

    @property
    def path(self) -> Path: ...

    def get(self, name: str) -> Callable[..., Any] | None: ...

    def need(self, name: str, why: str) -> Callable[..., Any]: ...


class Students:
    """The students of one app."""

    def __init__(self, app: Functions) -> None:
        """Load nothing yet. Raises AppError if the app lacks a function."""
        self._app = app
        self._build_student = app.need("build_student", "for a student of the consensus")
        self._public = app.need("load_public_data", "for the examples that participants agree on")
        self._learner: KerasLearner | None = None
        self._last: tuple[bytes, Parameters] | None = None

    def initial(self) -> Parameters:
        """Return version 0: uniform predictions, and the digest of the public data. Raises AppError."""
        learner = self._made()
        rows = np.full((learner.num_public, learner.classes), 1 / learner.classes, np.float32)
        digest = np.frombuffer(learner.public_digest, np.uint8)
        return Parameters({PREDICTIONS: rows, PUBLIC_DATA: digest}, {PUBLIC_DATA})

    def trainer(self, data: Any) -> DistillationTrainer:
        """Return the trainer of a participant whose own model is of the student's kind."""
        return DistillationTrainer(self._build_student, data, self._public)

    def distilled(self, parameters: Mapping[str, Any]) -> Parameters:
        """Return the weights of a student of this version's consensus. Raises AppError."""
        _, consensus = consensus_of(parameters)
        digest = hashlib.sha256(np.ascontiguousarray(consensus).data).digest()
        if self._last is None or self._last[0] != digest:
            learner, config = self._made(), self._training()
            student = learner.start(config.seed)
            if knows_something(consensus):
                student = Parameters(dict(learner.distil(student, consensus, config)), student.non_trainable)
            self._last = digest, student
        return self._last[1]

    def _made(self) -> KerasLearner:
        if self._learner is None:
            from fedmq.participant.training.keras.distilling import KerasLearner

            self._learner = KerasLearner(self._build_student, None, self._public)
        return self._learner

    def _training(self) -> TrainingConfig:
        given = self._app.get("student_training")
        settings = {} if given is None else given()
        if not isinstance(settings, Mapping) or not settings.keys() <= set(_SETTINGS):
            raise AppError(
                f"student_training in {self._app.path} gave {shown(settings)}, expected a dict with some of "
                f"{', '.join(_SETTINGS)}"
            )
        try:
            return TrainingConfig.model_validate({"epochs": EPOCHS, **settings})
        except ValidationError as e:
            found = e.errors()[0]
            what = f"{'.'.join(map(str, found['loc']))} = {shown(found['input'])}: {found['msg']}"
            raise AppError(f"student_training in {self._app.path} gave {what}") from None
