"""Least rights over a real broker: what a device needs it may do, and nothing else.

`Federation` is both real services in one process, with a model that travels in chunks both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pika.exceptions import ChannelClosedByBroker

from fedmq.broker_config.rights import Rights
from fedmq.broker_config.topology import Topology
from fedmq.schemas.errors import BrokerRefused
from tests.integration.chunks.federation import Federation, Trainer
from tests.security.site import COORDINATOR, DEVICES, WAIT_S, Site, until

pytestmark = pytest.mark.broker
KEY = "0" * 32
Act = Callable[[Any], object]


@pytest.fixture
def federation(site: Site, tmp_path: Path) -> Iterator[Federation]:
    """A federation whose transports have the users of their names: the coordinators', and each device's own."""
    one = Federation(tmp_path, site.topology, site.transport)
    yield one
    one.close()
    site.clear()


@pytest.fixture(scope="module")
def objects(site: Site) -> Iterator[Topology]:
    """All objects of a federation with two devices, made by those that make them in a run. No run uses them."""
    topology = site.topology
    coordinator = site.transport(COORDINATOR)
    coordinator.open(topology.exchanges, topology.coordinator_queues, timeout_s=WAIT_S)
    for name in DEVICES:
        coordinator.declare_exchange(topology.upload_exchange(name)).result(WAIT_S)
        device = site.transport(name)
        own, upload = topology.participant(name), topology.upload(name, KEY)
        device.open(topology.seen_exchanges, (own, *topology.seen_queues), timeout_s=WAIT_S)
        device.declare(upload).result(WAIT_S)
        device.close()
    coordinator.close()
    yield topology
    site.clear()


def test_devices_make_a_whole_run_in_chunks_both_ways_and_every_update_counts_once(federation: Federation) -> None:
    for name in DEVICES:
        federation.participant(name)
    run = federation.coordinator(versions=3, buffer_size=3)
    summary = run.result(WAIT_S)
    assert (summary.finished, summary.version, summary.accepted) == ("max_versions", 3, 9)
    assert set(summary.discarded) <= {"run_finished"}
    federation.check(versions=3, updates=9)


def test_a_standby_with_the_coordinators_rights_takes_over(
    federation: Federation, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    go, trainers = threading.Event(), [Trainer(), Trainer()]
    for name, trainer in zip(DEVICES, trainers, strict=False):
        trainer.gate = go
        federation.participant(name, trainer)
    active = federation.coordinator(versions=2, buffer_size=2)
    until(lambda: all(trainer.trainings for trainer in trainers))
    first = federation.newest_coordinator
    standby = federation.coordinator(versions=2, buffer_size=2, connect=lambda: site.transport(COORDINATOR, "standby"))
    until(lambda: "event=standby " in caplog.text)
    first.stop()
    assert active.result(WAIT_S).finished is None
    go.set()
    assert standby.result(WAIT_S).finished == "max_versions"
    assert "epoch=2" in caplog.text
    federation.check(versions=2, updates=4)


def test_queue_conflicts_in_a_run_end_nobody(
    federation: Federation, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody with too many rights makes the leader's queue and a device's queue anew, with other arguments."""
    topology, go, trainer = site.topology, threading.Event(), Trainer()
    trainer.gate = go
    ended = federation.participant("sensor", trainer)
    run = federation.coordinator(versions=2, buffer_size=1)
    until(lambda: trainer.trainings > 0)
    broken = [topology.leader.name, topology.participant("sensor").name]
    with site.raw(COORDINATOR) as channel:
        for name in broken:
            make_otherwise(site, channel, name)
        for name in broken:
            until(lambda name=name: any("queue_conflict" in line and name in line for line in caplog.messages))
        go.set()
        assert not run.done()
        assert not ended.done()
        for name in broken:
            channel.queue_delete(name)
    assert run.result(WAIT_S).finished == "max_versions"
    federation.check(versions=2, updates=2)


def make_otherwise(site: Site, channel: Any, name: str) -> None:
    """Delete a queue and declare it with other arguments, before its consumer declares it again."""
    for _ in range(20):
        channel.queue_delete(name)
        with site.raw(COORDINATOR) as other:
            try:
                other.queue_declare(name, durable=True, arguments={"x-max-length": 77})
            except ChannelClosedByBroker:
                continue
            return
    raise AssertionError(f"the consumer of {name} was quicker 20 times")


# Limits


