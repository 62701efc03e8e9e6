"""Updates in chunks: the choice of the payload to fetch, its time, and the end of a broken one.

RAM holds a model's parameters, the aggregation state and one payload at a time. A payload is fetched only if no task
that waits to be sent keeps an older version (but for alarms, see `Loop`). It is let go before a new version is made.

Nothing here enters the loop. Each call returns the events and the orders that it leads to, for the loop to carry out
in their order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fedmq.broker_config.chunks.receiver import ChunkArrived
from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Transport
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import Carried, DeliveryHandle, PoisonArrived, UpdateArrived
from fedmq.coordinator.service.incoming.intake import Intake
from fedmq.coordinator.service.incoming.payloads import Broken, Manifest, Whole
from fedmq.coordinator.service.incoming.update_reader import NO_PAYLOAD, Wires, decoded
from fedmq.coordinator.service.outgoing.frozen import FrozenTasks
from fedmq.schemas.codec import Limits, open_envelope
from fedmq.schemas.errors import MalformedMessage, PeerError
from fedmq.schemas.messages import Update


@dataclass(frozen=True, slots=True)
class PayloadDropped:
    """News for the inbox: a broken payload's queue is deleted, and its participant may begin again."""

    update_id: str
    detail: str


ChunkNews = ChunkArrived | PayloadDropped
"""News that the loop hands to `ChunkedUpdates.on_news`."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Order: ack this manifest, because the broker keeps a later copy, which is not acked before its commit."""

    handle: DeliveryHandle


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Order: settle this manifest, and have its participant send the update once more."""

    handle: DeliveryHandle
    update: Update
    detail: str


@dataclass(frozen=True, slots=True)
class DeletePayload:
    """Order: delete the queue of the update's chunks after the next commit."""

    update: Update


Outcome = UpdateArrived | PoisonArrived | Superseded | SendAgain | DeletePayload


