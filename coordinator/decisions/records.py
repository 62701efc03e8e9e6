"""What the core remembers beyond its arrays, as plain frozen rows for the ledger's tables (JSON scalars only).

Participants and tasks go to tables of their own, one changed row at a time, so that a commit costs as much as
what happened since the last one and not as much as the federation is large.
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
"""The task's update would be taken: `out` holds a slot, `lapsed` (lease over, or lost by its participant) does not."""


@dataclass(frozen=True, slots=True)
class ParticipantRecord:
    """One known participant. Times are run time in seconds (coordinator.decisions.events)."""

    participant_id: str
    seq: int
    """Order of first hello, from 0: what makes selection the same after a restart."""
    session_id: str
    num_examples: int
    """From its last hello or update."""
    replies: tuple[Reply, ...]
    accepting: bool
    """What it said last; False as well from the issue of a task until news of it."""
    reachable: bool
    """False after a task could not be delivered, until its next hello."""
    last_seen_s: float
    asked_again_at_s: float | None = None
    """After a decline or a failure: no task before this."""
    failures: int = 0
    """Failed tasks in a row (trainer errors, unusable updates)."""
    answered_version: int | None = None
    """The synchronous round that it has given its update to."""
    client_loss: float | None = None
    """The loss that it reported last."""
    step_s: float | None = None
    """Seconds for each optimiser step, by its updates: of training alone, and the newest counts for a half; or as the
    arrival groups measure it, where there are any."""
    tasks_issued: int = 0
    accepted: int = 0
    discarded: int = 0
    declined: int = 0
    memory: str | None = None
    """The mark of what it remembers, by its last accepted update (schemas.messages.Update.next_memory)."""
    user: str | None = ""
    """The broker's user that said hello for it last (coordinator.decisions.identity); "" before that, and in a
    study."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task. Its training seed follows from the run's seed and `seq`, so that it need not be kept."""

    task_id: str
    seq: int
    participant_id: str
    base_version: int
    issued_s: float
    lease_until_s: float
    state: TaskState = "out"
    detail: str = ""
    sent_s: float = 0.0
    """When it was last sent: `issued_s`, or later where it was sent again."""
    repeats: int = 0
    """How often it was sent again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The core without its tables: parameters and strategy state, counters, random generator."""

    arrays: Mapping[str, npt.NDArray[Any]]
    """Views of live state: write or copy them before the next step."""
    scalars: Mapping[str, Any]
    """JSON values; floats survive `repr` exactly."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that changed since the last call, each once, in its newest form."""

    participants: Mapping[str, ParticipantRecord]
    tasks: Mapping[str, TaskRecord]
    memories: Mapping[str, Mapping[str, npt.NDArray[Any]]] = field(default_factory=dict)
    """What the strategy remembers of a participant (strategies.base.RemembersParticipants), by tensor."""
