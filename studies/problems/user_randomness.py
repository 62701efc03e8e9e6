"""The process's own random numbers, seeded while the user's code runs, which may draw some.

These are Python's and numpy's, and those of Keras and TensorFlow if the process has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedmq.participant.training.generators import seeded_generators

INITIAL_MODEL, DATA, TRAINING = 1004, 1005, 1006
"""Purposes of the seeds."""


@contextmanager
def seeded(seed: int, purpose: int, *, keras: bool = True) -> Iterator[int]:
    """Seed all generators, and yield the number they were seeded with.

    Afterwards Python's and numpy's go on from where they were. Those of Keras and TensorFlow cannot be read, so they
    stay seeded. That costs 10 ms, so `keras` leaves them alone for code that seeds them itself.
    """
    own = int(np.random.SeedSequence(seed, spawn_key=(purpose,)).generate_state(1)[0])
    with seeded_generators(own):
        if keras and "keras" in sys.modules and "tensorflow" in sys.modules:
            from fedmq.participant.training.keras.steps import seed_keras

            seed_keras(own)
        yield own
