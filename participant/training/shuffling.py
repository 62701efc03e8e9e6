"""The order of examples in a task: a permutation for each epoch, which only the task's seed decides.

Each example draws a word, and the order of the words is the order of the examples (a random sort). The words are those
of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", section 5). Its i-th word
can be computed without the words before it. So a study makes the words of a whole cohort at once, for less than half
of the cost of a numpy generator for each task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fedmq.schemas.messages import TrainingConfig

GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOWER = np.uint64(0xFFFFFFFF)

Words = npt.NDArray[np.uint64]


def orders(seeds: Sequence[int], num_examples: Sequence[int], epoch: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(num_examples[i]) for each task, as [seeds, largest num_examples].

    A row ends with the numbers that its task does not have, in order. Seeds are in [0, 2^64), num_examples are at most
    2^32, and epochs count from 0. The row of a task does not depend on the other tasks.
    """
    counts = np.array(num_examples, np.uint64)[:, None]
    gammas: Words = np.array([*seeds, epoch], np.uint64)
    gammas[:-1] += GAMMA
    gammas[-1:] *= GAMMA
    # The words of a task start at a place that is a word itself, so that tasks and epochs share no stretch of words.
    starts = _mixed(_mixed(gammas[:-1]) + gammas[-1:])
    places: Words = np.arange(counts.max(), dtype=np.uint64)
    steps: Words = places * GAMMA
    words = _mixed(starts[:, None] + steps)
    # The lower half of a word is the example's number: sorting words sorts examples, and no two words are equal.
    words |= LOWER
    words ^= LOWER - places
    if (counts != len(places)).any():
        words |= np.where(places >= counts, ~LOWER, np.uint64(0))
    words.sort(axis=1)
    words &= LOWER
    return words.view(np.int64)


def epochs(config: TrainingConfig, num_examples: int, least: int = 1) -> Iterator[Iterator[npt.NDArray[np.int64]]]:
    """Yield the batches of each epoch of a task, as the examples' numbers, up to `config.max_steps` batches.

    Each epoch has an order of its own. Its last batch has what is left. If that is less than `least`, the batch is left
    out, unless it is the epoch's only one.
    """
    begins = range(0, num_examples, config.batch_size)
    if len(begins) > 1 and num_examples - begins[-1] < least:
        begins = begins[:-1]
    steps_left = config.max_steps if config.max_steps is not None else config.epochs * len(begins)
    for epoch in range(config.epochs):
        starts = begins[: max(steps_left, 0)]
        if not starts:
            return
        order = orders([config.seed], [num_examples], epoch)[0]
        yield (order[i : i + config.batch_size] for i in starts)
        steps_left -= len(starts)


def _mixed(words: Words) -> Words:
    """SplitMix64's finaliser, Stafford's variant 13; modulo 2^64."""
    words ^= words >> np.uint64(30)
    words *= FIRST
    words ^= words >> np.uint64(27)
    words *= SECOND
    words ^= words >> np.uint64(31)
    return words
