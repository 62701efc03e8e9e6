"""Softmax regression trained in its dual form, for tasks of several epochs: cohorts that touch each participant's
examples twice, however many steps they take.

SGD from (W₀, b₀) on the n examples X of a participant never leaves the span of their gradients: after any steps
W = W₀ - AᵀX and b = b₀ - Aᵀ1, where a row of A [n, classes] is what an example has had so far (the step's rate, times
its share of the batch, times its residual p - y). So its scores are X W₀ᵀ + b₀ - (XXᵀ + 1) A, and a step needs the Gram
matrix XXᵀ + 1 [n, n] alone, which stays the same for the participant's whole life. It is the kernel form of a linear
model's gradient descent (Kivinen, Smola and Williamson 2004, "Online learning with kernels"). One product with X gives
the first scores, one the last weights; between them nothing is as long as a model.

In exact arithmetic the same as steps on the weights; in float32 equal to its rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schemas.layout import Layout
from schemas.parameters import Parameters
from studies.batches import Rows, cohort_rows
from studies.softmax_steps import Floats, Losses, block_of, descend, rates_of, shares_of
from studies.training import Job, Trained

CHUNK = 25
"""Participants at a time: their examples are still in the processor's caches when they are needed again."""
MOST_EXAMPLES = 256
"""Of one participant: its Gram matrix costs as much as n/(4·classes) of its trainings, and n² numbers."""
MOST_GRAM_BYTES = 256 * 2**20
"""Of all Gram matrices. A participant's is made at its first training."""


class DualForm:
    """Plain SGD on the mean cross-entropy of each batch, without proximal term or correction."""

    def __init__(self, x: Floats, y: npt.NDArray[np.int64], rows: Sequence[Rows], classes: int, layout: Layout) -> None:
        """x [examples, features], y [examples], of which participant i has `rows[i]`; `layout` has w, b."""
        self._x, self._y, self._rows = x, y, rows
        self._shape = (classes, x.shape[1])
        self._layout = layout
        longest = max(len(r) for r in rows)
        self._places = np.arange(longest)
        self._height = longest + 1
        """Rows of a participant in what is stacked: the last one is for the padding of batches, and has no effect."""
        self._examples = np.empty((CHUNK, longest, x.shape[1]), np.float32)
        # Pages of memory that nobody has written to are not there yet.
        self._grams = np.zeros((len(rows) * self._height, self._height), np.float32)
        self._has_gram = [False] * len(rows)

    @staticmethod
    def gram_bytes(counts: Sequence[int]) -> int | None:
        """Of participants with so many examples each; None where this form does not suit them."""
        longest = max(counts)
        total = 4 * len(counts) * (longest + 1) ** 2
        # Everything is padded to the longest: where shares are far from equal most of it would be padding.
        suits = longest <= MOST_EXAMPLES and total <= MOST_GRAM_BYTES and longest * len(counts) <= 2 * sum(counts)
        return total if suits else None

    def train(self, jobs: Sequence[Job], batch_size: int) -> list[Trained]:
        """Of at most CHUNK jobs of this batch size."""
        rows_of = [self._rows[job.participant] for job in jobs]
        cohort = cohort_rows(
            [(self._places[: len(r)], j.config) for r, j in zip(rows_of, jobs, strict=True)], batch_size
        )
        height, classes = self._height, self._shape[0]
        shares, losses = shares_of(cohort, rates_of(jobs)), Losses(cohort)
        if cohort.real.min() < batch_size:
            cohort.rows[np.arange(batch_size) >= cohort.real[:, :, None]] = height - 1
        scores, labels = self._start(jobs)
        had = np.zeros_like(scores)
        stacked = cohort.rows + np.arange(0, len(scores), height)[:, None]
        kept = cohort.rows + height * np.array([job.participant for job in jobs])[:, None]
        for s in range(len(stacked)):
            rows = stacked[s].ravel()
            z = np.ascontiguousarray(scores[rows].T)  # classes first: a sum over classes adds whole rows
            losses.note(s, *descend(z, z, labels[rows] * z.shape[1] + np.arange(z.shape[1])))
            z *= shares[s].ravel()
            step = np.ascontiguousarray(z.T)
            had[rows] += step
            if s + 1 < len(stacked):
                kernel = self._grams[kept[s]].transpose(0, 2, 1)
                scores -= np.matmul(kernel, step.reshape(len(jobs), batch_size, classes)).reshape(-1, classes)
        return self._results(jobs, had.reshape(len(jobs), height, classes), cohort.steps, losses.means())

    def _start(self, jobs: Sequence[Job]) -> tuple[Floats, Rows]:
        """The first scores, [participants · height, classes], and the labels."""
        classes, features = self._shape
        scores = np.zeros((len(jobs), self._height, classes), np.float32)
        labels = np.zeros((len(jobs), self._height), np.int64)
        for job, examples, own_scores, own_labels in zip(jobs, self._examples, scores, labels, strict=False):
            rows = self._rows[job.participant]
            count = len(rows)
            x, block = examples[:count], block_of(job.base, self._layout)
            np.take(self._x, rows, axis=0, out=x, mode="clip")  # any other mode makes a buffer of its own
            own_labels[:count] = self._y[rows]
            w, b = block[: classes * features].reshape(classes, features), block[classes * features :]
            np.dot(x, w.T, out=own_scores[:count])
            own_scores[:count] += b
            if not self._has_gram[job.participant]:
                self._make_gram(job.participant, x)
        return scores.reshape(-1, classes), labels.ravel()

    def _make_gram(self, participant: int, x: Floats) -> None:
        first, count = participant * self._height, len(x)
        gram = self._grams[first : first + count, :count]
        gram[:] = np.dot(x, x.T)
        gram += 1  # the bias: a feature that is 1 for every example
        self._has_gram[participant] = True

    def _results(self, jobs: Sequence[Job], had: Floats, steps: Rows, means: Sequence[float]) -> list[Trained]:
        classes, features = self._shape
        moved = np.empty((len(jobs), self._layout.size), np.float32)
        moved[:, classes * features :] = np.add.reduce(had, axis=1)
        results = []
        for job, mine, own, examples, done, mean in zip(
            jobs, moved, had, self._examples, steps.tolist(), means, strict=False
        ):
            count = len(self._rows[job.participant])
            np.dot(own[:count].T, examples[:count], out=mine[: classes * features].reshape(classes, features))
            np.subtract(block_of(job.base, self._layout), mine, out=mine)
            results.append(Trained(Parameters.in_block(self._layout, mine), count, done, {"loss": mean}))
        return results
