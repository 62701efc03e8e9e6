"""Fixtures around one private RabbitMQ node that the whole test session shares."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.broker_config.node.node import PrivateNode, find_server

NO_SERVER = (
    "NO RABBITMQ: rabbitmq-server is not installed here, so nothing that needs a broker is tested "
    "(install the package rabbitmq-server, or set FEDMQ_RABBITMQ_SBIN)"
)


def require_server() -> None:
    """Skip loudly if there is no rabbitmq-server; in CI that is a failure."""
    if find_server() is not None:
        return
    if os.environ.get("CI"):
        pytest.fail(NO_SERVER, pytrace=False)
    print(f"\n{NO_SERVER}", file=sys.__stderr__)
    pytest.skip(NO_SERVER)


@pytest.fixture(scope="session")
def rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A running node. Tests that stop, kill or block it start their own (`own_node`)."""
    require_server()
    with PrivateNode(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[PrivateNode]:
    """A node for one test alone. It is not started yet, and the test may kill and restart it."""
    require_server()
    node = PrivateNode(tmp_path / "rabbitmq")
    yield node
    node.stop()


@pytest.fixture
def amqp_url(rabbitmq_node: PrivateNode) -> str:
    """URL of the shared node."""
    return rabbitmq_node.url


@pytest.fixture
def prefix() -> str:
    """A topology prefix that no other test uses."""
    return f"t{uuid.uuid4().hex[:10]}"
