"""Rule 6: what somebody else has to make, delete or allow is waited for, and ends nothing."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import Future

import pytest

from fedmq.broker_config.topology import Exchange, Topology
from fedmq.broker_config.transport import Message, Transport
from fedmq.schemas.errors import BrokerUnavailable, Unroutable
from tests.contract.world import WAIT_S, States, World, outcome
from tests.support.asking import ask_until


def open_meanwhile(transport: Transport, topology: Topology, participant_id: str, states: States) -> Future[None]:
    """Open as a participant does, with all the patience there is, on a thread of its own."""
    opened: Future[None] = Future()

    def work() -> None:
        try:
            own = topology.participant(participant_id)
            transport.open(topology.seen_exchanges, (own, *topology.seen_queues), states.put, timeout_s=None)
        except BaseException as error:  # noqa: BLE001  for the other thread to see
            opened.set_exception(error)
        else:
            opened.set_result(None)

    threading.Thread(target=work).start()
    return opened


def await_line(caplog: pytest.LogCaptureFixture, text: str) -> None:
    ask_until(lambda: caplog.text, lambda found: text in found)


@pytest.fixture
def topology(world: World) -> Topology:
    return Topology(world.prefix)


def clear(world: World, topology: Topology, *names: str) -> None:
    transport = world.open("clear")
    for queue in (*topology.shared_queues, *map(topology.participant, names)):
        transport.delete_queue(queue.name).result(WAIT_S)


def test_a_participant_waits_until_the_coordinator_has_made_the_shared_objects(
    world: World, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    states = States()
    participant = world.make_transport("participant")
    opened = open_meanwhile(participant, topology, "p1", states)
    await_line(caplog, "the coordinator has not made")
    assert not opened.done()
    coordinator = world.make_transport("coordinator")
    coordinator.open(topology.exchanges, topology.shared_queues, timeout_s=WAIT_S)
    opened.result(WAIT_S)
    own = topology.participant("p1")
    received = world.consume(participant, own)
    coordinator.publish(Message(own.exchange, own.routing_key, b"task", "m1")).result(WAIT_S)
    assert received.next().message_id == "m1"
    clear(world, topology, "p1")


def test_a_transport_with_a_deadline_says_what_is_missing(world: World, topology: Topology) -> None:
    transport = world.make_transport("participant")
    with pytest.raises(BrokerUnavailable, match=f"not made exchange '{world.prefix}.updates'"):
        transport.open(topology.seen_exchanges, topology.seen_queues, timeout_s=0.5)


def test_shared_queues_that_vanish_are_waited_for_after_a_reconnect(
    world: World, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = world.make_transport("coordinator")
    coordinator.open(topology.exchanges, topology.shared_queues, timeout_s=WAIT_S)
    states = States()
    participant = world.make_transport("participant")
    open_meanwhile(participant, topology, "p1", states).result(WAIT_S)
    states.wait_for("connected")
    coordinator.delete_queue(topology.control.name).result(WAIT_S)
    world.sever("participant")
    await_line(caplog, f"not made queue '{topology.control.name}'")
    hello = participant.publish(Message(topology.control.exchange, "control", b"hello", "m1"), timeout_s=WAIT_S)
    assert not hello.done()
    coordinator.declare(topology.control).result(WAIT_S)
    hello.result(WAIT_S)
    clear(world, topology, "p1")


def test_a_passive_queue_may_have_any_arguments(world: World, topology: Topology) -> None:
    other = Topology(world.prefix, updates_max_bytes=10_000)
    world.make_transport("coordinator").open(other.exchanges, other.shared_queues, timeout_s=WAIT_S)
    world.make_transport("participant").open(topology.seen_exchanges, topology.seen_queues, timeout_s=WAIT_S)
    clear(world, topology)


def test_the_default_exchange_brings_a_message_to_a_queue_without_a_binding(world: World, topology: Topology) -> None:
    own = topology.participant("p1")
    transport = world.open("one")
    message = Message(own.exchange, own.routing_key, b"task", "m1")
    assert outcome(transport.publish(message)) is Unroutable
    transport.declare(own).result(WAIT_S)
    assert outcome(transport.publish(message)) is None
    assert transport.depth(own.name) == 1
    transport.delete_queue(own.name).result(WAIT_S)


def test_an_exchange_that_is_declared_later_takes_uploads(world: World, topology: Topology) -> None:
    transport, queue = world.open("one"), topology.upload("p1", "0" * 32)
    with pytest.raises(BrokerUnavailable, match=f"'{queue.exchange}'"):
        transport.declare(queue).result(WAIT_S)
    assert transport.declare_exchange(topology.upload_exchange("p1")).result(WAIT_S) == 0
    transport.declare(queue).result(WAIT_S)
    assert outcome(transport.publish(Message(queue.exchange, queue.routing_key, b"chunk", "m1"))) is None
    transport.delete_queue(queue.name).result(WAIT_S)


def test_a_queue_with_other_arguments_holds_a_transport_up_until_it_is_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    queue, states = world.queue(max_length=3), States()
    transport = world.open("one", queue, on_state=states.put)
    world.delete_queue(queue)
    world.open("two", world.queue(max_length=4)).close()
    world.sever("one")
    states.wait_for("disconnected")
    future = transport.publish(world.message("m1"), timeout_s=WAIT_S)
    await_line(caplog, "queue_conflict")
    assert not future.done()
    world.delete_queue(queue)
    states.wait_for("connected")
    future.result(WAIT_S)


def test_a_queue_that_is_made_anew_with_other_arguments_under_its_consumer_comes_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything else goes on meanwhile, over the same connection."""
    queue, other, states = world.queue("q", max_length=3), world.queue("other"), States()
    transport = world.open("one", queue, other, on_state=states.put)
    received, others = world.consume(transport, queue), world.consume(transport, other)
    world.publish(transport, "before")
    transport.ack(received.next())
    world.replace_queue(world.queue("q", max_length=4))
    await_line(caplog, "queue_conflict")
    world.publish(transport, "elsewhere", key="other")
    assert others.next().message_id == "elsewhere"
    world.delete_queue(queue)
    ask_until(lambda: outcome(transport.publish(world.message("after"))), lambda found: found is None)
    assert received.next().message_id == "after"
    assert "disconnected" not in [states.get_nowait().name for _ in range(states.qsize())]