class ChunkedUpdates:
    """Leads each update in chunks to its event. The loop's thread calls everything."""

    def __init__(
        self,
        intake: Intake,
        core: Core,
        transport: Transport,
        limits: Limits,
        *,
        put: Callable[[PayloadDropped], None],
        owned: bool,
        wires: Wires | None = None,
        frozen: FrozenTasks | None = None,
    ) -> None:
        """`limits` are a whole payload's. `put` adds to the inbox, from any thread. `owned`: the core may let a
        payload's memory go (UpdateArrived). `wires` decode the run's codec; None if it has none.
        `frozen` cuts what an older fedmq sends of the model's frozen part."""
        self._intake = intake
        self._core = core
        self._transport = transport
        self._limits = limits
        self._put = put
        self._owned = owned
        self._wires = wires
        self._frozen = frozen
        self._dropping: dict[str, Manifest] = {}
        """Manifests of broken payloads whose queues are not deleted yet, by update_id."""
        self._has_room = True

    @property
    def idle(self) -> bool:
        """True if there is no payload to be fetched."""
        return self._intake.idle

    def on_manifest(self, arrived: UpdateArrived) -> Sequence[Outcome]:
        """Take a manifest on. The update's event follows at once if its payload is not wanted, and later if it is."""
        handle, update = arrived.delivery, arrived.update
        assert update.chunks is not None
        if not self._core.awaits(update):
            return [self._without_payload(handle, update)]
        try:
            self._intake.check(update.chunks)
        except PeerError as error:
            return self._poison(handle, update, error)
        # So a participant has no more manifests waiting than open tasks: one, and the few lapsed ones.
        over = [one for one in self._intake.waiting_of(update.participant_id) if not self._core.awaits(one.update)]
        for manifest in over:
            self._intake.withdraw(manifest)
        ended = [self._without_payload(manifest.handle, manifest.update) for manifest in over]
        former: DeliveryHandle | None
        taken = Manifest(handle, update, update.chunks, 0 if arrived.carried is None else arrived.carried.wire_bytes)
        if update.update_id in self._dropping:
            former = self._dropping[update.update_id].handle
            self._dropping[update.update_id] = taken
        else:
            former = self._intake.offer(taken)
        return ended if former is None else [*ended, Superseded(former)]

    def work(self, now: float, has_room: bool) -> Sequence[Outcome] | None:
        """Fetch the next payload if RAM has room for it. Return None if there was nothing to do."""
        self._has_room = has_room
        reading = self._intake.reading
        if reading is not None and not self._core.awaits(reading.update):
            self._intake.abandon()
            return [self._without_payload(reading.handle, reading.update)]
        if outcomes := self._on_broken(self._intake.tick(now)):
            return outcomes
        manifest = self._intake.next(now) if has_room else None
        if manifest is None:
            return None
        if not self._core.awaits(manifest.update):
            return [self._without_payload(manifest.handle, manifest.update)]
        return self._on_broken(self._intake.begin(manifest, now))

    def on_news(self, news: ChunkNews, now: float) -> Sequence[Outcome]:
        """Take in a chunk, or the news that a broken payload's queue is deleted."""
        if isinstance(news, PayloadDropped):
            manifest = self._dropping.pop(news.update_id, None)
            if manifest is None:  # the connection was lost: the manifest comes again
                return []
            return [SendAgain(manifest.handle, manifest.update, news.detail)]
        fault("chunk-arrived")
        outcome = self._intake.on_chunk(news, now)
        return self._on_whole(outcome) if isinstance(outcome, Whole) else self._on_broken(outcome)

    def due_s(self) -> float:
        """Run time at which `work` has something to look at although nothing came."""
        return self._intake.due_s(self._has_room)

    def clear(self) -> list[DeliveryHandle]:
        """Give up all manifests that are not at their end. Return their handles, in their order."""
        left = [*self._dropping.values(), *self._intake.clear()]
        self._dropping.clear()
        return [manifest.handle for manifest in left]

    def _on_whole(self, whole: Whole) -> Sequence[Outcome]:
        manifest = whole.manifest
        handle, update = manifest.handle, manifest.update
        fault("payload-whole")
        self._intake.forget(update.update_id)
        try:
            envelope = open_envelope(whole.take_body(), self._limits)
            if envelope.message != update.model_copy(update={"chunks": None}):
                raise MalformedMessage("the chunks are of another update than their manifest")
            tensors = envelope.parameters(check_finite=False)
            payload = decoded(update, tensors, self._wires, self._frozen) or NO_PAYLOAD
        except PeerError as error:
            return self._poison(handle, update, error)
        carried = Carried(manifest.num_bytes + manifest.chunks.num_bytes, payload.num_bytes)
        return [UpdateArrived(handle, update, payload, owned=self._owned, carried=carried)]

    def _poison(self, handle: DeliveryHandle, update: Update, error: PeerError) -> Sequence[Outcome]:
        poison = PoisonArrived(handle, error.reason, str(error), update.task_id)  # type: ignore[arg-type]
        return [DeletePayload(update), poison]

    def _without_payload(self, handle: DeliveryHandle, update: Update) -> UpdateArrived:
        self._intake.forget(update.update_id)
        return UpdateArrived(handle, update, NO_PAYLOAD)

    def _on_broken(self, broken: Broken | None) -> Sequence[Outcome]:
        if broken is None:
            return []
        update, handle = broken.manifest.update, broken.manifest.handle
        queue = self._intake.queue_of(update.run_id, update.task_id, update.participant_id)
        deleted = self._transport.delete_queue(queue)
        if broken.final:
            self._intake.forget(update.update_id)
            return [PoisonArrived(handle, "malformed", broken.detail, update.task_id)]

        self._dropping[update.update_id] = broken.manifest

        def dropped(done: Future[Any]) -> None:
            with contextlib.suppress(Exception):
                done.result()  # if it could not be deleted, the next try finds the same, and counts
            self._put(PayloadDropped(update.update_id, broken.detail))

        deleted.add_done_callback(dropped)
        return []
