"""The roster: which participants are here and which are free, in O(log n) an event.

A participant is free if all of this holds:
- it was heard from lately, said that it accepts tasks, and can send what the strategy needs;
- it has no task out and is not backing off;
- in a synchronous round, it has not given its update yet;
- with arrival groups, it does not wait for others of its group;
- if the strategy has room for a limited number of participants, it came early enough to be one of them.

Everything here follows from the records and the time, so a restored roster behaves like the one that wrote them.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from fedmq.coordinator.decisions.records import ParticipantRecord
from fedmq.coordinator.decisions.selection import make_picker
from fedmq.coordinator.decisions.tasks import HeldTask
from fedmq.coordinator.settings import RunSettings
from fedmq.schemas.messages import Hello, Reply

_of_record = attrgetter(*ParticipantRecord.__dataclass_fields__)


@dataclass(slots=True, eq=False)
class Participant:
    """The live form of a ParticipantRecord, field by field, and its open tasks."""

    participant_id: str
    seq: int
    session_id: str
    num_examples: int
    replies: tuple[Reply, ...]
    accepting: bool
    reachable: bool
    last_seen_s: float
    asked_again_at_s: float | None = None
    failures: int = 0
    answered_version: int | None = None
    client_loss: float | None = None
    step_s: float | None = None
    tasks_issued: int = 0
    accepted: int = 0
    discarded: int = 0
    declined: int = 0
    memory: str | None = None
    user: str | None = ""
    counted_examples: int | None = None
    clamped: int = 0
    out: HeldTask | None = None
    lapsed: list[HeldTask] = field(default_factory=list)
    """Lapsed tasks, oldest first."""
    here: bool = False
    revoked: bool = False
    """True if it is in the fleet no more. It is never here again. The fleet's members store this, and no record."""
    watched: bool = False
    """True if it has an entry in the absence heap."""
    waits: bool = False
    """True if it waits for others of its arrival group. coordinator.decisions.arrival_groups stores this."""

    @classmethod
    def from_record(cls, r: ParticipantRecord) -> Participant:
        return cls(*_of_record(r))

    def measure(self, train_s: float, num_steps: int) -> None:
        """Update the speed after an update that took `train_s` seconds and `num_steps` steps, 1 or more."""
        step_s = train_s / num_steps
        self.step_s = step_s if self.step_s is None else (self.step_s + step_s) / 2

    def record(self) -> ParticipantRecord:
        return ParticipantRecord(*_of_record(self))


