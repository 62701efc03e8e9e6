"""The order of examples in a task: for each epoch a permutation that the task's seed alone decides.

Each example draws a word; the order of the words is the examples' order (a random sort). The words are SplitMix64's
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", section 5), whose i-th word can be
computed without the ones before it: a study makes those of a whole cohort at once, for less than half of what a numpy
generator for each task costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOWER = np.uint64(0xFFFFFFFF)

Words = npt.NDArray[np.uint64]


def orders(seeds: Sequence[int], num_examples: Sequence[int], epoch: int) -> npt.NDArray[np.int64]:
    """The permutations of range(num_examples[i]) for tasks of these seeds, [seeds, largest num_examples]; a row goes on
    with the numbers that its task does not have, in order.

    Seeds are in [0, 2^64), num_examples up to 2^32, epochs count from 0. A task's does not depend on the others.
    """
    counts = np.array(num_examples, np.uint64)[:, None]
    gammas: Words = np.array([*seeds, epoch], np.uint64)
    gammas[:-1] += GAMMA
    gammas[-1:] *= GAMMA
    # A task's words start at a place that is a word itself, so that tasks and epochs share no stretch of them.
    starts = _mixed(_mixed(gammas[:-1]) + gammas[-1:])
    places: Words = np.arange(counts.max(), dtype=np.uint64)
    steps: Words = places * GAMMA
    words = _mixed(starts[:, None] + steps)
    # The lower half is the example's number: sorting sorts the examples, and no two are equal.
    words |= LOWER
    words ^= LOWER - places
    if (counts != len(places)).any():
        words |= np.where(places >= counts, ~LOWER, np.uint64(0))
    words.sort(axis=1)
    words &= LOWER
    return words.view(np.int64)


def _mixed(words: Words) -> Words:
    """SplitMix64's finaliser, Stafford's variant 13; modulo 2^64."""
    words ^= words >> np.uint64(30)
    words *= FIRST
    words ^= words >> np.uint64(27)
    words *= SECOND
    words ^= words >> np.uint64(31)
    return words
