"""Commands: everything that the decision core can want done, in the order in which it was decided.

The service and the studies carry them out; the events that lead to them are in events.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fedmq.coordinator.decisions.events import DeliveryHandle, DiscardReason
from fedmq.schemas.messages import TrainingConfig, Update

POISON: frozenset[str] = frozenset(
    {"malformed", "unsupported_version", "oversized", "not_finite", "wrong_shape", "wrong_base_version",
     "wrong_payload", "unknown_participant", "unknown_task", "wrong_run"}
)  # fmt: skip
"""Discards that are dead-lettered as well, for somebody to look at; the others are ordinary life."""


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