LIMITS = {
    "connections": (["set_user_limits", "sensor", '{"max-connections": 1}'], ["clear_user_limits", "sensor", "all"]),
    "channels": (["set_user_limits", "sensor", '{"max-channels": 0}'], ["clear_user_limits", "sensor", "all"]),
    "queues": (["set_vhost_limits", "-p", "{vhost}", '{{"max-queues": 0}}'], ["clear_vhost_limits", "-p", "{vhost}"]),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_the_broker_is_waited_out(site: Site, limit: str, caplog: pytest.LogCaptureFixture) -> None:
    """A device needs two connections, some channels and a queue of its own."""
    given, lifted = ([word.format(vhost=site.vhost) if "{vhost}" in word or "{{" in word else word for word in words]
                     for words in LIMITS[limit])  # fmt: skip
    own = site.topology.participant("sensor")
    site.node.ctl(*given)
    opened: Future[None] = Future()
    device = site.transport("sensor")

    def open_it() -> None:
        try:
            device.open((), (own,), timeout_s=None)
            device.consume(own.name, lambda _delivery: None, 1)
            opened.set_result(None)
        except BaseException as error:  # noqa: BLE001  for the other thread to see
            opened.set_exception(error)

    thread = threading.Thread(target=open_it)
    thread.start()
    try:
        until(lambda: "limit" in caplog.text)
        assert "add_vhost" not in caplog.text, "it is no wrong virtual host"
        assert not opened.done()
    finally:
        site.node.ctl(*lifted)
    opened.result(WAIT_S)
    thread.join(WAIT_S)
    device.delete_queue(own.name).result(WAIT_S)
    device.close()


# What a device needs, and what it is refused


def publish(exchange: str, routing_key: str) -> Act:
    def act(channel: Any) -> None:
        channel.confirm_delivery()
        channel.basic_publish(exchange, routing_key, b"", mandatory=True)

    return act


def needed(topology: Topology, name: str) -> dict[str, Act]:
    """Return all that a device does, on objects that are there."""
    own, upload = topology.participant(name), topology.upload(name, KEY)
    return {
        "look at updates": lambda channel: channel.queue_declare(topology.updates.name, passive=True),
        "look at the exchange of updates": lambda c: c.exchange_declare(topology.updates.name, passive=True),
        "declare its queue": lambda c: c.queue_declare(own.name, durable=True, arguments=own.arguments()),
        "read its queue": lambda channel: channel.basic_get(own.name),
        "send an update": publish(topology.updates.exchange, topology.updates.routing_key),
        "say hello": publish(topology.control.exchange, topology.control.routing_key),
        "declare an upload": lambda c: c.queue_declare(upload.name, durable=True, arguments=upload.arguments()),
        "bind an upload": lambda channel: channel.queue_bind(upload.name, upload.exchange, upload.routing_key),
        "send a chunk": publish(upload.exchange, upload.routing_key),
        "delete a payload": lambda channel: channel.queue_delete(topology.download(name, "1" * 32).name),
    }


def refused(topology: Topology, other: str) -> dict[str, Act]:
    """Return the plainest things that a device may not do with what is shared, and with what is another's."""
    own, upload = topology.participant(other), topology.upload(other, KEY)
    shared = [queue.name for queue in topology.coordinator_queues]
    acts: dict[str, Act] = {}
    for name in (*shared, own.name, upload.name):
        acts |= {
            f"read {name}": lambda channel, name=name: channel.basic_get(name),
            f"purge {name}": lambda channel, name=name: channel.queue_purge(name),
            f"delete {name}": lambda channel, name=name: channel.queue_delete(name),
            f"declare {name}": lambda channel, name=name: channel.queue_declare(name, durable=True),
            f"send to {name}": publish("", name),
        }
    for name in (*(exchange.name for exchange in topology.exchanges), upload.exchange):
        acts |= {
            f"delete the exchange {name}": lambda channel, name=name: channel.exchange_delete(name),
            f"declare the exchange {name}": lambda c, name=name: c.exchange_declare(name, "fanout", durable=True),
        }
    acts[f"send a chunk as {other}"] = publish(upload.exchange, upload.routing_key)
    acts["write a dead letter"] = publish(topology.dead_exchange.name, "dead")
    acts["make an exchange for itself"] = lambda channel: channel.exchange_declare(f"{topology.prefix}.up.new")
    acts["make a queue that the server names"] = lambda channel: channel.queue_declare("")
    return acts


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_may_do_what_it_needs(site: Site, objects: Topology, name: str) -> None:
    found = {what: site.refusal(name, act) for what, act in needed(objects, name).items()}
    assert found == dict.fromkeys(found)


@pytest.mark.parametrize(("name", "other"), [("sensor", "sensor-2"), ("sensor-2", "sensor"), ("a.b", "aXb")])
def test_a_device_may_do_nothing_with_what_is_shared_or_another_s(
    site: Site, objects: Topology, name: str, other: str
) -> None:
    before = site.depths()
    found = {what: site.refusal(name, act) for what, act in refused(objects, other).items()}
    assert found == dict.fromkeys(found, 403)
    assert site.depths() == before


def test_the_acts_that_are_refused_to_a_device_are_real(site: Site, objects: Topology) -> None:
    """The same acts with all rights: none is refused for another reason than the rights."""
    site.grant({"anybody": Rights(".*", ".*", ".*")})
    acts = {what: act for what, act in refused(objects, "sensor").items() if what.startswith(("read", "send", "write"))}
    found = {what: site.refusal("anybody", act) for what, act in acts.items()}
    assert found == dict.fromkeys(found)


def test_a_device_s_login_that_lacks_its_rights_is_told_at_once(site: Site) -> None:
    """`aXb` with the topology of `a.b`: somebody mixed two bundles up."""
    device = site.transport("aXb")
    with pytest.raises(BrokerRefused, match=r"participant\.a\.b"):
        device.open((), (site.topology.participant("a.b"),), timeout_s=WAIT_S)
