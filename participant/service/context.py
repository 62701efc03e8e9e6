"""The identity, the connections and the limits that every part of the participant's service works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedmq.broker_config.topology import Queue, Topology
from fedmq.broker_config.transport import Transport
from fedmq.participant.spool.spool import Spool
from fedmq.schemas.codec import Limits
from fedmq.schemas.messages import Task
from fedmq.schemas.signing import Verify


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """One participant's context. Only the service's thread uses the spool."""

    participant_id: str
    transport: Transport
    topology: Topology
    spool: Spool
    limits: Limits
    """Limits of a single message."""
    payload_limits: Limits
    """Limits of a payload that travels in chunks."""
    chunk_bytes: int
    publish_timeout_s: float
    put: Callable[[Any], None]
    """Hand an item to the service's inbox. Any thread may call it, and it does not block."""
    coordinator_user: str | None = None
    """The only user whose chunks are taken; None takes anybody's."""
    verify: Verify | None = None
    """The check of tasks' signatures; None takes tasks without one."""

    def upload_queue(self, update_id: str) -> Queue:
        """Return the queue for the chunks of one of this participant's updates."""
        return self.topology.upload(self.participant_id, update_id)

    def download_queue(self, payload_id: str) -> Queue:
        """Return the queue with the chunks of a task for this participant."""
        return self.topology.download(self.participant_id, payload_id)

    def payload_queue(self, task: Task) -> str:
        """Return the name of the queue, or of the stream, with the chunks of a task that has some."""
        assert task.chunks is not None
        if task.reference is not None:
            return self.topology.models_name
        return self.download_queue(task.chunks.payload_id).name