class Roster:
    """All known participants. A caller that changes one must call `settle` afterwards."""

    def __init__(
        self, settings: RunSettings, reply: Reply, rng: np.random.Generator, max_participants: int | None = None
    ) -> None:
        self._room = math.inf if max_participants is None else max_participants
        self._timeout_s = settings.participant_timeout_s
        self._reply = reply
        self._rng = rng
        self._known: dict[str, Participant] = {}
        self._by_seq: list[Participant] = []
        self._free = make_picker(settings.selection)
        self._absences: list[tuple[float, int]] = []
        self._backoffs: list[tuple[float, int]] = []
        self._answered: list[Participant] = []
        self._dirty: dict[str, Participant] = {}
        self.here = 0

    @property
    def free(self) -> int:
        return len(self._free)

    def __len__(self) -> int:
        return len(self._by_seq)

    def ids(self) -> list[str]:
        """Return all ids in order of first hello."""
        return list(self._known)

    def get(self, participant_id: str) -> Participant | None:
        return self._known.get(participant_id)

    def has_room_for(self, participant_id: str) -> bool:
        """Return False for a participant that came when the strategy had no room left."""
        p = self._known.get(participant_id)
        return p is None or p.seq < self._room

    def add(self, hello: Hello, now: float) -> Participant:
        """Add a new participant; the caller settles it."""
        p = Participant(
            hello.participant_id, len(self._by_seq), hello.session_id, hello.num_examples, hello.replies,
            hello.accepting, True, now,
        )  # fmt: skip
        self._enter(p)
        return p

    def load(self, record: ParticipantRecord) -> Participant:
        """Add a participant from the ledger, in order of `seq`; the caller gives it its tasks and settles it."""
        if record.seq != len(self._by_seq):
            raise ValueError(f"participant {record.participant_id} has seq {record.seq}, expected {len(self._by_seq)}")
        p = Participant.from_record(record)
        self._enter(p)
        return p

    def _enter(self, p: Participant) -> None:
        self._known[p.participant_id] = p
        self._by_seq.append(p)

    def settle(self, p: Participant, now: float, version: int, dirty: bool = True) -> None:
        """Bring the sets and heaps up to date with a participant that changed; `dirty` writes its row again."""
        if dirty:
            self._dirty[p.participant_id] = p
        here = p.reachable and not p.revoked and p.last_seen_s + self._timeout_s > now
        if here != p.here:
            p.here = here
            self.here += 1 if here else -1
        if here and not p.watched:
            p.watched = True
            heapq.heappush(self._absences, (p.last_seen_s + self._timeout_s, p.seq))
        waiting = p.asked_again_at_s is not None and p.asked_again_at_s > now
        if (
            here
            and p.accepting
            and p.out is None
            and not waiting
            and not p.waits
            and p.answered_version != version
            and p.seq < self._room
            and self._reply in p.replies
        ):
            self._free.add(p.seq, p.tasks_issued)
        else:
            self._free.discard(p.seq)

    def back_off(self, p: Participant, until_s: float) -> None:
        """Issue no task to it before `until_s` (run time, seconds); the caller settles it."""
        p.asked_again_at_s = until_s
        heapq.heappush(self._backoffs, (until_s, p.seq))

    def mark_answered(self, p: Participant, version: int) -> None:
        """Note that it gave its update to this version's synchronous round; the caller settles it."""
        p.answered_version = version
        self._answered.append(p)

    def free_answered(self, now: float, version: int) -> None:
        """Free the participants that answered the last round for the next one, after a new version."""
        answered, self._answered = self._answered, []
        for p in answered:
            self.settle(p, now, version, dirty=False)

    def ask_again(self, now: float, version: int) -> None:
        """Free the participants that answered the open round."""
        answered, self._answered = self._answered, []
        for p in answered:
            p.answered_version = None
            self.settle(p, now, version)

    def pick(self) -> Participant:
        """Choose a free participant by the run's selection; it is no longer free."""
        return self._by_seq[self._free.pick(self._rng)]

    def pass_time(self, now: float, version: int) -> None:
        """Apply the absences and the ends of back-offs that are due by `now`."""
        while self._absences and self._absences[0][0] <= now:
            _, seq = heapq.heappop(self._absences)
            p = self._by_seq[seq]
            p.watched = False
            self.settle(p, now, version, dirty=False)
        while self._backoffs and self._backoffs[0][0] <= now:
            _, seq = heapq.heappop(self._backoffs)
            self.settle(self._by_seq[seq], now, version, dirty=False)

    def next_due(self) -> float | None:
        """Return the run time at which `pass_time` may next have something to do; None if there is none."""
        while self._backoffs and self._by_seq[self._backoffs[0][1]].asked_again_at_s != self._backoffs[0][0]:
            heapq.heappop(self._backoffs)
        absent = self._absences[0][0] if self._absences else None
        if not self._backoffs:
            return absent
        asked = self._backoffs[0][0]
        return asked if absent is None else min(absent, asked)

    def rebuild(self, now: float, version: int) -> None:
        """Rebuild the sets from the records, after the last `load`."""
        for p in self._by_seq:
            if p.answered_version == version:
                self._answered.append(p)
            if p.asked_again_at_s is not None and p.asked_again_at_s > now:
                heapq.heappush(self._backoffs, (p.asked_again_at_s, p.seq))
            self.settle(p, now, version, dirty=False)

    def changes(self) -> dict[str, ParticipantRecord]:
        """Return the records of the participants settled as dirty since the last call."""
        dirty, self._dirty = self._dirty, {}
        return {participant_id: p.record() for participant_id, p in dirty.items()}

    def forget_changes(self) -> None:
        """Drop the list of changed records."""
        self._dirty = {}
