"""Commands: everything that the decision core can want done, in the order in which it was decided.

The service and the studies carry them out; the events that lead to them are in events.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fedmq.coordinator.decisions.events import Carried, DeliveryHandle, DiscardReason
from fedmq.coordinator.decisions.tasks.generations import SetBack
from fedmq.coordinator.strategies.protocol import Ensemble
from fedmq.schemas.messages import Downlink, TrainingConfig, Update

POISON: frozenset[str] = frozenset(
    {"malformed", "unsupported_version", "oversized", "not_finite", "wrong_shape", "wrong_base_version",
     "wrong_payload", "unknown_participant", "unknown_task", "wrong_run", "strategy_error", "overflow",
     "unknown_sender", "wrong_sender", "not_enrolled"}
)  # fmt: skip
"""Reasons for which a discarded update is dead-lettered as well, for a person to look at. The others are ordinary."""


class IssueTask(NamedTuple):
    """Record the task in the next commit, then publish it with `Core.tensors_of` this command.

    At this point of the command list those tensors have the version `base_version`. `again` marks the repetition of a
    task that is in the ledger and that its participant lost.
    """

    task_id: str
    seq: int
    participant_id: str
    base_version: int
    training: TrainingConfig
    lease_s: float
    again: bool = False
    coded: bool = False
    """True if the update is asked for in the run's codec, because the participant has it."""
    downlink: Downlink | None = None
    """Form in which the model travels; None if it travels as it is."""
    former: tuple[str, ...] = ()
    """Earlier ids of the run, under which the participant may keep the codec's memory (schemas.messages.Task)."""


@dataclass(frozen=True, slots=True)
class CloseTask:
    """Note in the ledger that the task ended without an accepted update."""

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
    """Ack the update and send its receipt after the next commit; it is in the aggregation state by now."""

    delivery: DeliveryHandle
    update: Update
    staleness: int
    client_weight: float
    order: int
    """Position of this update among all accepted ones of the run, from 1. A replay follows this order."""
    group: int | None = None
    """The arrival group that the update came in time for; None if it was late, or if the strategy has no groups."""
    clamped: str = ""
    """Description of the claims that were clamped (coordinator.decisions.updates.claims); `update` has the clamped
    numbers."""
    carried: Carried | None = None
    """Size of the update, for the ledger; None in a study."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Count the update under its reason, dead-letter it if the reason is in POISON, and ack it after the commit."""

    delivery: DeliveryHandle
    reason: DiscardReason
    detail: str
    update: Update | None
    """The update; None if it could not be decoded."""
    staleness: int | None = None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """Record a new model version: these updates, with these weights, made it."""

    version: int
    update_ids: tuple[str, ...]
    weights: tuple[float, ...]
    orders: tuple[int, ...] | None = None
    """Positions of the updates among all accepted ones, for arrival groups, which may skip some; otherwise None."""
    by_timeout: bool = False
    """True if the buffer was not full: its timeout made the version (coordinator.decisions.versions.buffer_timer)."""
    plain: str | None = None
    """Reason for which the version is the plain mean and was not distilled; "" if it was distilled, and None if the
    strategy does not distil (coordinator.decisions.versions.distilling)."""


@dataclass(frozen=True, slots=True)
class TellUnfrozen:
    """Say that these tensors of the model's frozen part move from this version on, which was made just now."""

    version: int
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropBuffer:
    """Count these accepted updates as discarded: they were in the buffer of a version that failed."""

    update_ids: tuple[str, ...]
    reason: DiscardReason
    detail: str


@dataclass(frozen=True, slots=True)
class TellSetBack:
    """Say that the ledger is older than its run, and what is known to be lost. `first` is False if more is known of a
    set-back that was told before."""

    set_back: SetBack
    first: bool


@dataclass(frozen=True, slots=True)
class RepeatReceipts:
    """Repeat the ledger's receipts for these tasks, or withdraw them: the participant still holds them and they are
    over."""

    participant_id: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SayHello:
    """Ask these participants for a hello, after a restart."""

    participant_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Distil:
    """Distil this version, and answer with Distilled or DistilFailed. Until then no update may come to the core
    (`Core.distilling`)."""

    version: int
    seed: int
    """Seed of everything that the distillation draws, in [0, 2^63). It follows from the run's seed and the version."""
    ensemble: Ensemble


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the current version centrally and answer with EvaluationArrived."""

    version: int


@dataclass(frozen=True, slots=True)
class Finish:
    """End the run: commit, tell the participants, export the model."""

    reason: str


Command = (
    IssueTask
    | CloseTask
    | Withdraw
    | Accept
    | Discard
    | NewVersion
    | TellUnfrozen
    | DropBuffer
    | TellSetBack
    | RepeatReceipts
    | SayHello
    | Distil
    | Evaluate
    | Finish
)
