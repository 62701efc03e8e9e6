"""Softmax regression, trained in cohorts by hand-batched numpy: W [features, classes] and b [classes] in float32.

Each step is one stacked product over all participants of the cohort that still have a batch. Every participant's share
of it has the same shape whatever the cohort, so a result does not depend on who else is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.parameters import Parameters
from studies.batches import Rows, cohort_rows
from studies.training import Job, Trained, stacked_corrections

CHUNK = 32
"""Participants at a time: their weights, gradients and batches stay in a core's second-level cache."""
Floats = npt.NDArray[np.float32]


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
        self.initial = Parameters(
            {"w": np.zeros((x.shape[1], classes), np.float32), "b": np.zeros(classes, np.float32)}
        )
        self.num_examples = [len(r) for r in rows]
        self.backend = SoftmaxCohort(x, y, rows, classes)
        self.evaluates = test is not None
        self._test = test

    def evaluate(self, parameters: Parameters) -> dict[str, float]:
        assert self._test is not None
        x, y = self._test
        logits = x @ parameters["w"] + parameters["b"]
        logits -= logits.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(logits).sum(axis=1))
        losses = log_sums - logits[np.arange(len(y)), y]
        return {"loss": float(losses.mean()), "accuracy": float((logits.argmax(axis=1) == y).mean())}


class SoftmaxCohort:
    """Plain SGD on the mean cross-entropy of each batch, with FedProx's pull and a method's correction
    where they are asked for."""

    name = "numpy, softmax regression"

    def __init__(self, x: npt.NDArray[Any], y: npt.NDArray[Any], rows: Sequence[Rows], classes: int) -> None:
        self._x = np.ascontiguousarray(x, np.float32)
        self._one_hot = np.eye(classes, dtype=np.float32)[y]
        self._rows = [np.asarray(r, np.int64) for r in rows]

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        results: dict[int, Trained] = {}
        for size in sorted({job.config.batch_size for job in jobs}):
            chosen = [i for i, job in enumerate(jobs) if job.config.batch_size == size]
            for start in range(0, len(chosen), CHUNK):
                part = chosen[start : start + CHUNK]
                results |= zip(part, self._train([jobs[i] for i in part], size), strict=True)
        return [results[i] for i in range(len(jobs))]

    def _train(self, jobs: Sequence[Job], batch_size: int) -> list[Trained]:
        cohort = cohort_rows([(self._rows[j.participant], j.config) for j in jobs], batch_size)
        order = np.argsort(-cohort.steps, kind="stable")  # so that those with a batch left are the first ones
        rows, real, steps = cohort.rows[:, order], cohort.real[:, order], cohort.steps[order]
        ordered = [jobs[i] for i in order]
        rates = np.array([_rate(job) for job in ordered], np.float32)[:, None, None]
        pulls = np.array([job.config.proximal_mu for job in ordered], np.float32)[:, None, None] * rates
        w, b = (np.stack([job.base[name] for job in ordered]) for name in ("w", "b"))
        w_correction, b_correction = (stacked_corrections(ordered, name) for name in ("w", "b"))
        base_w, base_b = (w.copy(), b.copy()) if pulls.any() else (w, b)
        gradients = np.empty_like(w)
        shares: Any = rates[:, 0, 0] / np.maximum(real, 1).astype(np.float32)
        losses = np.zeros(real.shape, np.float64)
        for s in range(len(rows)):
            n = int(np.count_nonzero(steps > s))
            x = self._x[rows[s, :n]]
            scores: Floats = np.matmul(x, w[:n])
            scores += b[:n, None]
            error = _errors(scores, self._one_hot[rows[s, :n]], real[s, :n], losses[s, :n])
            error *= shares[s, :n][:, None, None]
            if base_w is not w:
                w[:n] -= pulls[:n] * (w[:n] - base_w[:n])
                b[:n] -= pulls[:n, 0] * (b[:n] - base_b[:n])
            if w_correction is not None and b_correction is not None:
                w[:n] -= rates[:n] * w_correction[:n]
                b[:n] -= rates[:n, 0] * b_correction[:n]
            w[:n] -= np.matmul(x.transpose(0, 2, 1), error, out=gradients[:n])
            b[:n] -= error.sum(axis=1)
        last = np.arange(len(rows))[:, None] >= cohort.last_epoch[order]
        mean = ((losses * last).sum(axis=0) / (real * last).sum(axis=0)).tolist()
        results: dict[int, Trained] = {}
        for place, i in enumerate(order.tolist()):
            trained = Parameters({"w": w[place], "b": b[place]})
            examples = len(self._rows[jobs[i].participant])
            results[i] = Trained(trained, examples, int(steps[place]), {"loss": mean[place]})
        return [results[i] for i in range(len(jobs))]


def _errors(scores: Floats, labels: Floats, real: Rows, losses: npt.NDArray[np.float64]) -> Floats:
    """softmax(scores) - labels in place, 0 where a batch is padding; adds the batches' losses to `losses`."""
    scores -= scores.max(axis=2, keepdims=True)
    at_label = (scores * labels).sum(axis=2)
    np.exp(scores, out=scores)
    sums = scores.sum(axis=2, keepdims=True)
    scores /= sums
    scores -= labels
    each = np.log(sums[:, :, 0]) - at_label
    size = scores.shape[1]
    if (real < size).any():
        padding = np.arange(size) >= real[:, None]
        scores[padding] = 0
        each[padding] = 0
    losses += each.sum(axis=1)
    return scores


def _rate(job: Job) -> float:
    if job.config.learning_rate is None:
        raise InputError("training.learning_rate is not set: softmax regression has no default, give one")
    return job.config.learning_rate
