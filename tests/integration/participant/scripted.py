"""A scripted coordinator: it publishes the test's messages and waits for answers, with deadlines."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Message
from fedmq.schemas.codec import Decoded, decode, encode
from fedmq.schemas.messages import (
    RUN_ID_HEADER,
    AnyMessage,
    Decline,
    Hello,
    Notice,
    Receipt,
    Task,
    TrainingConfig,
    Update,
)
from fedmq.schemas.parameters import Parameters

DEADLINE_S = 30.0
BASE = Parameters({"w": np.array([1.0, 2.0], np.float32)})
M = TypeVar("M", Hello, Decline, Update)


class ScriptedCoordinator:
    """A coordinator that holds the messages it received until a test asks for them by kind."""

    def __init__(self, broker: EmbeddedBroker, topology: Topology) -> None:
        self.transport = EmbeddedTransport(broker, "coordinator")
        self.topology = topology
        self._arrived: SimpleQueue[Decoded] = SimpleQueue()
        self._unread: list[Decoded] = []
        self._seen_hello = False
        queues = topology.shared_queues
        exchanges = (*topology.exchanges, topology.upload_exchange("sensor-1"))
        self.transport.open(exchanges, queues, timeout_s=DEADLINE_S)
        for queue in (topology.updates, topology.control):
            self.transport.consume(queue.name, self._on_delivery, prefetch=16)

    def task(self, number: int = 1, participant_id: str = "sensor-1", **changes: Any) -> Task:
        values: dict[str, Any] = {
            "task_id": f"task-{number}", "run_id": "run-1", "participant_id": participant_id, "base_version": 3,
            "reply": "delta", "training": TrainingConfig(), "lease_s": 600.0,
        }  # fmt: skip
        return Task(**values | changes)

    def send(self, message: AnyMessage, parameters: Parameters | None = None, to: str = "sensor-1") -> None:
        self.send_bytes(encode(message, parameters), to)

    def send_bytes(
        self, body: bytes, to: str = "sensor-1", task_id: str | None = None, run_id: str | None = None
    ) -> None:
        queue = self.topology.participant(to)
        headers = {} if run_id is None else {RUN_ID_HEADER: run_id}
        message = Message(queue.exchange, queue.routing_key, body, "m", task_id, headers)
        self.transport.publish(message).result(DEADLINE_S)

    def issue(self, number: int = 1, **changes: Any) -> Task:
        """Send a task to "sensor-1" after its first hello. Before that it may have no queue."""
        if not self._seen_hello:
            self._unread.insert(0, self.wait_for_decoded(Hello))
        task = self.task(number, **changes)
        self.send(task, BASE)
        return task

    def receipt(self, update: Update) -> None:
        self.send(
            Receipt(
                update_id=update.update_id,
                task_id=update.task_id,
                run_id=update.run_id,
                participant_id=update.participant_id,
                verdict="accepted",
            )
        )

    def finish(self) -> None:
        self.send(Notice(run_id="run-1", participant_id="sensor-1", event="run_finished"))

    def wait_for(self, kind: type[M], where: Callable[[M], bool] = lambda _message: True) -> M:
        """Return the first unread message of this kind that fits."""
        return self.wait_for_decoded(kind, where).message  # type: ignore[return-value]

    def wait_for_decoded(self, kind: type[M], where: Callable[[M], bool] = lambda _message: True) -> Decoded:
        while True:
            for index, decoded in enumerate(self._unread):
                if isinstance(decoded.message, kind) and where(decoded.message):
                    self._seen_hello = self._seen_hello or kind is Hello
                    del self._unread[index]
                    return decoded
            try:
                self._unread.append(self._arrived.get(timeout=DEADLINE_S))
            except Empty:
                seen = [d.message.kind for d in self._unread]
                raise AssertionError(f"no fitting {kind.__name__} within {DEADLINE_S} s; unread: {seen}") from None

    def _on_delivery(self, delivery: Delivery) -> None:
        self._arrived.put(decode(delivery.body))
        self.transport.ack(delivery)
