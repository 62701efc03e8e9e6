"""Softmax regression, trained in cohorts by hand-batched numpy: W [classes, features] and b [classes] in float32.

Each step is one stacked product over all participants of the cohort that still have a batch. Every participant's share
of it has the same shape whatever the cohort, so a result does not depend on who else is in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.layout import Layout, layout
from schemas.parameters import Parameters
from studies.batches import Rows, cohort_rows
from studies.softmax_dual import CHUNK as DUAL_CHUNK
from studies.softmax_dual import DualForm
from studies.softmax_steps import Floats, Losses, block_of, descend, rates_of, shares_of
from studies.training import Job, Trained, stacked_corrections

CHUNK = 50
"""Participants at a time: enough to share the cost of numpy's calls, few enough for the processor's caches."""


class SoftmaxFederation:
    """`x` [examples, features] float32 and `y` [examples] class numbers, of which participant i has `rows[i]`.

    `test`: (x, y) for the central evaluation, or None for none.
    """

    def __init__(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        rows: Sequence[Rows],
        classes: int,
        test: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
    ) -> None:
        shapes = layout(np.dtype(np.float32), (("w", (classes, x.shape[1])), ("b", (classes,))))
        self.initial = Parameters.in_block(shapes, np.zeros(shapes.size, np.float32))
        self.num_examples = [len(r) for r in rows]
        self.backend = SoftmaxCohort(x, y, rows, classes, shapes)
        self.evaluates = test is not None
        self._test = test
        self.data_bytes = x.nbytes + (0 if test is None else test[0].nbytes) + self.backend.gram_bytes

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        assert self._test is not None
        x, y = self._test
        logits = x @ parameters["w"].T + parameters["b"]
        logits -= logits.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(logits).sum(axis=1))
        losses = log_sums - logits[np.arange(len(y)), y]
        return {"loss": float(losses.mean()), "accuracy": float((logits.argmax(axis=1) == y).mean())}


class SoftmaxCohort:
    """Plain SGD on the mean cross-entropy of each batch, with FedProx's pull and a method's correction
    where they are asked for."""

    name = "numpy, softmax regression"
    at_once = CHUNK

    def __init__(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: Sequence[Rows], classes: int, layout: Layout
    ) -> None:
        self._x = np.ascontiguousarray(x, np.float32)
        self._y = np.asarray(y, np.int64)
        self._rows = [np.asarray(r, np.int64) for r in rows]
        self._shape = (classes, self._x.shape[1])
        self._layout = layout
        counts = [len(r) for r in rows]
        self.gram_bytes = DualForm.gram_bytes(counts) or 0
        self._dual = DualForm(self._x, self._y, self._rows, classes, layout) if self.gram_bytes else None
        self._gradients = np.empty((CHUNK, *self._shape), np.float32)
        self._batch = np.empty(0, np.float32)

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        results: dict[int, Trained] = {}
        for (size, dual), chosen in self._alike(jobs).items():
            train, most = (self._dual.train, DUAL_CHUNK) if dual and self._dual else (self._train, CHUNK)
            for start in range(0, len(chosen), most):
                part = chosen[start : start + most]
                results |= zip(part, train([jobs[i] for i in part], size), strict=True)
        return [results[i] for i in range(len(jobs))]

    def _alike(self, jobs: Sequence[Job]) -> dict[tuple[int, bool], list[int]]:
        """The jobs of each batch size and form, by their places in `jobs`."""
        alike: dict[tuple[int, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            alike.setdefault((job.config.batch_size, self._suits_dual(job)), []).append(i)
        return alike

    def _suits_dual(self, job: Job) -> bool:
        """Within one epoch the weights' own form costs less: there the Gram matrix is of little use."""
        config, count = job.config, len(self._rows[job.participant])
        several = config.epochs > 1 and (config.max_steps is None or config.max_steps * config.batch_size > count)
        return several and self._dual is not None and job.correction is None and not config.proximal_mu

    def _train(self, jobs: Sequence[Job], batch_size: int) -> list[Trained]:
        cohort, order = cohort_rows([(self._rows[j.participant], j.config) for j in jobs], batch_size).longest_first()
        ordered = [jobs[i] for i in order.tolist()]
        both = np.empty((len(jobs), self._layout.size), np.float32)
        for mine, job in zip(both, ordered, strict=True):
            mine[:] = block_of(job.base, self._layout)
        classes, features = self._shape
        w, b = both[:, : classes * features].reshape(-1, *self._shape), both[:, classes * features :]
        rates = rates_of(ordered)
        pulls = np.array([job.config.proximal_mu for job in ordered], np.float32) * rates
        base = both.copy() if pulls.any() else None
        corrections = self._corrections(ordered, rates)
        shares, losses = shares_of(cohort, rates), Losses(cohort)
        # Classes first, so that a sum over classes adds whole rows; of one shape for any cohort, as all else.
        scores = np.empty((classes, CHUNK, batch_size), np.float32)
        at_label = self._y[cohort.rows] * scores[0].size + np.arange(scores[0].size).reshape(CHUNK, -1)[: len(jobs)]
        for s, count in enumerate(np.count_nonzero(cohort.real, axis=1).tolist()):
            x = self._gather(cohort.rows[s, :count])
            z = scores[:, :count]
            np.matmul(w[:count], x.transpose(0, 2, 1), out=z.transpose(1, 0, 2))
            z += b[:count].T[:, :, None]
            losses.note(s, *descend(scores, z, at_label[s, :count]))
            z *= shares[s, :count]
            if base is not None:
                both[:count] -= pulls[:count, None] * (both[:count] - base[:count])
            if corrections is not None:
                both[:count] -= corrections[:count]
            w[:count] -= np.matmul(z.transpose(1, 0, 2), x, out=self._gradients[:count])
            b[:count] -= np.add.reduce(z, axis=2).T
        results: dict[int, Trained] = {}
        for mine, i, mean, done in zip(both, order.tolist(), losses.means(), cohort.steps.tolist(), strict=True):
            trained = Parameters.in_block(self._layout, mine)
            results[i] = Trained(trained, len(self._rows[jobs[i].participant]), done, {"loss": mean})
        return [results[i] for i in range(len(jobs))]

    def _corrections(self, jobs: Sequence[Job], rates: Floats) -> Floats | None:
        """What each step takes from a method's correction of the gradients."""
        w, b = (stacked_corrections(jobs, name) for name in ("w", "b"))
        if w is None or b is None:
            return None
        return np.concatenate([w.reshape(len(jobs), -1), b], axis=1) * rates[:, None]

    def _gather(self, rows: Rows) -> Floats:
        """Their images, in memory that is used again: fresh memory would cost more than the products on it."""
        shape = (*rows.shape, self._x.shape[1])
        size = math.prod(shape)
        if self._batch.size < size:
            self._batch = np.empty(size, np.float32)
        batch = self._batch[:size].reshape(shape)
        np.take(self._x, rows, axis=0, out=batch, mode="clip")  # any other mode makes a buffer of its own
        return batch
