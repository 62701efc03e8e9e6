"""Declined tasks, and declines that the broker has not confirmed (rules 3 and 7 of `participant.decisions.agent`)."""

from __future__ import annotations

import random

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.retries import MAX_LISTED, Retry, Unconfirmed
from fedmq.schemas.messages import Decline, DeclineReason, Task

DETAIL_CHARACTERS = 2000


class Declines:
    """The declines of one participant, by task_id. `connected` says that a message can go out now."""

    def __init__(self, participant_id: str, rng: random.Random) -> None:
        self._participant_id = participant_id
        self._rng = rng
        self._made: dict[str, Decline] = {}
        self._unconfirmed: dict[str, Unconfirmed] = {}

    def __contains__(self, task_id: str) -> bool:
        """True if the task was declined not too long ago."""
        return task_id in self._made

    @property
    def num_unconfirmed(self) -> int:
        """Number of declines that the broker has not confirmed."""
        return len(self._unconfirmed)

    def decline(
        self, task: Task, reason: DeclineReason, detail: str, retry_after_s: float | None, *, connected: bool
    ) -> list[ev.Command]:
        return self._make(task.task_id, task.run_id, reason, detail, retry_after_s, connected=connected)

    def decline_unreadable(self, event: ev.TaskUnreadable, *, connected: bool) -> list[ev.Command]:
        """Decline a task of which only the ids are known, or believed."""
        return self._make(event.task_id, event.run_id, event.reason, event.detail, None, connected=connected)

    def _make(
        self,
        task_id: str,
        run_id: str,
        reason: DeclineReason,
        detail: str,
        retry_after_s: float | None,
        *,
        connected: bool,
    ) -> list[ev.Command]:
        self._made[task_id] = Decline(
            task_id=task_id,
            run_id=run_id,
            participant_id=self._participant_id,
            reason=reason,
            detail=detail[:DETAIL_CHARACTERS],
            retry_after_s=retry_after_s,
        )
        while len(self._made) > MAX_LISTED:
            oldest = next(iter(self._made))
            del self._made[oldest]
            self._unconfirmed.pop(oldest, None)
        return self.send(task_id, connected=connected)

    def send(self, task_id: str, *, connected: bool) -> list[ev.Command]:
        """Send a task's decline, in the same words as before."""
        decline = self._made[task_id]
        self._unconfirmed[task_id] = Unconfirmed(task_id, decline.run_id, in_flight=connected)
        return [ev.SendDecline(decline)] if connected else []

    def due(self, now: float) -> list[ev.Command]:
        """Send the declines that are due. Call it only while connected."""
        commands: list[ev.Command] = []
        for task_id, unconfirmed in self._unconfirmed.items():
            if unconfirmed.is_due(now):
                unconfirmed.in_flight = True
                commands.append(ev.SendDecline(self._made[task_id]))
        return commands

    def try_at_once(self) -> None:
        """Make every decline due, because the broker is back."""
        for unconfirmed in self._unconfirmed.values():
            unconfirmed.retry = Retry()

    def confirmed(self, task_id: str) -> None:
        self._unconfirmed.pop(task_id, None)

    def failed(self, task_id: str, now: float) -> None:
        unconfirmed = self._unconfirmed.get(task_id)
        if unconfirmed is not None:
            unconfirmed.failed(now, self._rng)
