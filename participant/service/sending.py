"""Publish messages to the coordinator's queues, and put the broker's answers into the service's inbox."""

from __future__ import annotations

import uuid
from concurrent.futures import Future

from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Queue
from fedmq.broker_config.transport import Message
from fedmq.participant.decisions import events as ev
from fedmq.participant.service.context import ServiceContext
from fedmq.schemas.codec import encode
from fedmq.schemas.errors import BrokerUnavailable, Unroutable
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import SCHEMA_VERSION, Decline, Hello

log = EventLog(__name__)


def publish_control(context: ServiceContext, message: Hello | Decline) -> Future[None]:
    """Publish a message to the control queue."""
    task_id = message.task_id if isinstance(message, Decline) else None
    queue, message_id = context.topology.control, uuid.uuid4().hex
    return publish(context, queue, encode(message), kind=message.kind, message_id=message_id, task_id=task_id)


def publish_update(context: ServiceContext, update_id: str, task_id: str, body: bytes, *, kept: bool) -> None:
    """Publish an update or its manifest, then put PublishConfirmed or PublishFailed.

    `kept` means that the update stays in the outbox until its receipt, because it travels in chunks.
    """

    def answered(done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            fault("update-confirmed")
            context.put(ev.PublishConfirmed(update_id, kept))
        else:
            context.put(publish_failed(update_id, error))

    sent = publish(context, context.topology.updates, body, kind="update", message_id=update_id, task_id=task_id)
    sent.add_done_callback(answered)
    fault("update-sent")
    log.info("update_sent", participant=context.participant_id, task=task_id, bytes=len(body))


def publish_failed(update_id: str, error: BaseException) -> ev.PublishFailed:
    """Return the event that tells the agent why an update was not published."""
    nowhere = isinstance(error, Unroutable | BrokerUnavailable)
    return ev.PublishFailed(update_id, f"{type(error).__name__}: {error}", nowhere)


def publish(
    context: ServiceContext, queue: Queue, body: bytes, *, kind: str, message_id: str, task_id: str | None
) -> Future[None]:
    """Publish a message body. The future ends with the broker's confirm."""
    message = Message(
        exchange=queue.exchange,
        routing_key=queue.routing_key,
        body=body,
        message_id=message_id,
        correlation_id=task_id,
        headers={"schema_version": SCHEMA_VERSION, "kind": kind},
    )
    return context.transport.publish(message, context.publish_timeout_s)
