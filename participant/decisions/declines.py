"""The tasks that were declined, and the declines that are not out yet (rules 3 and 7 of
`participant.decisions.agent`)."""

from __future__ import annotations

import random

from fedmq.participant.decisions import events as ev
from fedmq.participant.decisions.retries import MAX_REMEMBERED, Retry, Waiting
from fedmq.schemas.messages import Decline, DeclineReason, Task

DETAIL_CHARACTERS = 2000


class Declines:
    """By task_id. Methods return what they want done; `connected` is whether a message can go out now."""

    def __init__(self, participant_id: str, rng: random.Random) -> None:
        self._participant_id = participant_id
        self._rng = rng
        self._made: dict[str, Decline] = {}
        self._waiting: dict[str, Waiting] = {}

    def __contains__(self, task_id: str) -> bool:
        """Whether the task was declined, not too long ago."""
        return task_id in self._made

    @property
    def num_waiting(self) -> int:
        """Those that the broker has not confirmed."""
        return len(self._waiting)

    def decline(
        self, task: Task, reason: DeclineReason, detail: str, retry_after_s: float | None, *, connected: bool
    ) -> list[ev.Command]:
        self._made[task.task_id] = Decline(
            task_id=task.task_id,
            run_id=task.run_id,
            participant_id=self._participant_id,
            reason=reason,
            detail=detail[:DETAIL_CHARACTERS],
            retry_after_s=retry_after_s,
        )
        while len(self._made) > MAX_REMEMBERED:
            oldest = next(iter(self._made))
            del self._made[oldest]
            self._waiting.pop(oldest, None)
        return self.send(task.task_id, connected=connected)

    def send(self, task_id: str, *, connected: bool) -> list[ev.Command]:
        """The decline of a task, in the same words as before."""
        decline = self._made[task_id]
        self._waiting[task_id] = Waiting(task_id, decline.run_id, in_flight=connected)
        return [ev.SendDecline(decline)] if connected else []

    def due(self, now: float) -> list[ev.Command]:
        """Those to be sent (again) now; only while connected."""
        commands: list[ev.Command] = []
        for task_id, waiting in self._waiting.items():
            if waiting.is_due(now):
                waiting.in_flight = True
                commands.append(ev.SendDecline(self._made[task_id]))
        return commands

    def try_at_once(self) -> None:
        """The broker is back."""
        for waiting in self._waiting.values():
            waiting.retry = Retry()

    def confirmed(self, task_id: str) -> None:
        self._waiting.pop(task_id, None)

    def failed(self, task_id: str, now: float) -> None:
        waiting = self._waiting.get(task_id)
        if waiting is not None:
            waiting.failed(now, self._rng)
