"""The process's own random numbers: those of Python and of numpy, which anybody's code may draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded_generators(word: int) -> Iterator[None]:
    """Seed both generators. Afterwards they go on from where they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(word)
    np.random.seed(word)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
