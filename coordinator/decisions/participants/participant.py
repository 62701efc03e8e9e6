"""Participants and their users, as the roster knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

from sortedcontainers import SortedSet

from fedmq.coordinator.decisions.records import ParticipantRecord
from fedmq.coordinator.decisions.tasks.book import HeldTask
from fedmq.schemas.messages import Reply

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
    newcomer: bool = False
    placed: bool = False
    pardoned_s: float | None = None
    left: bool = False
    codecs: tuple[str, ...] = ()
    holds: int | None = None
    revoked: bool = False
    """True if it is in the fleet no more. It is never here again. The fleet's members decide, not its record."""
    out: HeldTask | None = None
    lapsed: list[HeldTask] = field(default_factory=list)
    """Lapsed tasks, oldest first."""
    here: bool = False
    watched: bool = False
    """True if it has an entry in the absence heap."""
    waits: bool = False
    """True if it waits for others of its arrival group. Its arrival_groups.py stores this."""
    of: User | None = None
    """User of a participant that is known."""
    free: bool = False
    """True if it may get a task as far as it itself is concerned (all conditions but its user's)."""
    busy: bool = False
    """True if it takes up its user's share (users.py, rule 4)."""
    proven: bool = False
    """True if its user counts it among those with an accepted update."""
    on_trial: bool = False
    """True if it is on trial (rule 1)."""
    tried: bool = False
    """True if it is on trial and holds a slot."""

    @classmethod
    def from_record(cls, r: ParticipantRecord) -> Participant:
        p = cls(*_of_record(r))
        p.revoked = False
        return p

    def measure(self, train_s: float, num_steps: int) -> None:
        """Update the speed after an update that took `train_s` seconds and `num_steps` steps, 1 or more."""
        step_s = train_s / num_steps
        self.step_s = step_s if self.step_s is None else (self.step_s + step_s) / 2

    def record(self) -> ParticipantRecord:
        return ParticipantRecord(*_of_record(self))


@dataclass(slots=True, eq=False)
class User:
    """One user's participants."""

    name: str | None
    members: dict[int, Participant] = field(default_factory=dict)
    """Known participants by `seq`."""
    here: int = 0
    proven: int = 0
    placed: int = 0
    """Number of its participants that hold a place of the strategy's."""
    limited: bool = False
    """True if its share is smaller than its size. The next four fields are kept only then."""
    busy: set[int] = field(default_factory=set)
    """Participants that take up its share."""
    waiting: SortedSet = field(default_factory=SortedSet)
    """Keys of its free participants, in the order of rule 6."""
    keys: dict[int, tuple[int, int]] = field(default_factory=dict)
    seated: set[int] = field(default_factory=set)
    """Free participants that there is room for. The selection chooses among those of all users."""