def test_a_patient_transport_waits_out_a_conflict_at_its_first_start(
    world: World, topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = world.make_transport("coordinator")
    coordinator.open(topology.exchanges, topology.shared_queues, timeout_s=WAIT_S)
    own = topology.participant("p1")
    coordinator.declare(Topology(world.prefix, participant_queues="quorum").participant("p1")).result(WAIT_S)
    coordinator.forget_queue(own.name)
    opened = open_meanwhile(world.make_transport("participant"), topology, "p1", States())
    await_line(caplog, "queue_conflict")
    assert not opened.done()
    coordinator.delete_queue(own.name).result(WAIT_S)
    opened.result(WAIT_S)
    clear(world, topology, "p1")


def test_an_upload_s_exchange_that_is_gone_does_not_hold_the_participant_up(world: World, topology: Topology) -> None:
    """Only when the participant is heard again does the coordinator make it."""
    coordinator = world.make_transport("coordinator")
    coordinator.open(topology.exchanges, topology.shared_queues, timeout_s=WAIT_S)
    coordinator.declare_exchange(topology.upload_exchange("p1")).result(WAIT_S)
    states = States()
    participant = world.make_transport("participant")
    open_meanwhile(participant, topology, "p1", states).result(WAIT_S)
    states.wait_for("connected")
    queue = topology.upload("p1", "0" * 32)
    participant.declare(queue).result(WAIT_S)
    world.delete_exchange(Exchange(queue.exchange))
    world.sever("participant")
    states.wait_for("connected")
    assert outcome(participant.publish(Message(queue.exchange, queue.routing_key, b"chunk", "m1"))) is Unroutable
    assert outcome(participant.publish(Message(topology.control.exchange, "control", b"hello", "m2"))) is None
    participant.delete_queue(queue.name).result(WAIT_S)
    clear(world, topology, "p1")


def test_an_exchange_that_was_deleted_is_there_again_with_its_binding(
    world: World, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("amqp.keeper", "embedded.transport"):
        monkeypatch.setattr(f"fedmq.broker_config.{module}.KEEP_S", 0.3)
    coordinator = world.make_transport("coordinator")
    coordinator.open(topology.exchanges, topology.shared_queues, timeout_s=WAIT_S)
    participant = world.make_transport("participant")
    participant.open(topology.seen_exchanges, topology.seen_queues, timeout_s=WAIT_S)

    def sent() -> type[BaseException] | None:
        return outcome(participant.publish(Message(topology.updates.exchange, "update", b"update", uuid.uuid4().hex)))

    assert sent() is None
    world.delete_exchange(topology.updates_exchange)
    assert sent() is Unroutable
    assert ask_until(sent, lambda error: error is None) is None
    world.delete_queue(topology.dead)  # nobody consumes it, so nobody is told
    copy = Message(topology.dead.exchange, "dead", b"bad", "m1")
    assert ask_until(lambda: outcome(participant.publish(copy)), lambda error: error is None) is None
    clear(world, topology, "p1")
