"""The order of examples in a task, as the Keras trainer has it: for each epoch a permutation by the generator of
SeedSequence(seed, spawn_key=(0,)), so decided by the task's seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.messages import TrainingConfig
from studies.seeding import Rewound, entropy_of, generator_states

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CohortRows:
    """The batches of a cohort, all padded to one shape with the participant's own first row."""

    rows: Rows
    """[steps, participants, batch_size]."""
    real: Rows
    """How many of each batch are real, [steps, participants]; 0 where a participant has no such step."""
    steps: Rows
    """Of each participant."""
    last_epoch: Rows
    """The step with which each participant's last epoch begins."""


def cohort_rows(cohort: Sequence[tuple[Rows, TrainingConfig]], batch_size: int) -> CohortRows:
    """For participants that share one batch size. Each must have an example."""
    counts = np.array([len(rows) for rows, _ in cohort], np.int64)
    an_epoch = -(-counts // batch_size)
    wanted = np.array([config.epochs for _, config in cohort], np.int64) * an_epoch
    limits = [wanted[i] if c.max_steps is None else min(wanted[i], c.max_steps) for i, (_, c) in enumerate(cohort)]
    steps = np.array(limits, np.int64)
    longest = int(steps.max())
    # Only the last batch of an epoch is short: an epoch is its examples in order, then padding.
    rows = np.empty((len(cohort), longest * batch_size), np.int64)
    epochs, shuffler = (an_epoch * batch_size).tolist(), Rewound()
    states = generator_states(entropy_of([config.seed for _, config in cohort], 0))
    for own, (examples, _), epoch, state in zip(rows, cohort, epochs, states, strict=True):
        own[:] = examples[0]
        shuffle, count = shuffler.at(state), len(examples)
        for start in range(0, len(own), epoch):
            part = own[start : start + count]
            part[:] = examples[shuffle.permutation(count)[: len(part)]]
    step = np.arange(longest)[:, None]
    real = np.minimum(batch_size, counts - step % an_epoch * batch_size) * (step < steps)
    by_step = np.ascontiguousarray(rows.reshape(len(cohort), longest, batch_size).transpose(1, 0, 2))
    return CohortRows(by_step, real, steps, (steps - 1) // an_epoch * an_epoch)
