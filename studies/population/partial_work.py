"""Partial work: tasks that do less than they were asked for, and send what they have.

These are FedProx's stragglers (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", section 5.2): 0, 50
or 90 % of the devices of a round do x epochs in place of E, with x uniform in 1 ... E. FedAvg as its authors give it
drops such devices; here their updates count, as in FedProx.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.value import Value


class PartialWork(Value):
    """Tasks that do fewer epochs, or fewer steps if they are asked for a number of steps (`max_steps`).

    The number is uniform from 1 to what was asked for. Of the time that a task takes, only `compute.example_s` follows
    the work.
    """

    share: Annotated[float, Field(ge=0, le=1)]
    """Part of the tasks, or of the participants."""
    of: Literal["tasks", "participants"] = "tasks"
    """`tasks`: each task may be one, as in the paper. `participants`: the same participants do less in all tasks."""

    def can_do_less(self, training: TrainingConfig) -> bool:
        """Return True if less can be done than this training asks for."""
        return (training.epochs if training.max_steps is None else training.max_steps) > 1


class Effort:
    """The draws of one participant. Each task takes the same number of them."""

    def __init__(self, settings: PartialWork, rng: np.random.Generator) -> None:
        self._settings, self._rng = settings, rng
        self._is_straggler = rng.random() < settings.share

    def of(self, training: TrainingConfig) -> TrainingConfig:
        """Return what the next task does of the training that it was asked for."""
        u_less, u_amount = self._rng.random(2).tolist()
        less = self._is_straggler if self._settings.of == "participants" else u_less < self._settings.share
        if not less:
            return training
        if training.max_steps is not None:
            return training.model_copy(update={"max_steps": 1 + int(u_amount * training.max_steps)})
        return training.model_copy(update={"epochs": 1 + int(u_amount * training.epochs)})
