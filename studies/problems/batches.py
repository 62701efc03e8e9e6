"""The batches of a cohort's tasks, in the order that the Keras trainer has (participant.training.shuffling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmq.participant.training.shuffling import orders
from fedmq.schemas.messages import TrainingConfig
from fedmq.studies.population.deals import Rows


@dataclass(frozen=True, slots=True)
class CohortRows:
    """The batches of a cohort, padded to one shape with each participant's own first row."""

    rows: Rows
    """Rows of the examples, [steps, participants, batch_size]."""
    real: Rows
    """Number of real rows in each batch, [steps, participants]; 0 if a participant has no such step."""
    steps: Rows
    """Number of steps of each participant, [participants]."""
    last_epoch: Rows
    """Step with which each participant's last epoch begins, [participants]."""


def cohort_rows(cohort: Sequence[tuple[Rows, TrainingConfig]], batch_size: int) -> CohortRows:
    """Lay out the batches of participants that share one batch size. Each must have an example."""
    counts = np.array([len(rows) for rows, _ in cohort], np.int64)
    an_epoch = -(-counts // batch_size)
    wanted = np.array([config.epochs for _, config in cohort], np.int64) * an_epoch
    limits = [wanted[i] if c.max_steps is None else min(wanted[i], c.max_steps) for i, (_, c) in enumerate(cohort)]
    steps = np.array(limits, np.int64)
    longest = int(steps.max())
    # Only the last batch of an epoch is short, so an epoch is its examples in order, and then padding.
    begun, each, seeds = -(-steps // an_epoch), counts.tolist(), [config.seed for _, config in cohort]
    examples = np.zeros((len(cohort), counts.max()), np.int64)
    for own, (mine, _) in zip(examples, cohort, strict=True):
        own[: len(mine)] = mine
    rows = np.repeat(examples[:, :1], (begun * an_epoch).max() * batch_size, axis=1)
    for epoch in range(begun.max()):
        shuffled = np.take_along_axis(examples, orders(seeds, each, epoch), axis=1)
        starts = (epoch * batch_size * an_epoch).tolist()
        for own, mine, start, count, epochs in zip(rows, shuffled, starts, each, begun.tolist(), strict=True):
            if epoch < epochs:
                own[start : start + count] = mine[:count]
    rows = rows[:, : longest * batch_size]
    step = np.arange(longest)[:, None]
    real = np.minimum(batch_size, counts - step % an_epoch * batch_size) * (step < steps)
    by_step = np.ascontiguousarray(rows.reshape(len(cohort), longest, batch_size).transpose(1, 0, 2))
    return CohortRows(by_step, real, steps, (steps - 1) // an_epoch * an_epoch)
