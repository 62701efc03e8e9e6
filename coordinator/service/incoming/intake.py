"""Puts updates that come in chunks together in RAM, one at a time, in the order of their manifests.

Rules
1. Each update has a queue of its own, and only one queue is read at a time. RAM holds one payload, however many
   participants upload at once, and no update waits for room that another one's chunks take.
2. The transport's thread copies a chunk to its place, so that no second copy of the payload gathers in the inbox.
3. Only repeated chunks are acked. Once the payload is whole its chunks go back to their queue, which is deleted after
   the commit that holds the update. A coordinator that crashes before the commit finds all of the chunks there.
4. A payload that its receiver calls lost is broken. Its participant, which keeps the update until the receipt, is asked
   to send it again. The try number `MOST_TRIES` is the last one. Failures within `ONE_TRY_S` are one try, because the
   manifest of a broken payload may come several times before its participant has heard of it.
5. A manifest may come twice. The latest copy stands for all of them: they say the same, and if a consumer was lost only
   the latest one can still be acked.
6. A manifest's claims are compared with the model before anything of that size is allocated.

While others wait that can be read, nobody holds the intake:

7. A participant announces a payload when all of its chunks are in the queue. A payload with fewer is *short*: another
   consumer holds chunks for a while, or they were never sent. It is not begun, and looked at from time to time. If it
   is short for `PATIENCE_S`, it is broken.
8. A payload gives way if its queue is empty and no wanted chunk has come for `GIVE_WAY_S`. It gives way at once if all
   chunks that were in the queue have come and some are still missing. If there were enough chunks in the queue then,
   they were other ones, and the third time breaks the payload.
9. A payload also gives way when its budget is used up: `BUDGET_S`, and the time for its bytes at `SLOW_BYTES_PER_S`.
   Its next budget is twice as long, so it gets through over a link of 128 KiB/s. The sixth budget that is used up
   breaks it, and so does the second one in which nothing came: a participant can consume its own queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from fedmq.broker_config.chunks.receiver import PATIENCE_S, ChunkArrived, ChunkReceiver, Lost
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Transport
from fedmq.coordinator.decisions.events import DeliveryHandle
from fedmq.coordinator.service.incoming.payloads import Broken, History, Manifest, Reading, Whole
from fedmq.schemas.errors import BrokerError, BrokerUnavailable, LimitExceeded, SpecMismatch
from fedmq.schemas.limits import DEFAULT_LIMITS
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import ChunkedPayload, Update, update_id

log = EventLog(__name__)

GIVE_WAY_S = 1.0
BUDGET_S = 10.0
SLOW_BYTES_PER_S = 4 * 1024**2
"""A slow link between the broker and the coordinator."""
MOST_BUDGETS, MOST_IDLE_BUDGETS = 6, 2
"""Budgets of a payload that are used up before it is broken: with some chunks in the last one, and with none."""
MOST_HOLLOW = 3
"""Readings of a payload that had chunks enough in its queue, and not the right ones, before it is broken."""
MOST_TRIES = 3
ONE_TRY_S = 30.0
_ENVELOPE_BYTES = DEFAULT_LIMITS.max_header_bytes + 256
"""The most that an encoded update holds beside its tensors."""
_AMQP_MOST_PREFETCH = 65_535


class Intake:
    """The module docstring has the rules. The loop's thread calls everything; `put` is called from the transport's."""

    def __init__(
        self,
        transport: Transport,
        topology: Topology,
        *,
        put: Callable[[ChunkArrived], None],
        payload_bytes: int,
        least_bytes: int | None = None,
        sender_of: Callable[[str], str | None] = lambda _participant_id: None,
    ) -> None:
        """`payload_bytes`: the length of an update's tensors, plain ones or the longest coded ones. `least_bytes`: the
        length of the shortest coded ones, if the run has a codec. `sender_of` returns the user whose chunks are taken
        for a participant's; None if anybody's are."""
        self._transport = transport
        self._topology = topology
        self._put = put
        self._payload_bytes = payload_bytes
        self._least_bytes = payload_bytes if least_bytes is None else min(least_bytes, payload_bytes)
        self._sender_of = sender_of
        self._waiting: deque[Manifest] = deque()
        self._current: Reading | None = None
        self._histories: dict[str, History] = {}
        """Histories by update_id, of the updates that are not over."""

    def check(self, chunks: ChunkedPayload) -> None:
        """Raise a PeerError unless this can be an update of the model (rule 6)."""
        if chunks.num_bytes > self._payload_bytes + _ENVELOPE_BYTES:
            raise LimitExceeded(
                f"the manifest announces {chunks.num_bytes} bytes, an update of this model has {self._payload_bytes}"
            )
        if chunks.num_bytes < self._least_bytes:
            raise SpecMismatch(
                f"the manifest announces {chunks.num_bytes} bytes, an update of this model has {self._payload_bytes}: "
                "coordinator and participants must build the same model"
            )

    def queue_of(self, run_id: str, task_id: str, participant_id: str) -> str:
        """Return the name of the queue that a task's update is uploaded to."""
        return self._topology.upload(participant_id, update_id(run_id, task_id, participant_id)).name

    def offer(self, manifest: Manifest) -> DeliveryHandle | None:
        """Let this update wait for its turn. Return the earlier copy of its manifest, which is to be acked now
        (rule 5); None if there is none."""
        update, current = manifest.update, self._current
        if current is not None and current.manifest.update.update_id == update.update_id:
            former = current.manifest
            if former.chunks == manifest.chunks:
                current.manifest = manifest
            else:  # it was trained, and uploaded, anew: behind the others, or it could have turn after turn
                self._stop(current)
                self._waiting.append(manifest)
            return former.handle
        for place, waiting in enumerate(self._waiting):
            if waiting.update.update_id == update.update_id:
                self._waiting[place] = manifest
                return waiting.handle
        self._waiting.append(manifest)
        return None

    @property
    def idle(self) -> bool:
        """True if there is no payload to be fetched."""
        return self._current is None and not self._waiting

    @property
    def reading(self) -> Manifest | None:
        """The manifest of the payload that is put together now."""
        return None if self._current is None else self._current.manifest

    def waiting_of(self, participant_id: str) -> list[Manifest]:
        """Return a participant's manifests that wait for their turn."""
        return [manifest for manifest in self._waiting if manifest.update.participant_id == participant_id]

    def withdraw(self, manifest: Manifest) -> None:
        """Take a manifest out of those that wait."""
        self._waiting.remove(manifest)

    def next(self, now: float) -> Manifest | None:
        """Remove and return the next manifest, to be begun or not; None while a payload is put together, or if it is
        not yet time to look at any."""
        if self._current is not None:
            return None
        for manifest in self._waiting:
            if self._look_s(manifest) <= now:
                self._waiting.remove(manifest)
                return manifest
        return None

    def begin(self, manifest: Manifest, now: float) -> Broken | None:
        """Read its queue from now on, or let it wait because it is short. Broken if there is no queue, or if it has
        been short for too long."""
        update, chunks = manifest.update, manifest.chunks
        if self._waiting:
            look = self._look(manifest, now)
            if look == "short":
                self._waiting.append(manifest)
                return None
            if isinstance(look, Broken):
                return look
        history, current = self._history(update), Reading(manifest, self._transport)
        prefetch = min(2 * chunks.count + 16, _AMQP_MOST_PREFETCH)
        current.receiver = ChunkReceiver(
            self._transport,
            self._queue(manifest),
            chunks,
            current,
            put=self._put,
            prefetch=prefetch,
            sender=self._sender_of(update.participant_id),
        )
        lost = current.receiver.begin(now, silent_since_s=history.silent_since_s)
        if isinstance(lost, Lost):
            current.let_go()
            return self._broken(manifest, lost.detail, now)
        current.until_s = now + (BUDGET_S + chunks.num_bytes / SLOW_BYTES_PER_S) * 2**history.budgets
        self._current = current
        log.info(
            "payload_begun", participant=update.participant_id, task=update.task_id, bytes=chunks.num_bytes,
            chunks=chunks.count, waiting=len(self._waiting),
        )  # fmt: skip
        return None

    def on_chunk(self, chunk: ChunkArrived, now: float) -> Whole | Broken | None:
        """Give a chunk to its receiver."""
        current = self._current
        outcome = None if current is None else current.receiver.on_chunk(chunk, now)
        if current is None or outcome is None:
            return None
        if isinstance(outcome, Lost):
            return self._give_up(current, outcome, now)
        return Whole(current.manifest, self._stop(current))

    def due_s(self, has_room: bool = True) -> float:
        """Time at which there is something to look at. `has_room` is False if no payload can be begun now."""
        others_s = min((self._look_s(manifest) for manifest in self._waiting), default=float("inf"))
        current = self._current
        if current is None:
            return others_s if has_room else float("inf")
        receiver = current.receiver
        quiet_s = receiver.heard_s + GIVE_WAY_S
        patience_s = max(quiet_s, receiver.patience_ends_s)
        return min(patience_s, max(others_s, self._gives_way_s(current)))

    def tick(self, now: float) -> Broken | None:
        """Look at the queue if it is time: give the payload up, or let the others go first."""
        current = self._current
        if current is None or now < self.due_s():
            return None
        receiver, history = current.receiver, self._history(current.manifest.update)
        quiet = now >= receiver.heard_s + GIVE_WAY_S
        lost = receiver.look(now) if quiet else None
        if lost is not None:
            return self._give_up(current, lost, now)
        if quiet:
            history.silent_since_s = receiver.silent_since_s
        silent = quiet and receiver.silent_since_s is not None
        if not self._waiting or not (silent or now >= min(current.until_s, self._all_came_s(current))):
            return None
        other = self._other(now)
        if isinstance(other, Broken) or other is None:
            return other
        return self._let_others_go_first(current, history, now)

    def _let_others_go_first(self, current: Reading, history: History, now: float) -> Broken | None:
        receiver, manifest = current.receiver, current.manifest
        detail = "it waits for its chunks"
        if receiver.has_all_that_was_ready:
            if (receiver.ready or 0) >= manifest.chunks.count:
                history.hollow += 1
                if history.hollow >= MOST_HOLLOW:
                    missing = f"{receiver.missing} of {manifest.chunks.count} chunks are missing"
                    detail = f"{missing}, and others are in its queue, {history.hollow} times"
                    return self._give_up(current, Lost(detail), now)
            elif history.silent_since_s is None:
                history.silent_since_s = receiver.heard_s
        elif now >= current.until_s:
            history.budgets += 1
            idle = receiver.missing == manifest.chunks.count
            if history.budgets >= (MOST_IDLE_BUDGETS if idle else MOST_BUDGETS):
                missing = f"{receiver.missing} of {manifest.chunks.count} chunks are missing"
                return self._give_up(current, Lost(f"{missing} after {history.budgets} turns"), now)
            detail = "its time is used up, it gets twice as much"
        self._stop(current)
        self._waiting.append(manifest)
        log.info("payload_gives_way", task=manifest.update.task_id, detail=f"{detail}; others go first")
        return None

    def _gives_way_s(self, current: Reading) -> float:
        """Return the time at which the payload may have to let others go first."""
        quiet_s = current.receiver.heard_s + GIVE_WAY_S
        return min(quiet_s, current.until_s, self._all_came_s(current))

    @staticmethod
    def _all_came_s(current: Reading) -> float:
        return float("-inf") if current.receiver.has_all_that_was_ready else float("inf")

    def _other(self, now: float) -> Manifest | Broken | None:
        """Return the first manifest that can be read now, moved to the front; None if there is none. Broken if one
        that waits is found broken."""
        for manifest in [one for one in self._waiting if self._look_s(one) <= now]:
            look = self._look(manifest, now)
            if look == "short":
                continue
            self._waiting.remove(manifest)
            if isinstance(look, Broken):
                return look
            self._waiting.appendleft(manifest)
            return manifest
        return None

    def _look(self, manifest: Manifest, now: float) -> Literal["ready", "short"] | Broken:
        """Look if all chunks of a payload that waits are in its queue, and note when to look again (rule 7)."""
        history, count = self._history(manifest.update), manifest.chunks.count
        try:
            found = self._transport.depth(self._queue(manifest))
        except BrokerUnavailable:
            history.look_s = now + GIVE_WAY_S
            return "short"
        except BrokerError:
            return self._broken(manifest, f"its queue {self._queue(manifest)} does not exist", now)
        if found >= count:
            history.silent_since_s, history.look_s = None, float("-inf")
            return "ready"
        if history.silent_since_s is None:
            history.silent_since_s = now
        if now >= history.silent_since_s + PATIENCE_S:
            return self._broken(manifest, f"{count - found} of {count} chunks are missing in its queue", now)
        history.look_s = now + max(GIVE_WAY_S, (now - history.silent_since_s) / 4)
        return "short"

    def _look_s(self, manifest: Manifest) -> float:
        history = self._histories.get(manifest.update.update_id)
        return float("-inf") if history is None else history.look_s

    def _queue(self, manifest: Manifest) -> str:
        update = manifest.update
        return self.queue_of(update.run_id, update.task_id, update.participant_id)

    def _history(self, update: Update) -> History:
        return self._histories.setdefault(update.update_id, History())

    def abandon(self) -> Manifest | None:
        """Stop reading, and return the manifest that was read."""
        current = self._current
        if current is None:
            return None
        self._stop(current)
        return current.manifest

    def clear(self) -> list[Manifest]:
        """Give up everything, in the order of the manifests."""
        current = self.abandon()
        left = [*([current] if current else []), *self._waiting]
        self._waiting.clear()
        for history in self._histories.values():  # a new connection begins anew, but for the tries
            history.silent_since_s, history.look_s = None, float("-inf")
        return left

    def forget(self, update_id: str) -> None:
        """Forget the turns and tries of an update that is over."""
        self._histories.pop(update_id, None)

    def _stop(self, current: Reading) -> memoryview | None:
        self._current = None
        return current.stop()

    def _give_up(self, current: Reading, lost: Lost, now: float) -> Broken:
        self._stop(current)
        return self._broken(current.manifest, lost.detail, now)

    def _broken(self, manifest: Manifest, detail: str, now: float) -> Broken:
        update, history = manifest.update, self._history(manifest.update)
        if now >= history.tried_at_s + ONE_TRY_S:
            history.tried_at_s = now
            history.tries += 1
        history.silent_since_s, history.look_s, history.hollow, history.budgets = None, float("-inf"), 0, 0
        log.warning("payload_broken", participant=update.participant_id, task=update.task_id, detail=detail)
        return Broken(manifest, detail, history.tries >= MOST_TRIES)
