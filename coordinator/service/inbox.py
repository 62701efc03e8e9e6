"""The coordinator's two queues: consuming them, and what has come from them and is not worked on yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Transport


class Deliveries:
    """`put` takes each one, on the transport's thread, and hands it to `add` on the loop's, where all else is used."""

    def __init__(self, transport: Transport, topology: Topology, put: Callable[[Delivery], None]) -> None:
        self._transport = transport
        self._updates_queue, self._control_queue = topology.updates.name, topology.control.name
        self._put = put
        self.consuming = False
        self.updates: deque[Delivery] = deque()
        self.control: deque[Delivery] = deque()
        """Hellos and declines."""

    def start(self, updates_window: int, control_window: int) -> None:
        """Consume, with so many deliveries unsettled."""
        self._transport.consume(self._control_queue, self._put, control_window)
        self._transport.consume(self._updates_queue, self._put, updates_window)
        self.consuming = True

    def stop(self) -> None:
        """What was not worked on comes again, to whoever consumes next: keep no second copy of it."""
        self._transport.stop_consuming(self._control_queue)
        self._transport.stop_consuming(self._updates_queue)
        self.consuming = False
        for delivery in (*self.updates, *self.control):
            self._transport.nack(delivery)
        self.updates.clear()
        self.control.clear()

    def add(self, delivery: Delivery) -> None:
        (self.updates if delivery.queue == self._updates_queue else self.control).append(delivery)

    def updates_ready(self) -> int:
        """How many the broker holds. Raises BrokerError where it does not say."""
        return self._transport.depth(self._updates_queue)
