"""What can happen to the decision core, and what it can want done (h11's habit: no I/O here).

`core.step(event, now) -> list of commands`. `now` is run time in seconds: how long coordinators of this run have been
up, so that neither a changed clock nor a downtime makes leases lapse. `delivery` is an opaque handle of the service's.

Those of every update are named tuples, the others frozen dataclasses: a frozen dataclass takes five times as long to
make, which studies of small models would feel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fedmq.coordinator.decisions.records import ClosedState
from fedmq.schemas.messages import DeclineReason, Hello, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters

DeliveryHandle = int

DiscardReason = Literal[
    "malformed", "unsupported_version", "oversized", "not_finite", "wrong_shape",  # schemas.errors: poison
    "wrong_run", "unknown_task", "unknown_participant", "wrong_base_version", "wrong_payload",
    "duplicate", "task_closed", "too_stale", "wrong_memory", "run_finished",
]  # fmt: skip
POISON: frozenset[str] = frozenset(
    {"malformed", "unsupported_version", "oversized", "not_finite", "wrong_shape", "wrong_base_version",
     "wrong_payload", "unknown_participant", "unknown_task", "wrong_run"}
)  # fmt: skip
"""Discards that are dead-lettered as well, for somebody to look at; the others are ordinary life."""


@dataclass(frozen=True, slots=True)
class ClosedTask:
    """What the ledger remembers of a task that the core no longer holds."""

    task_id: str
    participant_id: str
    state: ClosedState


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The service is up, after a fresh start or a restore."""


@dataclass(frozen=True, slots=True)
class ParticipantSeen:
    hello: Hello
    user: str | None = ""
    """Of the broker, who sent it (coordinator.decisions.identity); "" in a study."""


class UpdateArrived(NamedTuple):
    delivery: DeliveryHandle
    update: Update
    payload: Parameters
    closed_task: ClosedTask | None = None
    """Filled by the service from the ledger where `core.holds(task_id)` is False."""
    owned: bool = False
    """The payload is the core's alone: its memory is let go before a version is made, which needs as much."""


@dataclass(frozen=True, slots=True)
class PoisonArrived:
    """Something on the updates queue that could not be decoded."""

    delivery: DeliveryHandle
    reason: DiscardReason
    detail: str
    task_id: str | None = None
    """The task that it closes, where its sender is shown to be the task's participant
    (coordinator.decisions.identity): training that ends in NaN must not hold its slot."""


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
    """The broker could not take the task over (the participant's queue is gone, or a time-out)."""

    task_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class EvaluationArrived:
    """The central evaluation of a version; no metrics means that it failed, with `detail`."""

    version: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by: leases, deadlines, absences, the time limit."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Somebody asked the run to finish (not: the coordinator to pause)."""

    detail: str = "requested"


Event = (
    Started | ParticipantSeen | UpdateArrived | PoisonArrived | TaskDeclined | TaskUndeliverable
    | EvaluationArrived | Tick | StopRequested
)  # fmt: skip


# Commands, in the order in which they were decided


class IssueTask(NamedTuple):
    """Record the task in the next commit, then publish it with `Core.task_tensors`, which are of `base_version` at this
    point of the command list. `again` repeats a task of the ledger that its participant lost."""

    task_id: str
    seq: int
    participant_id: str
    base_version: int
    training: TrainingConfig
    lease_s: float
    again: bool = False


@dataclass(frozen=True, slots=True)
class CloseTask:
    """The task ends without an accepted update: for the ledger."""

    task_id: str
    state: Literal["discarded", "declined", "withdrawn"]
    detail: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell the participant to drop a task (notice task_withdrawn)."""

    participant_id: str
    task_id: str
    detail: str


class Accept(NamedTuple):
    """The update is in the aggregation state: ack and receipt after the next commit."""

    delivery: DeliveryHandle
    update: Update
    staleness: int
    client_weight: float
    order: int
    """Position of this update among all accepted ones of the run, from 1: what a replay follows."""
    group: int | None = None
    """The arrival group that it came in time for, where there are any."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Count it with its reason, dead-letter it where the reason is in POISON, ack (after the commit)."""

    delivery: DeliveryHandle
    reason: DiscardReason
    detail: str
    update: Update | None
    """None where it could not be decoded."""
    staleness: int | None = None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """An aggregation happened: these updates, with these weights, made this version."""

    version: int
    update_ids: tuple[str, ...]
    weights: tuple[float, ...]
    orders: tuple[int, ...] | None = None
    """Of the updates among all accepted ones, where a version need not hold the next ones (arrival groups)."""


@dataclass(frozen=True, slots=True)
class RepeatReceipts:
    """The participant still holds tasks that are over: repeat their receipts from the ledger, or withdraw them."""

    participant_id: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SayHello:
    """Ask these participants for a hello (after a restart)."""

    participant_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the current version centrally; answer with EvaluationArrived."""

    version: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: commit, tell the participants, export the model."""

    reason: str


Command = (
    IssueTask | CloseTask | Withdraw | Accept | Discard | NewVersion | RepeatReceipts | SayHello | Evaluate | Finish
)
