"""Settings of training that come from the environment."""

from __future__ import annotations

import os

from fedmq.schemas.errors import ConfigError


def threads_from_environment() -> int | None:
    """Return FEDMQ_TF_THREADS, the number of threads that Keras and PyTorch may use; None leaves it to them.

    Raises ConfigError if it is no such number.
    """
    value = os.environ.get("FEDMQ_TF_THREADS", "")
    if value and not (value.isdecimal() and int(value) > 0):
        raise ConfigError(f"FEDMQ_TF_THREADS is {value!r}, expected a whole number of at least 1")
    return int(value) if value else None
