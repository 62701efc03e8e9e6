"""Records: the core's state beyond its arrays, as frozen rows of JSON values for the ledger's tables.

Participants and tasks have tables of their own, written one changed row at a time. The cost of a commit therefore grows
with what happened since the last one, not with the size of the federation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy.typing as npt

from fedmq.schemas.messages import Reply

OpenState = Literal["out", "lapsed"]
ClosedState = Literal["accepted", "discarded", "declined", "withdrawn"]
TaskState = OpenState | ClosedState
OPEN_STATES: frozenset[str] = frozenset({"out", "lapsed"})
"""States in which the task's update is welcome. `out` holds a slot; `lapsed` (lease over, or lost) does not."""


@dataclass(frozen=True, slots=True)
class ParticipantRecord:
    """One known participant. Times are run time in seconds (coordinator.decisions.events)."""

    participant_id: str
    seq: int
    """Order of first hello, from 0. It makes selection the same after a restart."""
    session_id: str
    num_examples: int
    """Number of training examples, from its last hello or update, within the limit of the run."""
    replies: tuple[Reply, ...]
    accepting: bool
    """True if it last said that it accepts tasks; False from the issue of a task until news of it."""
    reachable: bool
    """False after a task could not be delivered, until its next hello."""
    last_seen_s: float
    asked_again_at_s: float | None = None
    """Run time before which it gets no task, after a decline or a failure."""
    failures: int = 0
    """Number of failed tasks in a row (trainer errors, unusable updates, lapsed leases)."""
    answered_version: int | None = None
    """Version whose synchronous round has its update."""
    client_loss: float | None = None
    """Loss that it reported last."""
    step_s: float | None = None
    """Seconds an optimiser step, measured on its updates. It covers training alone, and the newest update counts for
    half. Arrival groups, if the strategy has them, measure it in their own way."""
    tasks_issued: int = 0
    accepted: int = 0
    discarded: int = 0
    declined: int = 0
    memory: str | None = None
    """Mark of the method's memory on the participant, by its last accepted update
    (schemas.messages.Update.next_memory)."""
    user: str | None = ""
    """The broker's user that last said hello in its name (participants/identity.py); "" before that, and in a study."""
    counted_examples: int | None = None
    """Number of examples of its last accepted update, as it counted; None before the first."""
    clamped: int = 0
    """Number of accepted updates with a claim that was clamped (coordinator.decisions.updates.claims)."""
    newcomer: bool = False
    """True if it first said hello after the run had accepted an update."""
    placed: bool = False
    """True if it holds one of the strategy's places (strategies.protocol.max_participants)."""
    pardoned_s: float | None = None
    """Run time at which a new session last ended its back-off after failures."""
    left: bool = False
    """True if its last hello said that its process ends."""
    codecs: tuple[str, ...] = ()
    """Codecs that it can send updates in (schemas.messages.Hello)."""
    holds: int | None = None
    """Version of the hidden state on its disk, if tasks travel as steps; None if it has none, or not a known one."""
    revoked: bool = False
    """True if it is in the fleet no more. It is for people: a restart asks the fleet's members."""

    @property
    def weighed_examples(self) -> int:
        """Number of examples by which it is in the client weights' mean; 0 before its first accepted update."""
        if self.counted_examples is None:  # a ledger of an older fedmq does not have it
            return self.num_examples if self.accepted else 0
        return self.counted_examples


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task. Its training seed is not stored, because it follows from the run's seed and `seq`."""

    task_id: str
    seq: int
    participant_id: str
    base_version: int
    issued_s: float
    lease_until_s: float
    state: TaskState = "out"
    detail: str = ""
    sent_s: float = 0.0
    """Run time of its last sending (seconds): `issued_s`, or later if it was sent again."""
    repeats: int = 0
    """Number of times that it was sent again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The core without its tables: parameters, strategy state, counters, random generator."""

    arrays: Mapping[str, npt.NDArray[Any]]
    """Views of the live state: write or copy them before the next step."""
    scalars: Mapping[str, Any]
    """JSON values. Floats survive `repr` exactly."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that changed since the last call: each one once, in its newest form."""

    participants: Mapping[str, ParticipantRecord]
    tasks: Mapping[str, TaskRecord]
    memories: Mapping[str, Mapping[str, npt.NDArray[Any]]] = field(default_factory=dict)
    """The strategy's memories: participant -> tensor -> array (strategies.protocol.RemembersParticipants)."""
    forgotten: frozenset[str] = frozenset()
    """Participants whose rows go. One that came again since is also among `participants`: its new row stays."""
