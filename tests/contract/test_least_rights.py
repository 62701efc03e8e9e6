"""Rights are asked for by both brokers alike. A transport tells what it may not do, and goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedmq.broker_config.rights import device_rights
from fedmq.broker_config.topology import Queue, Topology
from fedmq.broker_config.transport import Message, Transport
from fedmq.schemas.errors import BrokerRefused
from tests.contract.world import WAIT_S, World, outcome

KEY = "0" * 32


def to(queue: Queue, message_id: str = "m") -> Message:
    return Message(queue.exchange, queue.routing_key, b"body", message_id)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(BrokerRefused):
        act()


def test_a_device_does_its_work_with_its_rights_and_is_refused_the_rest(world: World) -> None:
    """One user for all of it: to make a user takes RabbitMQ seconds."""
    topology = Topology(world.prefix)
    name = f"{world.prefix}.d"
    own, upload, download = topology.participant(name), topology.upload(name, KEY), topology.download(name, "1" * 32)
    coordinator = world.make_transport("coordinator")
    coordinator.open(topology.exchanges, topology.shared_queues, timeout_s=WAIT_S)
    coordinator.declare_exchange(topology.upload_exchange(name)).result(WAIT_S)
    coordinator.declare(topology.participant("other")).result(WAIT_S)
    device = world.make_transport_of(name, device_rights(world.prefix, name))
    device.open(topology.seen_exchanges, (own, *topology.seen_queues), timeout_s=WAIT_S)

    works(topology, device, coordinator, own=own, upload=upload, download=download)
    is_refused(topology, device, own)

    foreign = world.consume(device, topology.updates)
    received = world.consume(device, own)
    coordinator.publish(to(own, "the last")).result(WAIT_S)
    assert received.next().message_id == "the last", "a consumer without the right to read disturbs no other"
    assert foreign.empty()
    assert coordinator.depth(topology.updates.name) == 1
    device.stop_consuming(topology.updates.name)
    device.close()
    for queue in (*topology.shared_queues, own, topology.participant("other")):
        coordinator.delete_queue(queue.name).result(WAIT_S)


def works(
    topology: Topology, device: Transport, coordinator: Transport, *, own: Queue, upload: Queue, download: Queue
) -> None:
    for queue in (topology.updates, topology.control):
        assert outcome(device.publish(to(queue))) is None
    device.declare(upload).result(WAIT_S)
    assert outcome(device.publish(to(upload))) is None
    assert coordinator.depth(upload.name) == 1
    coordinator.delete_queue(upload.name).result(WAIT_S)
    coordinator.declare(download).result(WAIT_S)
    assert outcome(coordinator.publish(to(download))) is None
    assert device.depth(download.name) == 1
    assert device.delete_queue(download.name).result(WAIT_S) == 1
    assert outcome(coordinator.publish(to(own))) is None
    assert device.depth(own.name) == 1
    coordinator.delete_queue(own.name).result(WAIT_S)
    device.declare(own).result(WAIT_S)


def is_refused(topology: Topology, device: Transport, own: Queue) -> None:
    other = topology.participant("other")
    for queue in (topology.dead, other, topology.leader, topology.upload("other", KEY)):
        assert outcome(device.publish(to(queue))) is BrokerRefused
    for queue in (topology.updates, other, topology.upload("other", KEY)):
        refused(lambda queue=queue: device.declare(queue).result(WAIT_S))
        refused(lambda queue=queue: device.delete_queue(queue.name).result(WAIT_S))
    for exchange in (topology.updates_exchange, topology.upload_exchange(own.name.rpartition("participant.")[2])):
        refused(lambda exchange=exchange: device.declare_exchange(exchange).result(WAIT_S))
    spying = Queue(own.name, own.kind, topology.updates_exchange.name, "update", **_limits(own))
    refused(lambda: device.declare(spying).result(WAIT_S))
    handing_on = topology.upload(own.name.rpartition("participant.")[2], "2" * 32)
    handing_on = Queue(handing_on.name, "classic", "", handing_on.name, dead_letter_exchange=topology.dead.name)
    refused(lambda: device.declare(handing_on).result(WAIT_S))


def _limits(queue: Queue) -> dict[str, object]:
    return {
        "max_length": queue.max_length, "overflow": queue.overflow, "message_ttl_s": queue.message_ttl_s,
        "expires_s": queue.expires_s,
    }  # fmt: skip


def test_missing_rights_are_told_at_once_at_the_first_start(world: World) -> None:
    name = f"{world.prefix}.d"
    device = world.make_transport_of(name, device_rights(world.prefix, name))
    with pytest.raises(BrokerRefused, match=r"participant\.other"):
        device.open((), (Topology(world.prefix).participant("other"),), timeout_s=WAIT_S)
