"""Events: everything that can happen to the decision core. This module does no I/O, as in h11.

The core is called as `core.step(event, now)` and returns commands (commands.py). `now` is run time in seconds: how long
coordinators of this run have been up. A changed clock or a downtime therefore makes no lease lapse. `delivery` is a
handle of the service's that the core passes on without looking inside.

Events and commands that occur once an update are named tuples; the others are frozen dataclasses. A frozen dataclass
takes five times as long to make, which studies of small models would feel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fedmq.coordinator.decisions.failures import FailureReason
from fedmq.coordinator.decisions.records import ClosedState
from fedmq.schemas.messages import DeclineReason, Hello, Update
from fedmq.schemas.parameters import Parameters

DeliveryHandle = int

DiscardReason = Literal[
    "malformed", "unsupported_version", "oversized", "not_finite", "wrong_shape",  # schemas.errors: poison
    "wrong_run", "unknown_task", "unknown_participant", "wrong_base_version", "wrong_payload",
    "duplicate", "task_closed", "too_stale", "wrong_memory", "run_finished", "strategy_error", "overflow",
    "unknown_sender", "wrong_sender", "not_enrolled", "revoked",  # coordinator.decisions.participants.identity
    "set_back",  # coordinator.decisions.set_backs
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClosedTask:
    """A task that the core no longer holds, from the ledger."""

    task_id: str
    participant_id: str
    state: ClosedState


@dataclass(frozen=True, slots=True)
class Started:
    """The service is up, after a fresh start or a restore."""

    revoked: tuple[str, ...] = ()
    """Participants that were revoked before. The fleet's members say so; what a record says is for people."""


@dataclass(frozen=True, slots=True)
class ParticipantSeen:
    hello: Hello
    user: str | None = ""
    """The broker's user that sent the hello (decisions.participants.identity); None if it names none, "" in a study."""
    unissued: tuple[str, ...] = ()
    """Ids among `Core.doubtful` that the ledger does not have: tasks of a newer ledger, or of another copy
    (coordinator.decisions.set_backs)."""


class Carried(NamedTuple):
    """Bytes of an update: as it travelled, headers included, and of its tensors behind the codec."""

    wire_bytes: int
    decoded_bytes: int


class UpdateArrived(NamedTuple):
    delivery: DeliveryHandle
    update: Update
    payload: Parameters
    closed_task: ClosedTask | None = None
    """The update's task as the ledger has it; the service fills this in if `core.holds(task_id)` is False."""
    owned: bool = False
    """True if nobody else uses the payload. The core then frees its RAM before it makes a version, which needs as
    much."""
    carried: Carried | None = None
    """Size of the update, for the ledger; None in a study, and without a payload."""


@dataclass(frozen=True, slots=True)
class PoisonArrived:
    """A message that could not be decoded, or whose sender is refused (coordinator.decisions.participants.identity)."""

    delivery: DeliveryHandle
    reason: DiscardReason
    detail: str
    task_id: str | None = None
    """The task that it closes, given only if the sender is shown to be the task's participant
    (coordinator.decisions.participants.identity). Training that ends in NaN must not hold its slot."""


@dataclass(frozen=True, slots=True)
class ParticipantRevoked:
    """The participant is in the fleet no more, for good."""

    participant_id: str


@dataclass(frozen=True, slots=True)
class TaskDeclined:
    participant_id: str
    task_id: str
    run_id: str
    reason: DeclineReason
    detail: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class TaskUndeliverable:
    """The broker could not accept the task: the participant's queue is gone, or the publish timed out."""

    task_id: str
    detail: str


SUPERSEDED = "superseded"
"""First word of an evaluation's detail if a newer version was evaluated in its place."""


@dataclass(frozen=True, slots=True)
class EvaluationArrived:
    """The central evaluation of a version. It has no metrics if it failed; `detail` then says why."""

    version: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """The answer to a Distil: the version's floating tensors. They are a claim of the process that made them."""

    version: int
    tensors: Parameters


@dataclass(frozen=True, slots=True)
class DistilFailed:
    """The answer to a Distil that could not be done. The version is the plain mean then."""

    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by, and with it perhaps leases, deadlines, absences or the time limit."""


@dataclass(frozen=True, slots=True)
class TimeStoodStill:
    """Run time stood still for so many seconds, because no coordinator was up or its machine slept.

    Participants trained on meanwhile (coordinator.decisions.updates.claims).
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class BufferFailed:
    """A version failed before the last commit's state was restored: its buffer makes no version.

    It comes before all other events (coordinator.decisions.failures).
    """

    reason: FailureReason
    detail: str
    group: int | None = None
    """The arrival group that the version was to be made of."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody asked the run to finish, not just the coordinator to pause."""

    detail: str = "requested"


Event = (
    Started | ParticipantSeen | ParticipantRevoked | UpdateArrived | PoisonArrived | TaskDeclined | TaskUndeliverable
    | EvaluationArrived | Distilled | DistilFailed | Tick | TimeStoodStill | BufferFailed | StopRequested
)  # fmt: skip
