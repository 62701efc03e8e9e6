"""Updates from their writing to their verdicts (rules 6, 7, 9 and 12 of `participant.decisions.agent`). No I/O here.

unconfirmed  the update is on disk, and the broker has not confirmed it
sent         the broker has confirmed it, and there is no receipt yet
kept         it is sent, and still on disk because it went in chunks
unsettled    it is unconfirmed or sent, and its verdict decides on the method's memory

After its verdict, the task of an update is done.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.retries import MAX_LISTED, Retry, Unconfirmed
from fedmq.schemas.messages import Receipt, Task
from fedmq.schemas.methods import has_memory

ANNOUNCE_AGAIN_S = 30.0
"""Longer than a coordinator takes to answer a hello: its answer repeats the receipts that there are."""

Belongs = Callable[[str, str], bool]
"""(task_id, run_id) -> True if the task is meant."""


class Outbox:
    """The updates of one participant, by update_id."""

    def __init__(self, restored: ev.Restored, rng: random.Random) -> None:
        self._restored = restored
        self._rng = rng
        self._unconfirmed: dict[str, Unconfirmed] = {}
        self._sent: dict[str, tuple[str, str]] = dict(restored.sent)
        self._kept: set[str] = set()
        self._unsettled: set[str] = set()
        self._done: dict[str, None] = dict.fromkeys(restored.done)
        self._announce_at = float("inf")

    @property
    def num_unconfirmed(self) -> int:
        return len(self._unconfirmed)

    @property
    def num_unsettled(self) -> int:
        return len(self._unsettled)

    def held(self) -> list[str]:
        """Return the task_ids of the updates that are not over, unconfirmed ones first."""
        return [*(w.task_id for w in self._unconfirmed.values()), *(task_id for task_id, _ in self._sent.values())]

    def is_unconfirmed(self, uid: str) -> bool:
        return uid in self._unconfirmed

    def is_over(self, task_id: str) -> bool:
        return task_id in self._done

    @property
    def last_over(self) -> str | None:
        """The task that was over last; None if there is none."""
        return next(reversed(self._done), None)

    # In

    def restore(self) -> list[ev.Command]:
        """Go on with the updates that the last process left."""
        found = self._restored
        for uid, (task_id, run_id) in found.outbox.items():
            if uid in self._sent:
                self._kept.add(uid)
            else:
                self._unconfirmed[uid] = Unconfirmed(task_id, run_id)
        commands: list[ev.Command] = []
        for uid, (task_id, run_id) in found.unsettled.items():
            known = uid in self._unconfirmed or uid in self._sent
            if not known and found.task is not None and found.task.task_id == task_id:
                commands.append(ev.DropNextMemory(uid))  # the update never reached the disk: its task is trained again
                continue
            self._unsettled.add(uid)
            if not known:  # its file is lost, but the coordinator knows its verdict
                self._sent[uid] = (task_id, run_id)
        return commands

    def add(self, uid: str, task: Task) -> None:
        """Add an update that is on disk now."""
        if has_memory(task):
            self._unsettled.add(uid)
        self._unconfirmed[uid] = Unconfirmed(task.task_id, task.run_id)

    # To the broker

    def due(self, now: float) -> list[ev.Command]:
        """Publish the updates that are due. Call it only while connected."""
        commands: list[ev.Command] = []
        for uid, unconfirmed in self._unconfirmed.items():
            if unconfirmed.is_due(now):
                unconfirmed.in_flight = True
                commands.append(ev.PublishUpdate(uid, unconfirmed.task_id, unconfirmed.from_start))
                unconfirmed.from_start = False
        return commands

    def announce_later(self, now: float) -> None:
        """Announce kept updates again if a coordinator that may be a new one sends no receipt within a while."""
        self._announce_at = now + ANNOUNCE_AGAIN_S

    def announcements_due(self, now: float) -> list[ev.Command]:
        """Announce kept updates again if it is time. Call it only while connected."""
        if now < self._announce_at:
            return []
        self._announce_at = float("inf")
        return [ev.AnnounceAgain(uid, task_id) for uid, (task_id, _) in self._sent.items() if uid in self._kept]

    def try_at_once(self, uid: str | None = None) -> None:
        """Make one update or all of them due: the broker is back, or it takes updates again."""
        for unconfirmed in self._unconfirmed.values() if uid is None else [self._unconfirmed[uid]]:
            unconfirmed.retry = Retry()

    def confirmed(self, uid: str, kept: bool) -> list[ev.Command]:
        """Note that the broker has an update. `kept`: it went in chunks, and stays on disk until its receipt."""
        unconfirmed = self._unconfirmed[uid]
        if unconfirmed.from_start:  # the coordinator asked for it again before the broker confirmed it
            unconfirmed.in_flight = False
            return []
        del self._unconfirmed[uid]
        self._sent[uid] = (unconfirmed.task_id, unconfirmed.run_id)
        cleared = [] if kept else [uid]
        if kept:
            self._kept.add(uid)
        settled = [sent for sent in self._sent if sent not in self._unsettled]
        for oldest in settled[: max(len(self._sent) - MAX_LISTED, 0)]:
            self.finish(self._sent.pop(oldest)[0])
            cleared += [oldest] if oldest in self._kept else []
            self._kept.discard(oldest)
        self.try_at_once()
        return [self.write_sent(), *(ev.ClearOutbox(one) for one in cleared)]

    def failed(self, uid: str, detail: str, now: float) -> list[ev.Command]:
        unconfirmed = self._unconfirmed.get(uid)
        if unconfirmed is None:
            return []
        unconfirmed.failed(now, self._rng)
        retry_s = f"{unconfirmed.retry.at - now:.0f}"
        fields = {"task": unconfirmed.task_id, "detail": detail, "retry_s": retry_s}
        return [ev.Note("warning", "update_not_taken", fields)]

    def unreadable(self, uid: str) -> None:
        """Give up an update that cannot be read. Hellos stop naming its task, and the coordinator issues it again.

        An unsettled update stays in the hellos. It may have been sent before, and its verdict decides on the memory.
        """
        unconfirmed = self._unconfirmed.pop(uid, None)
        if unconfirmed is not None and uid in self._unsettled:
            self._sent[uid] = (unconfirmed.task_id, unconfirmed.run_id)

    def send_again(self, asked: str | None) -> list[ev.Command]:
        """Send a task's update again from its first chunk, because its chunks did not arrive whole."""
        for unconfirmed in self._unconfirmed.values():
            unconfirmed.from_start = unconfirmed.from_start or unconfirmed.task_id == asked
        found = [uid for uid, (task_id, _) in self._sent.items() if task_id == asked and uid in self._kept]
        for uid in found:
            task_id, run_id = self._sent.pop(uid)
            self._kept.discard(uid)
            self._unconfirmed[uid] = Unconfirmed(task_id, run_id, from_start=True)
        return [self.write_sent()] if found else []

    def not_announced(self, uid: str) -> list[ev.Command]:
        """Send an update again whose manifest is lost here."""
        sent = self._sent.get(uid)
        return [] if sent is None else self.send_again(sent[0])

    # Verdicts

    def received(self, receipt: Receipt) -> list[ev.Command]:
        uid = receipt.update_id
        if uid not in self._sent and uid not in self._unconfirmed:
            return []
        if uid in self._unsettled and receipt.verdict == "accepted":
            return [ev.MoveMemory(uid, receipt.task_id)]
        # The disk may have been restored from a backup. What it says was not sent may have been sent since.
        outdated = uid in self._unsettled and receipt.reason == "wrong_memory"
        forget = [ev.ForgetSoftMemory(receipt.task_id)] if outdated else []
        return [*self._drop_next_memory(uid), *forget, *self._settle(uid)]

    def memory_moved(self, uid: str) -> list[ev.Command]:
        self._unsettled.discard(uid)
        return self._settle(uid)

    def drop(self, belongs: Belongs) -> list[ev.Command]:
        """Drop the updates of these tasks."""
        commands: list[ev.Command] = []
        for uid in [u for u, w in self._unconfirmed.items() if belongs(w.task_id, w.run_id)]:
            self.finish(self._unconfirmed.pop(uid).task_id)
            commands += [*self._drop_next_memory(uid), ev.ClearOutbox(uid)]
        for uid in [u for u, (task_id, run_id) in self._sent.items() if belongs(task_id, run_id)]:
            self.finish(self._sent.pop(uid)[0])
            commands += self._drop_next_memory(uid)
            if uid in self._kept:
                self._kept.discard(uid)
                commands.append(ev.ClearOutbox(uid))
        return commands

    def finish(self, task_id: str) -> None:
        """Note that a task is over."""
        self._done.pop(task_id, None)
        self._done[task_id] = None
        while len(self._done) > MAX_LISTED:
            del self._done[next(iter(self._done))]

    def write_sent(self) -> ev.WriteSent:
        return ev.WriteSent(dict(self._sent), tuple(self._done))

    def _settle(self, uid: str) -> list[ev.Command]:
        """Drop an update whose verdict is known and carried out."""
        sent = self._sent.pop(uid, None)
        if sent is not None:
            self.finish(sent[0])
        unconfirmed = self._unconfirmed.pop(uid, None)
        if unconfirmed is not None:
            self.finish(unconfirmed.task_id)  # the confirm was lost, and the update was not
        elif uid not in self._kept:
            return [self.write_sent()]
        self._kept.discard(uid)
        return [self.write_sent(), ev.ClearOutbox(uid)]

    def _drop_next_memory(self, uid: str) -> list[ev.Command]:
        if uid not in self._unsettled:
            return []
        self._unsettled.discard(uid)
        return [ev.DropNextMemory(uid)]
