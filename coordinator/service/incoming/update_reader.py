"""Reads the messages of the updates queue into events of the core. The sender is judged before a tensor is decoded."""

from __future__ import annotations

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import DeliveryHandle, PoisonArrived, UpdateArrived
from fedmq.coordinator.service.incoming.senders import Senders
from fedmq.schemas.codec import Limits, open_envelope
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters

NO_PAYLOAD = Parameters({})


def read_update(
    core: Core, senders: Senders, limits: Limits, handle: DeliveryHandle, delivery: Delivery
) -> UpdateArrived | PoisonArrived:
    """Return the event of one message. An update in chunks comes without its payload, and so does that of a revoked
    participant, which the core discards."""
    fault = senders.unnamed(delivery.user_id)
    if fault is not None:
        return PoisonArrived(handle, fault.reason, fault.detail)
    try:
        envelope = open_envelope(delivery.body, limits)
    except PeerError as error:
        fault = senders.fault_of_unreadable(delivery.user_id)
        if fault is not None:
            return PoisonArrived(handle, fault.reason, fault.detail)
        return _unreadable(core, handle, delivery, error.reason, str(error))
    update = envelope.message
    fault = senders.fault(update.participant_id, delivery.user_id)
    if fault is not None:
        if fault.reason == "revoked" and isinstance(update, Update) and core.knows(update.participant_id):
            return UpdateArrived(handle, update, NO_PAYLOAD)
        return PoisonArrived(handle, fault.reason, fault.detail)
    if not isinstance(update, Update):
        detail = f"a message of kind {update.kind} on the updates queue"
        return _unreadable(core, handle, delivery, "malformed", detail)
    try:
        parameters = envelope.parameters()
    except PeerError as error:
        return _unreadable(core, handle, delivery, error.reason, str(error))
    return UpdateArrived(handle, update, parameters or NO_PAYLOAD)


def _unreadable(core: Core, handle: DeliveryHandle, delivery: Delivery, reason: str, detail: str) -> PoisonArrived:
    """Return the event, which closes the task that the message names if its sender is shown to be the participant."""
    task_id = delivery.correlation_id
    if task_id is not None and core.holds(task_id) and not core.is_from_owner(task_id, delivery.user_id):
        detail = f"{detail}; task {task_id} stays open: user {delivery.user_id!r} is not its participant's"
        task_id = None
    return PoisonArrived(handle, reason, detail, task_id)  # type: ignore[arg-type]
