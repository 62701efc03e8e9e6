from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from tests.integration.chunks.federation import Federation


@pytest.fixture
def broker() -> EmbeddedBroker:
    return EmbeddedBroker()


@pytest.fixture
def federation(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Federation]:
    one = Federation(tmp_path, Topology("p"), lambda name: EmbeddedTransport(broker, name))
    yield one
    one.close()


@pytest.fixture
def amqp_federation(tmp_path: Path, amqp_url: str, prefix: str) -> Iterator[Federation]:
    from fedmq.broker_config.amqp.transport import AmqpTransport, remove
    from fedmq.schemas.local.backoff import Backoff

    quick = Backoff(base_s=0.05, cap_s=0.2)
    one = Federation(tmp_path, Topology(prefix), lambda name: AmqpTransport(amqp_url, name=name, backoff=quick))
    yield one
    one.close()
    topology = one.topology
    names = [*(queue.name for queue in topology.shared_queues), topology.models_name]
    remove(amqp_url, exchanges=[exchange.name for exchange in topology.exchanges], queues=names)
