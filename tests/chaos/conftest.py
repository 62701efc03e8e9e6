"""Federations on the session's RabbitMQ node, each with a prefix of its own."""

import subprocess
import sys

import pytest

from tests.chaos.disk import NO_MOUNT, Disk
from tests.chaos.harness import Federation
from tests.chaos.proxy import Proxy


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    one = Federation(tmp_path, rabbitmq_node.url, prefix)
    yield one
    one.close()


@pytest.fixture
def proxies(rabbitmq_node):
    """Return a function that makes a proxy to the broker, with the environment of a process that must use it."""
    made = []

    def make():
        made.append(Proxy(rabbitmq_node.port))
        return made[-1], {"FEDMQ_BROKER_URL": rabbitmq_node.url_for(port=made[-1].port)}

    yield make
    for one in made:
        one.close()


@pytest.fixture
def disk(tmp_path):
    try:
        one = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        print(f"\n{NO_MOUNT}", file=sys.__stderr__)
        pytest.skip(NO_MOUNT)
    yield one
    one.close()
