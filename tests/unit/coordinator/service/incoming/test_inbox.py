"""The inbox: everything arrives in it, and deliveries wait in their order."""

from __future__ import annotations

from dataclasses import replace

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, TransportState
from fedmq.coordinator.service.incoming.inbox import Inbox
from fedmq.schemas.errors import TransportClosed

TOPOLOGY = Topology()


def delivery(name: str, queue: str = TOPOLOGY.updates.name) -> Delivery:
    return Delivery(queue, b"", name, None, None, {}, False, 0, name)


class Wire:
    """A stand-in for a transport: it notes consumed queues and the deliveries that were given back."""

    def __init__(self) -> None:
        self.consumed: list[tuple[str, int]] = []
        self.given_back: list[object] = []

    def consume(self, queue: str, _put: object, window: int) -> None:
        self.consumed.append((queue, window))

    def stop_consuming(self, queue: str) -> None:
        self.consumed = [one for one in self.consumed if one[0] != queue]

    def nack(self, one: Delivery) -> None:
        self.given_back.append(one.token)


def test_the_inbox_hands_out_all_that_arrives_and_keeps_deliveries_in_order() -> None:
    wire = Wire()
    inbox = Inbox(wire, TOPOLOGY)  # type: ignore[arg-type]
    inbox.consume(8, 4)
    assert wire.consumed == [(TOPOLOGY.control.name, 4), (TOPOLOGY.updates.name, 8)]
    for item in ("first", "second"):
        inbox.put(item)
    assert list(inbox.arrived()) == ["first", "second"]
    assert inbox.wait(0.0) is None
    for one in (delivery("a"), delivery("h", TOPOLOGY.control.name), delivery("b")):
        inbox.add(one)
    assert [one.token for one in inbox.updates] == ["a", "b"]
    assert [one.token for one in inbox.control] == ["h"]
    inbox.stop_consuming()
    assert (wire.given_back, wire.consumed, inbox.consuming) == (["a", "b", "h"], [], False)
    assert not inbox.updates
    assert not inbox.control


def test_a_lost_connection_ends_the_consuming_before_the_loop_hears_of_it() -> None:
    wire = Wire()
    inbox = Inbox(wire, TOPOLOGY)  # type: ignore[arg-type]
    inbox.consume(8, 4)
    lost = TransportState("disconnected", "gone")
    inbox.on_state(lost)
    assert wire.consumed == []
    assert list(inbox.arrived()) == [lost]


def test_a_connection_that_is_lost_while_the_transport_closes_is_still_news_and_no_error() -> None:
    class Closed(Wire):
        def stop_consuming(self, queue: str) -> None:
            raise TransportClosed("nothing goes after close()")

    inbox = Inbox(Closed(), TOPOLOGY)  # type: ignore[arg-type]
    lost = TransportState("disconnected", "gone")
    inbox.on_state(lost)
    assert list(inbox.arrived()) == [lost]


def test_what_is_too_large_is_cut_to_one_byte_more_than_its_queue_allows() -> None:
    inbox = Inbox(Wire(), TOPOLOGY)  # type: ignore[arg-type]
    inbox.bound(update_bytes=10, control_bytes=4)
    for queue, size in ((TOPOLOGY.updates.name, 10), (TOPOLOGY.updates.name, 11), (TOPOLOGY.updates.name, 2**20),
                        (TOPOLOGY.control.name, 4), (TOPOLOGY.control.name, 9)):  # fmt: skip
        inbox.put_delivery(replace(delivery("a", queue), body=bytes(size)))
    assert [len(one.body) for one in inbox.arrived()] == [10, 11, 11, 4, 5]
