"""The long variants of tests, which `make test-full` runs and `make test` does not."""

import os

import pytest

FULL = "FULL_TESTS" in os.environ
"""True runs also the variants that take much time and rarely show anything new."""


def in_full(reason: str) -> pytest.MarkDecorator:
    """Mark a test that `make test-full` alone runs. `reason` says what `make test` has of it."""
    return pytest.mark.skipif(not FULL, reason=f"make test-full has it: {reason}")
