from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_config.embedded import EmbeddedBroker, EmbeddedTransport
from broker_config.topology import Topology
from tests.integration.chunks.federation import Federation


@pytest.fixture
def broker() -> EmbeddedBroker:
    return EmbeddedBroker()


@pytest.fixture
def federation(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Federation]:
    one = Federation(tmp_path, Topology("p"), lambda name: EmbeddedTransport(broker, name))
    yield one
    one.close()
