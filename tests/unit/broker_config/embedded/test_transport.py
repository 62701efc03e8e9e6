"""Features of the embedded broker alone: its own clock, faults by name, no copies. tests/contract has the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Queue as Results
from queue import SimpleQueue
from typing import Any, cast

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import Delivery, Message, TransportState
from fedmq.schemas.errors import BrokerUnavailable, PublishTimeout, TopologyConflict, TransportClosed

X, DLX = Exchange("x"), Exchange("dlx")
WAIT_S = 20.0
Open = Callable[..., EmbeddedTransport]


class Clock:
    """A clock that stands still until a test moves it."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> EmbeddedBroker:
    return EmbeddedBroker(clock)


@pytest.fixture
def opened(broker: EmbeddedBroker) -> Iterator[Open]:
    transports = []

    def open_one(name: str, *queues: Queue, on_state: Callable[[TransportState], None] | None = None) -> Any:
        transports.append(EmbeddedTransport(broker, name))
        transports[-1].open([X, DLX], queues, on_state)
        return transports[-1]

    yield open_one
    for transport in transports:
        transport.close()


def queue(name: str = "q", **limits: Any) -> Queue:
    return Queue(name, "classic", "x", name, **limits)


def message(name: str, key: str = "q", body: bytes = b"") -> Message:
    return Message("x", key, body, name)


def test_time_passes_when_the_test_says_so(broker: EmbeddedBroker, clock: Clock, opened: Open) -> None:
    dead: Results[Delivery] = Results()
    buried = Queue("dead", "classic", "dlx", "dead")
    transport = opened(
        "one", buried, queue(message_ttl_s=60.0, dead_letter_exchange="dlx", dead_letter_routing_key="dead")
    )
    transport.consume("dead", dead.put, 10)
    transport.publish(message("m1")).result(WAIT_S)
    clock.now_s += 59.0
    broker.run_due()
    assert transport.depth("q") == 1
    clock.now_s += 1.0
    broker.run_due()
    assert dead.get(timeout=WAIT_S).message_id == "m1"
    assert transport.depth("q") == 0


def test_a_queue_that_expired_takes_its_bindings_along(broker: EmbeddedBroker, clock: Clock, opened: Open) -> None:
    opened("one", queue("q", expires_s=10.0), queue("kept"))
    clock.now_s += 10.0
    broker.run_due()
    assert broker.queue_names == ("kept",)


def test_a_publish_deadline_follows_the_broker_s_clock(broker: EmbeddedBroker, clock: Clock, opened: Open) -> None:
    transport = opened("one", queue())
    broker.pause()
    future = transport.publish(message("m1"), timeout_s=30.0)
    clock.now_s += 30.0
    broker.run_due()
    assert isinstance(future.exception(WAIT_S), PublishTimeout)


def test_a_queue_s_own_time_starts_anew_when_the_broker_is_back(
    broker: EmbeddedBroker, clock: Clock, opened: Open
) -> None:
    opened("one", queue(expires_s=10.0))
    broker.pause()
    clock.now_s += 100.0
    broker.resume()
    assert broker.queue_names == ("q",)


def test_connections_are_dropped_by_name_and_counted(broker: EmbeddedBroker, opened: Open) -> None:
    states: Results[tuple[str, str]] = Results()
    for name in ("one", "two"):
        opened(name, queue(), on_state=lambda state, name=name: states.put((name, state.name)))
    assert {states.get(timeout=WAIT_S) for _ in range(2)} == {("one", "connected"), ("two", "connected")}
    assert broker.drop_connections("two") == 1
    assert [states.get(timeout=WAIT_S) for _ in range(2)] == [("two", "disconnected"), ("two", "connected")]
    assert broker.drop_connections("three") == 0
    assert broker.drop_connections() == 2


