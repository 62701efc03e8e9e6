"""The process's own random numbers (Python's and numpy's), seeded while code of the user's runs that may draw them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

INITIAL_MODEL, DATA, TRAINING = 1004, 1005, 1006
"""What they are seeded for."""


@contextmanager
def seeded(seed: int, purpose: int) -> Iterator[int]:
    """Yields the number they were seeded with; afterwards they go on where they were."""
    own = int(np.random.SeedSequence(seed, spawn_key=(purpose,)).generate_state(1)[0])
    before = random.getstate(), np.random.get_state()
    random.seed(own)
    np.random.seed(own)
    try:
        yield own
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
