"""Fixtures that every test may use."""

import logging
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.rabbitmq import amqp_url, own_node, prefix, rabbitmq_node

__all__ = ["amqp_url", "own_node", "prefix", "rabbitmq_node"]

# A command that a shell starts in the background ignores Ctrl-C. Each process that a test starts would inherit that,
# also those to which the test sends Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A property is no less true on a busy machine. pytest's own timeout ends a test that hangs.
hypothesis.settings.register_profile("fedmq", deadline=None)
hypothesis.settings.load_profile("fedmq")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that takes a node, so that `make test-brokers` leaves none out."""
    for item in items:
        if {"rabbitmq_node", "own_node"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured and assert nothing about (`record_property`)."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restore logging after a test. A command that ran in this process logs to the stderr that pytest captured for the
    test, and that is closed afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("fedmq")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = [h for h in root.handlers if h in handlers or "_pytest" in type(h).__module__]
    for logger, level in zip((root, ours), levels, strict=True):
        logger.setLevel(level)
