"""Deal a data set out to participants. Each example goes to exactly one participant, and a seed repeats the deal.

Each function returns one array of row numbers per participant. `weights` makes unequal sizes: a participant of weight 2
gets twice the examples of a participant of weight 1 (in expectation, for `dirichlet`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.generic]


def iid(num_examples: int, num_participants: int, seed: int, weights: Sequence[float] | None = None) -> list[Rows]:
    """Deal shuffled examples. All shares look alike, and differ in size by `weights` alone."""
    rows = np.random.default_rng(seed).permutation(num_examples)
    return _cut(rows, _normal(weights, num_participants))


def dirichlet(
    labels: Labels, num_participants: int, alpha: float, seed: int, weights: Sequence[float] | None = None
) -> list[Rows]:
    """Deal with label skew (Hsu et al. 2019, arXiv:1909.06335).

    The shares of each class are drawn from a Dirichlet distribution with concentration alpha·M·w, where w are the
    normalised weights. A small alpha gives each participant few classes; a large one is nearly iid.
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}, expected more than 0 (0.1: very skewed; 100: nearly iid).")
    rng = np.random.default_rng(seed)
    concentration = alpha * num_participants * _normal(weights, num_participants)
    parts: list[list[Rows]] = [[] for _ in range(num_participants)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, _cut(rows, rng.dirichlet(concentration)), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def shards(labels: Labels, num_participants: int, shards_each: int, seed: int) -> list[Rows]:
    """Sort by label, cut into shards, and deal `shards_each` to each participant.

    McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    count = num_participants * shards_each
    if not 1 <= count <= len(labels):
        raise ValueError(f"{num_participants} participants with {shards_each} shards each from {len(labels)} examples")
    rng = np.random.default_rng(seed)
    by_label = np.argsort(labels, kind="stable").astype(np.int64)
    pieces = np.array_split(by_label, count)
    deal = rng.permutation(count).reshape(num_participants, shards_each)
    return [rng.permutation(np.concatenate([pieces[i] for i in hand])) for hand in deal]


def _normal(weights: Sequence[float] | None, num_participants: int) -> npt.NDArray[np.float64]:
    if num_participants < 1:
        raise ValueError(f"num_participants is {num_participants}, expected 1 or more.")
    if weights is None:
        return np.full(num_participants, 1.0 / num_participants)
    if len(weights) != num_participants or min(weights) <= 0:
        raise ValueError(f"weights are {list(weights)}, expected {num_participants} positive numbers.")
    return np.asarray(weights, dtype=np.float64) / sum(weights)


def _cut(rows: Rows, fractions: npt.NDArray[np.float64]) -> list[Rows]:
    """Cut into consecutive pieces whose sizes follow `fractions`. The running total is rounded, so no row is lost."""
    ends = np.rint(np.cumsum(fractions) * len(rows)).astype(int)
    return np.split(rows, ends[:-1])
