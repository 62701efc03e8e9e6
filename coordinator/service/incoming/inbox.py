"""The coordinator's one inbox: everything that happens to it arrives here, from any thread.

Deliveries of the two queues that it consumes, updates and control, wait here in their order until the loop has time
for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Transport, TransportState
from fedmq.schemas.errors import TransportClosed


class Inbox:
    """One transport's inbox. `put` and `on_state` may be called from any thread; the loop's thread calls all else."""

    def __init__(self, transport: Transport, topology: Topology) -> None:
        self.consuming = False
        self.updates: deque[Delivery] = deque()
        """Deliveries of the updates queue that the loop has not looked at yet."""
        self.control: deque[Delivery] = deque()
        """Deliveries of the control queue, hellos and declines, that the loop has not looked at yet."""
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._transport = transport
        self._updates_queue, self._control_queue = topology.updates.name, topology.control.name
        self._most_bytes: dict[str, int] = {}

    def bound(self, update_bytes: int, control_bytes: int) -> None:
        """Keep no more of a delivery than these bytes and one more, which shows that it is too large. Without this a
        window of large messages from anybody who may send could fill the RAM."""
        self._most_bytes = {self._updates_queue: update_bytes, self._control_queue: control_bytes}

    def put(self, item: Any) -> None:
        """Add an item: a delivery, or news of the transport, of an evaluation or of a publish."""
        self._items.put(item)

    def put_delivery(self, delivery: Delivery) -> None:
        """Add a delivery of one of the two queues, cut if it is too large."""
        most = self._most_bytes.get(delivery.queue)
        if most is not None and len(delivery.body) > most:
            delivery = replace(delivery, body=bytes(delivery.body[: most + 1]))
        self.put(delivery)

    def on_state(self, state: TransportState) -> None:
        """Add news of the transport. Once the connection is lost this coordinator may not lead any more, so nothing is
        consumed over the next one until the loop says so."""
        if state.name == "disconnected":
            with suppress(TransportClosed):  # it is being closed: nothing is consumed any more
                self._transport.stop_consuming(self._control_queue)
                self._transport.stop_consuming(self._updates_queue)
        self.put(state)

    def arrived(self) -> Iterator[Any]:
        """Yield the items that are here. Never blocks. Those that come meanwhile wait: there may be no end of them."""
        for _ in range(self._items.qsize()):
            yield self._items.get()

    def wait(self, timeout_s: float) -> Any | None:
        """Return the next item; None if none comes within `timeout_s`."""
        try:
            return self._items.get(timeout=timeout_s)
        except Empty:
            return None

    def consume(self, updates_window: int, control_window: int) -> None:
        """Consume both queues, each with so many deliveries unsettled."""
        self._transport.consume(self._control_queue, self.put_delivery, control_window)
        self._transport.consume(self._updates_queue, self.put_delivery, updates_window)
        self.consuming = True

    def stop_consuming(self) -> None:
        """Consume no more, and give the waiting deliveries back: the next consumer gets them again."""
        self._transport.stop_consuming(self._control_queue)
        self._transport.stop_consuming(self._updates_queue)
        self.consuming = False
        for delivery in (*self.updates, *self.control):
            self._transport.nack(delivery)
        self.updates.clear()
        self.control.clear()

    def is_control(self, delivery: Delivery) -> bool:
        """Return True for a hello or a decline."""
        return delivery.queue == self._control_queue

    def add(self, delivery: Delivery) -> None:
        """Let a delivery of one of the two queues wait for the loop."""
        (self.updates if delivery.queue == self._updates_queue else self.control).append(delivery)

    def nothing_to_come(self) -> bool:
        """True if no update is ready in the queue and nothing is here. Raises BrokerError if the broker gives no
        number."""
        return self._transport.depth(self._updates_queue) == 0 and self._items.empty()
