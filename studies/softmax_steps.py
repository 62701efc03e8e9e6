"""What both forms of the softmax regression's cohort training have in common: shares, the loss and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.layout import Layout
from schemas.parameters import Parameters
from studies.batches import CohortRows
from studies.training import Job

Floats = npt.NDArray[np.float32]


def shares_of(cohort: CohortRows, rates: Floats) -> Floats:
    """What each example's gradient counts in its step, [steps, participants, batch_size]: the participant's rate over
    the examples of the batch; 0 for padding."""
    scales: Floats = np.divide(rates, np.maximum(cohort.real, 1), dtype=np.float32)
    return cohort.weights * scales[:, :, None]


def rates_of(jobs: Sequence[Job]) -> Floats:
    """Their learning rates, [participants]. Raises InputError where there is none."""
    rates = [job.config.learning_rate for job in jobs]
    if None in rates:
        raise InputError("training.learning_rate is not set: softmax regression has no default, give one")
    return np.array(rates, np.float32)


def descend(whole: Floats, z: Floats, at_label: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Turn scores z [classes, ...] into the gradient of the cross-entropy with respect to them, in place.

    `at_label` [...] are the places of the labels' scores in `whole`, which is z or what z is a part of. Returns
    the labels' scores and the sums of the exponentials, both [...], with the largest score at 0: the loss is log(sum) -
    score.
    """
    z -= np.maximum.reduce(z, axis=0)
    values = whole.take(at_label)
    np.exp(z, out=z)
    sums = _sums_of_rows(z)
    z /= sums
    whole.put(at_label, whole.take(at_label) - 1)
    return values, sums


def _sums_of_rows(z: Floats) -> Floats:
    """Over the first axis, row by row for any number of columns: numpy's sum adds a single one pairwise."""
    sums: Floats = np.add.reduce(z, axis=0) if z[0].size > 1 else np.add.accumulate(z, axis=0)[-1]
    return sums


class Losses:
    """Of a cohort's steps, for the mean over each participant's last epoch."""

    def __init__(self, cohort: CohortRows) -> None:
        self._cohort = cohort
        self._values, self._sums = np.zeros_like(cohort.weights), np.ones_like(cohort.weights)

    def note(self, step: int, values: Floats, sums: Floats) -> None:
        """What `descend` returned, of the first participants [count, batch_size] or of all [count·batch_size]."""
        size = self._values.shape[2]
        count = values.size // size
        self._values[step, :count], self._sums[step, :count] = values.reshape(-1, size), sums.reshape(-1, size)

    def means(self) -> list[float]:
        """Of each participant."""
        each = np.log(self._sums, out=self._sums) - self._values
        each *= self._cohort.weights
        last = np.arange(len(each))[:, None] >= self._cohort.last_epoch
        total = each.sum(axis=2, dtype=np.float64)
        means: list[float] = ((total * last).sum(axis=0) / (self._cohort.real * last).sum(axis=0)).tolist()
        return means


def block_of(parameters: Parameters, layout: Layout) -> Floats:
    """All of a model in one array, as `layout` has it."""
    block = parameters.block if parameters.layout is layout else parameters.packed().block
    assert block is not None
    return block
