"""Fixtures that every test may use."""

import logging
import signal
from collections.abc import Iterator

import pytest

from tests.support.rabbitmq import amqp_url, own_node, prefix, rabbitmq_node

__all__ = ["amqp_url", "own_node", "prefix", "rabbitmq_node"]

# What a shell starts in the background ignores Ctrl-C, and so would each process that a test starts and sends it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that runs in this process logs to the stderr that pytest captures for its test, and closes after it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = [h for h in root.handlers if h in handlers or "_pytest" in type(h).__module__]
    root.setLevel(level)
