"""The process's own random numbers: those of Python and of numpy, which anybody's code may draw, and PyTorch's."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def seeded_generators(word: int) -> Iterator[None]:
    """Seed the generators of Python and numpy, and PyTorch's if it is loaded. Afterwards they go on from where they
    were."""
    torch = _loaded_torch()
    before = random.getstate(), np.random.get_state(), None if torch is None else _torch_states(torch)
    random.seed(word)
    np.random.seed(word)
    if torch is not None:
        torch.manual_seed(word)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch is not None and before[2] is not None:
            on_cpu, on_gpus = before[2]
            torch.set_rng_state(on_cpu)
            if on_gpus:
                torch.cuda.set_rng_state_all(on_gpus)


def word_of(seed: int) -> int:
    """Return the number of 31 bits that a task's training seeds the generators with."""
    return int(np.random.SeedSequence(seed, spawn_key=(2,)).generate_state(1)[0]) >> 1


def _loaded_torch() -> Any:
    """Return PyTorch; None in a process that has not imported it, or is about to."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "manual_seed") and hasattr(torch, "set_rng_state") else None


def _torch_states(torch: Any) -> tuple[Any, list[Any]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
