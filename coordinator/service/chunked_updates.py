"""What the loop does about updates in chunks: which are fetched at all, when, and what becomes of a broken payload.

Memory: a model's parameters, the aggregation state and one payload are held at a time. A payload is fetched only while
no task that waits to be sent keeps an older version (but for alarms, see `Loop`), and is let go before a new version is
made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fedmq.broker_config.chunks.receiver import ChunkArrived
from fedmq.broker_config.chunks.sender import News
from fedmq.broker_config.faults import fault
from fedmq.broker_config.transport import Transport
from fedmq.coordinator.decisions.core import Core
from fedmq.coordinator.decisions.events import ClosedTask, DeliveryHandle, PoisonArrived, UpdateArrived
from fedmq.coordinator.service.intake import Broken, Intake, Manifest, Whole
from fedmq.schemas.codec import Limits, decode
from fedmq.schemas.errors import MalformedMessage, PeerError
from fedmq.schemas.messages import Update
from fedmq.schemas.parameters import Parameters

_NOTHING = Parameters({})


@dataclass(frozen=True, slots=True)
class PayloadDropped:
    """A broken payload's queue is deleted: its participant may begin again."""

    update_id: str
    detail: str


ChunkNews = News | ChunkArrived | PayloadDropped
"""What of the inbox is for here."""


class ChunkedUpdates:
    """Used from the loop's thread. `step` takes an update to the core; `ask_again` settles a manifest and has its
    participant upload once more; `let_go` acks a manifest of which there is a later copy; `over` has an update's queue
    deleted after the commit; `may_begin` says whether memory has room for a payload."""

    def __init__(
        self,
        intake: Intake,
        core: Core,
        transport: Transport,
        limits: Limits,
        *,
        put: Callable[[PayloadDropped], None],
        step: Callable[[UpdateArrived | PoisonArrived], None],
        ask_again: Callable[[Manifest, str], None],
        let_go: Callable[[DeliveryHandle], None],
        over: Callable[[Update], None],
        may_begin: Callable[[], bool],
        closed_task: Callable[[str], ClosedTask | None],
        owned: bool,
    ) -> None:
        self._intake = intake
        self._core = core
        self._transport = transport
        self._limits = limits
        self._put = put
        self._step = step
        self._ask_again = ask_again
        self._let_go = let_go
        self._over = over
        self._may_begin = may_begin
        self._closed_task = closed_task
        self._owned = owned
        self._dropping: dict[str, Manifest] = {}
        """By update_id: broken, its queue not deleted yet."""

    def read(self, handle: DeliveryHandle, update: Update) -> UpdateArrived | PoisonArrived | None:
        """A manifest came: what to tell the core at once, None where its payload is fetched first."""
        assert update.chunks is not None
        if not self._core.awaits(update):
            return self._without_payload(handle, update)
        try:
            self._intake.check(update.chunks)
        except PeerError as error:
            return self._poison(handle, update, error)
        former: DeliveryHandle | None
        if update.update_id in self._dropping:
            former = self._dropping[update.update_id].handle
            self._dropping[update.update_id] = Manifest(handle, update, update.chunks)
        else:
            former = self._intake.offer(handle, update)
        if former is not None:
            self._let_go(former)
        return None

    def work(self, now: float) -> bool:
        """Begin with the next payload; False where there is none, or no room for it."""
        if self._intake.idle:
            return False
        reading = self._intake.reading
        if reading is not None and not self._core.awaits(reading.update):
            self._intake.abandon()
            self._step(self._without_payload(reading.handle, reading.update))
            return True
        self._broken(self._intake.tick(now))
        if not self._may_begin():
            return False
        manifest = self._intake.next()
        if manifest is None:
            return False
        if self._core.awaits(manifest.update):
            self._broken(self._intake.begin(manifest, now))
        else:
            self._step(self._without_payload(manifest.handle, manifest.update))
        return True

    def take(self, news: ChunkNews, now: float) -> None:
        """Something from the inbox."""
        if isinstance(news, News):
            news.sender.take(news)
        elif isinstance(news, PayloadDropped):
            manifest = self._dropping.pop(news.update_id, None)
            if manifest is not None:  # else the connection was lost: the manifest comes again
                self._ask_again(manifest, news.detail)
        else:
            fault("chunk-arrived")
            outcome = self._intake.on_chunk(news, now)
            if isinstance(outcome, Whole):
                self._whole(outcome)
            else:
                self._broken(outcome)

    def due_s(self) -> float:
        """When `work` has something to look at although nothing came."""
        return self._intake.due_s()

    def clear(self) -> list[DeliveryHandle]:
        """Give all manifests up that are not at their end, in their order."""
        left = [*self._dropping.values(), *self._intake.clear()]
        self._dropping.clear()
        return [manifest.handle for manifest in left]

    def _whole(self, whole: Whole) -> None:
        manifest = whole.manifest
        fault("payload-whole")
        self._intake.forget(manifest.update.update_id)
        self._step(self._event(manifest, whole.take_body()))

    def _event(self, manifest: Manifest, body: memoryview) -> UpdateArrived | PoisonArrived:
        update = manifest.update
        try:
            decoded = decode(body, self._limits)
            if decoded.message != update.model_copy(update={"chunks": None}):
                raise MalformedMessage("the chunks are of another update than their manifest")
        except PeerError as error:
            return self._poison(manifest.handle, update, error)
        payload = decoded.parameters or _NOTHING
        return UpdateArrived(manifest.handle, update, payload, owned=self._owned)

    def _poison(self, handle: DeliveryHandle, update: Update, error: PeerError) -> PoisonArrived:
        self._over(update)
        return PoisonArrived(handle, error.reason, str(error), update.task_id)  # type: ignore[arg-type]

    def _without_payload(self, handle: DeliveryHandle, update: Update) -> UpdateArrived:
        self._intake.forget(update.update_id)
        closed = None if self._core.holds(update.task_id) else self._closed_task(update.task_id)
        return UpdateArrived(handle, update, _NOTHING, closed)

    def _broken(self, broken: Broken | None) -> None:
        if broken is None:
            return
        update = broken.manifest.update
        queue = self._intake.queue_of(update.run_id, update.task_id, update.participant_id)
        deleted = self._transport.delete_queue(queue)
        if broken.final:
            self._intake.forget(update.update_id)
            self._step(PoisonArrived(broken.manifest.handle, "malformed", broken.detail, update.task_id))
            return

        self._dropping[update.update_id] = broken.manifest

        def dropped(done: Future[Any]) -> None:
            with contextlib.suppress(Exception):
                done.result()  # where it could not be deleted the next try finds the same, and counts
            self._put(PayloadDropped(update.update_id, broken.detail))

        deleted.add_done_callback(dropped)
