"""Hellos: the moment of each, and its content (rule 8 of `participant.decisions.agent`)."""

from __future__ import annotations

from fedmq.participant.decisions import events as ev
from fedmq.schemas.messages import HeldModel, Hello, Reply


class Hellos:
    """The hellos of one session."""

    def __init__(
        self,
        participant_id: str,
        session_id: str,
        interval_s: float,
        replies: tuple[Reply, ...],
        software: str,
        *,
        codecs: tuple[str, ...] = (),
    ) -> None:
        self._participant_id = participant_id
        self._session_id = session_id
        self._interval_s = interval_s
        self._replies = replies
        self._software = software
        self._codecs = codecs
        self.model: HeldModel | None = None
        """The hidden state on disk."""
        self._told_accepting: bool | None = None
        self._told_leaving = False
        self._next_at = 0.0

    def say_at(self, now: float) -> None:
        """Make the next hello due at this time, whatever the interval says."""
        self._next_at = now

    def due(
        self,
        now: float,
        *,
        able: bool,
        busy: bool,
        num_examples: int,
        task_ids: tuple[str, ...],
        last_task: str | None,
        leaving: bool = False,
    ) -> list[ev.Command]:
        """Send a hello if one is due. Call it only while connected.

        `able` says that the participant could take a task if it were not busy with one or waiting for a verdict. A
        participant that is `leaving` says so once, at once.
        """
        accepting = able and not busy
        # The coordinator knows that the participant is busy: it gave the task, or it owes the verdict.
        changed = (accepting and self._told_accepting is False) or (not able and self._told_accepting is True)
        changed = changed or (leaving and not self._told_leaving)
        if not changed and now < self._next_at:
            return []
        self._told_accepting, self._told_leaving = accepting, leaving
        self._next_at = now + self._interval_s
        hello = Hello(
            participant_id=self._participant_id,
            session_id=self._session_id,
            num_examples=num_examples,
            accepting=accepting,
            replies=self._replies,
            codecs=self._codecs,
            model=self.model,
            task_ids=task_ids,
            last_task=last_task,
            software=self._software,
            leaving=leaving,
        )
        return [ev.SendHello(hello)]
