from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.tls import NodeTls
from fedmq.fleet import setup
from fedmq.fleet.folder import FleetFolder
from tests.integration.fleet.fleets import Fleet
from tests.support.fleet import PLAN
from tests.support.rabbitmq import require_server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> FleetFolder:
    """A fleet's folder, whose authority the node and all fleets share."""
    folder = FleetFolder(tmp_path_factory.mktemp("authority") / "fleet")
    setup.make(folder, replace(PLAN, prefix="authority"), time.time())
    return folder


@pytest.fixture(scope="session")
def certain(authority: FleetFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A node that lets in certificates, and passwords while devices join."""
    require_server()
    tls = NodeTls(authority.ca, authority.server, authority.server, passwords=True)
    with PrivateNode(tmp_path_factory.mktemp("certain"), tls=tls) as node:
        yield node


@pytest.fixture
def fleet_of(
    tmp_path: Path, certain: PrivateNode, authority: FleetFolder, prefix: str
) -> Iterator[Callable[..., Fleet]]:
    """A function: fleet_of(max_versions=8) makes the federation of this test."""
    made: list[Fleet] = []

    def make(**more: int) -> Fleet:
        made.append(Fleet(tmp_path, certain, authority, prefix, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()
