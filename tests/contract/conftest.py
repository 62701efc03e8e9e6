"""The world of every contract test: once in RAM, once over RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.contract.world import AmqpWorld, EmbeddedWorld, World


@pytest.fixture(params=["embedded", pytest.param("amqp", marks=pytest.mark.broker)])
def world(request: pytest.FixtureRequest, prefix: str) -> Iterator[World]:
    """A fresh corner of a broker. Nothing of it may still run after the test."""
    before = set(threading.enumerate())
    if request.param == "embedded":
        world: World = EmbeddedWorld(prefix)
    else:
        world = AmqpWorld(prefix, request.getfixturevalue("rabbitmq_node"))
    yield world
    world.close()
    assert set(threading.enumerate()) <= before