def test_all_connections_go_at_once_so_that_a_delivery_is_counted_once(broker: EmbeddedBroker, opened: Open) -> None:
    deliveries: Results[Delivery] = Results()
    counting = Queue("q", "quorum", "x", "q")
    for name in ("one", "two", "three"):
        opened(name, counting).consume("q", deliveries.put, 10)
    opened("publisher").publish(message("m1")).result(WAIT_S)
    deliveries.get(timeout=WAIT_S)
    broker.drop_connections()
    again = deliveries.get(timeout=WAIT_S)
    assert (again.message_id, again.delivery_count) == ("m1", 1)


def test_a_body_is_handed_over_without_a_copy(opened: Open) -> None:
    deliveries: Results[Delivery] = Results()
    transport = opened("one", queue())
    body = bytes(1_000_000)
    transport.consume("q", deliveries.put, 10)
    transport.publish(message("m1", body=body))
    assert deliveries.get(timeout=WAIT_S).body is body


def test_a_body_that_may_change_is_copied(opened: Open) -> None:
    transport = opened("one", queue())
    body = bytearray(b"before")
    transport.publish(message("m1", body=cast(bytes, body))).result(WAIT_S)
    body[:] = b"after!"
    deliveries: Results[Delivery] = Results()
    transport.consume("q", deliveries.put, 10)
    assert deliveries.get(timeout=WAIT_S).body == b"before"


def test_the_conflict_names_queue_argument_and_both_values(broker: EmbeddedBroker, opened: Open) -> None:
    opened("one", queue(max_length=3))
    other = EmbeddedTransport(broker, "two")
    with pytest.raises(TopologyConflict, match=r"'q' exists with x-max-length = 3, expected 4"):
        other.open([X], [queue(max_length=4)], timeout_s=WAIT_S)
    with pytest.raises(TransportClosed):
        other.open([X], [queue(max_length=3)])


def test_a_queue_needs_its_exchange(broker: EmbeddedBroker) -> None:
    transport = EmbeddedTransport(broker)
    transport.open([], [])
    with pytest.raises(BrokerUnavailable, match=r"not made exchange 'x', to which queue 'q' is bound, yet"):
        transport.declare(queue()).result(WAIT_S)


def test_a_message_reaches_every_queue_that_is_bound_for_its_key(opened: Open) -> None:
    transport = opened("one", Queue("a", "classic", "x", "k"), Queue("b", "classic", "x", "k"))
    transport.publish(message("m1", key="k")).result(WAIT_S)
    assert [transport.depth("a"), transport.depth("b")] == [1, 1]


def test_the_default_exchange_knows_queues_by_name(opened: Open) -> None:
    transport = opened("one", queue())
    transport.publish(Message("", "q", b"", "m1")).result(WAIT_S)
    assert transport.depth("q") == 1


def test_unsettled_deliveries_are_counted(broker: EmbeddedBroker, opened: Open) -> None:
    deliveries: Results[Delivery] = Results()
    transport = opened("one", queue())
    transport.consume("q", deliveries.put, 10)
    transport.publish(message("m1")).result(WAIT_S)
    delivery = deliveries.get(timeout=WAIT_S)
    assert broker.unsettled("q") == 1
    assert transport.ack(delivery)
    assert broker.unsettled("q") == 0


def test_a_cancelled_publish_is_not_sent(broker: EmbeddedBroker, opened: Open) -> None:
    transport = opened("one", queue())
    entered, leave = threading.Event(), threading.Event()

    def hold_the_dispatcher(_: Future[None]) -> None:
        entered.set()
        leave.wait(WAIT_S)

    transport.publish(message("first")).add_done_callback(hold_the_dispatcher)
    assert entered.wait(WAIT_S)
    cancelled, last = transport.publish(message("cancelled")), transport.publish(message("last"))
    assert cancelled.cancel()
    leave.set()
    last.result(WAIT_S)
    assert transport.depth("q") == 2


