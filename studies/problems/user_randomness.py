"""The process's own random numbers (Python's and numpy's), seeded while the user's code runs, which may draw some."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

INITIAL_MODEL, DATA, TRAINING = 1004, 1005, 1006
"""Purposes of the seeds."""


@contextmanager
def seeded(seed: int, purpose: int) -> Iterator[int]:
    """Seed both generators, and yield the number they were seeded with. Afterwards they go on from where they were."""
    own = int(np.random.SeedSequence(seed, spawn_key=(purpose,)).generate_state(1)[0])
    before = random.getstate(), np.random.get_state()
    random.seed(own)
    np.random.seed(own)
    try:
        yield own
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
