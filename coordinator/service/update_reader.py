"""The updates queue's messages, as events of the core."""

from __future__ import annotations

from collections.abc import Callable

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ClosedTask, DeliveryHandle, PoisonArrived, UpdateArrived
from fedmq.coordinator.service.chunked_updates import ChunkedUpdates
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters

_NOTHING = Parameters({})


class UpdateReader:
    """Used from the loop's thread. `closed_task` says what became of one that the core no longer holds."""

    def __init__(
        self, core: Core, chunked: ChunkedUpdates, limits: Limits, closed_task: Callable[[str], ClosedTask | None]
    ) -> None:
        self._core = core
        self._chunked = chunked
        self._limits = limits
        self._closed_task = closed_task

    def read(self, handle: DeliveryHandle, delivery: Delivery) -> UpdateArrived | PoisonArrived | None:
        """None where the payload comes in chunks, and is fetched first."""
        try:
            decoded = decode(delivery.body, self._limits)
        except PeerError as error:
            return self._unreadable(handle, delivery, error.reason, str(error))
        update = decoded.message
        if not isinstance(update, Update):
            return self._unreadable(
                handle, delivery, "malformed", f"a message of kind {update.kind} on the updates queue"
            )
        stranger = self._core.stranger(update.participant_id, delivery.user_id)
        if stranger is not None:
            return PoisonArrived(handle, "unknown_participant", stranger)
        if update.chunks is not None:
            return self._chunked.read(handle, update)
        closed = None if self._core.holds(update.task_id) else self._closed_task(update.task_id)
        return UpdateArrived(handle, update, decoded.parameters or _NOTHING, closed)

    def _unreadable(self, handle: DeliveryHandle, delivery: Delivery, reason: str, detail: str) -> PoisonArrived:
        """It closes the task that it names where it is shown to be from the task's participant."""
        task_id = delivery.correlation_id
        if (
            task_id is not None
            and self._core.holds(task_id)
            and not self._core.is_from_owner(task_id, delivery.user_id)
        ):
            detail = f"{detail}; task {task_id} stays open: user {delivery.user_id!r} is not its participant's"
            task_id = None
        return PoisonArrived(handle, reason, detail, task_id)  # type: ignore[arg-type]