def test_deliveries_of_a_connection_that_broke_meanwhile_are_not_handed_over(
    broker: EmbeddedBroker, opened: Open
) -> None:
    deliveries: Results[Delivery] = Results()
    leave = threading.Event()

    def slow(delivery: Delivery) -> None:
        deliveries.put(delivery)
        leave.wait(WAIT_S)

    opened("one", queue()).consume("q", slow, 2)
    publisher = opened("publisher")
    for name in ("m1", "m2"):
        publisher.publish(message(name)).result(WAIT_S)
    taken = [deliveries.get(timeout=WAIT_S)]  # m2 waits behind m1 in the transport's inbox
    assert broker.drop_connections("one") == 1
    leave.set()
    taken += [deliveries.get(timeout=WAIT_S) for _ in range(2)]
    assert [(delivery.message_id, delivery.redelivered) for delivery in taken] == [
        ("m1", False),
        ("m1", True),
        ("m2", True),
    ]


def test_messages_expire_on_time_after_the_oldest_connection_left() -> None:
    broker = EmbeddedBroker()
    first, second = EmbeddedTransport(broker), EmbeddedTransport(broker)
    dead: Results[Delivery] = Results()
    short = queue(message_ttl_s=0.3, dead_letter_exchange="dlx", dead_letter_routing_key="dead")
    for transport in (first, second):
        transport.open([X, DLX], [Queue("dead", "classic", "dlx", "dead"), short])
    second.consume("dead", dead.put, 1)
    second.publish(message("m1")).result(WAIT_S)
    first.close()
    assert dead.get(timeout=WAIT_S).message_id == "m1"
    second.close()


def has_begun_to_close(transport: EmbeddedTransport) -> bool:
    try:
        transport.depth("q")
    except TransportClosed:
        return True
    return False


def test_closing_sends_again_what_a_lost_connection_left_unconfirmed(broker: EmbeddedBroker, opened: Open) -> None:
    transport = opened("one", queue())
    broker.withhold_confirms("one")
    future = transport.publish(message("m1"))
    closing = threading.Thread(target=transport.close, args=(600.0,))
    closing.start()
    while not has_begun_to_close(transport):
        assert closing.is_alive()
    assert broker.drop_connections("one") == 1
    closing.join(WAIT_S)
    assert not closing.is_alive()  # it waits no longer than it must
    assert future.exception(0) is None


def test_two_hundred_transports_leave_no_thread_behind(broker: EmbeddedBroker) -> None:
    before = threading.active_count()
    transports = [EmbeddedTransport(broker) for _ in range(200)]
    for transport in transports:
        transport.open([X], [queue()])
    assert threading.active_count() == before + 200
    for transport in transports:
        transport.close()
    assert threading.active_count() == before


def test_callbacks_that_answer_each_other_across_transports_do_not_deadlock(opened: Open) -> None:
    done: Results[str] = Results()
    ends = opened("left", queue("left"), queue("right")), opened("right", queue("left"), queue("right"))

    def volley(me: EmbeddedTransport, other_key: str) -> Callable[[Delivery], None]:
        def on_delivery(delivery: Delivery) -> None:
            count = int(str(delivery.message_id))
            assert me.ack(delivery)
            if count == 2000:
                done.put(other_key)
            else:
                me.publish(message(str(count + 1), key=other_key))

        return on_delivery

    ends[0].consume("left", volley(ends[0], "right"), 1)
    ends[1].consume("right", volley(ends[1], "left"), 1)
    for _ in range(4):
        ends[0].publish(message("1", key="right"))
    assert [done.get(timeout=WAIT_S) for _ in range(4)]


def test_a_consumer_that_is_stopped_before_its_transport_hears_that_the_connection_is_lost(
    broker: EmbeddedBroker,
) -> None:
    inbox: SimpleQueue[Any] = SimpleQueue()
    connection = broker.connect("one", inbox, [X], [Queue("q", "classic", "x", "q")])
    assert connection is not None
    assert broker.consume(connection, "q", lambda _: None, 1)
    assert broker.drop_connections("one") == 1
    broker.cancel(connection, "q")
    assert broker.depth("q") == 0
