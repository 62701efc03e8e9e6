"""Events that the agent is fed, and commands that it returns. As in h11, there is no I/O here.

`agent.step(event, now)` returns a list of commands; `now` is a monotonic clock in seconds. `delivery` is an opaque
handle of the service. The service carries out commands in their order and feeds back the events that they cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedmq.schemas.messages import Decline, DeclineReason, HeldModel, Hello, Notice, Receipt, Task

DeliveryHandle = int


@dataclass(frozen=True, slots=True)
class Restored:
    """The state that the last process left on disk."""

    task: Task | None = None
    task_age_s: float | None = None
    """Seconds that the task has been on this disk; None if the clocks cannot tell."""
    outbox: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """update_id -> (task_id, run_id) of the updates on disk. An update that is in `sent` too went in chunks, or was
    cleared only in part."""
    sent: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """update_id -> (task_id, run_id) of the updates that the broker has confirmed and that have no receipt yet."""
    done: tuple[str, ...] = ()
    """task_ids that are over, oldest first. A late redelivery of one is not trained again."""
    unsettled: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """update_id -> (task_id, run_id) of the updates whose verdicts decide on the method's memory."""
    model: HeldModel | None = None
    """The hidden state on disk."""


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The service is up and has read its spool."""


@dataclass(frozen=True, slots=True)
class Connected:
    pass


@dataclass(frozen=True, slots=True)
class Disconnected:
    pass


@dataclass(frozen=True, slots=True)
class TaskReceived:
    task: Task
    delivery: DeliveryHandle


@dataclass(frozen=True, slots=True)
class TaskUnreadable:
    """A message arrived that names a task, and that cannot be read or is not signed. It is acked."""

    task_id: str
    run_id: str
    detail: str
    reason: Literal["unreadable", "bad_signature"] = "unreadable"


@dataclass(frozen=True, slots=True)
class TaskSpooled:
    """SpoolTask worked: the task survives a crash now."""

    task_id: str
    delivery: DeliveryHandle
    model: HeldModel | None = None
    """The hidden state that is on disk with it; None if it has none."""


@dataclass(frozen=True, slots=True)
class SpoolFailed:
    """SpoolTask failed.

    not_idle      the disk refused the task: it is full or read-only
    payload_lost  its parameters cannot be had any more
    unsupported   its parameters are larger than this participant allows
    model_differs what it is to train from cannot be made here
    unreadable    its parameters in chunks cannot be read
    bad_signature the coordinator has not signed it with what it is to train from
    """

    task_id: str
    delivery: DeliveryHandle
    detail: str
    reason: Literal["not_idle", "payload_lost", "unsupported", "model_differs", "unreadable", "bad_signature"] = (
        "not_idle"
    )


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The trainer returned, and the service holds the encoded update."""

    task_id: str
    num_examples: int


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The trainer raised, or its result cannot be sent. `fatal` means that no later task can fare better."""

    task_id: str
    reason: DeclineReason
    detail: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class OutboxWritten:
    """WriteOutbox worked: the update survives a crash now."""

    task_id: str


@dataclass(frozen=True, slots=True)
class OutboxFailed:
    task_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class PublishConfirmed:
    """The broker has the update. `kept`: it went in chunks, and stays in the outbox until its receipt."""

    update_id: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class PublishFailed:
    update_id: str
    detail: str
    nowhere: bool = False
    """True if there is no place on the broker for it: an exchange or a queue is gone, or was not made yet."""


@dataclass(frozen=True, slots=True)
class NotAnnounced:
    """The manifest of an update that was sent in chunks is lost here."""

    update_id: str


@dataclass(frozen=True, slots=True)
class UpdateUnreadable:
    """The update is no longer in the outbox, or not whole."""

    update_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeclineConfirmed:
    task_id: str


@dataclass(frozen=True, slots=True)
class DeclineFailed:
    task_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class ReceiptReceived:
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class MemoryMoved:
    """MoveMemory worked: the memory that the update left is the run's memory now."""

    update_id: str


@dataclass(frozen=True, slots=True)
class MemoryNotMoved:
    """MoveMemory failed, because the disk is read-only for example."""

    update_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class NoticeReceived:
    notice: Notice


@dataclass(frozen=True, slots=True)
class ConditionsChanged:
    """Conditions changed. `unmet` is None if all hold, else it names the one that does not."""

    unmet: str | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: hellos and retries may be due."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A stop was asked for. Updates that are not delivered in time stay on disk."""


Event = (
    Started | Connected | Disconnected | TaskReceived | TaskUnreadable | TaskSpooled | SpoolFailed | TrainingFinished
    | TrainingFailed | OutboxWritten | OutboxFailed | PublishConfirmed | PublishFailed | DeclineConfirmed
    | DeclineFailed | NotAnnounced | UpdateUnreadable | ReceiptReceived | MemoryMoved | MemoryNotMoved | NoticeReceived
    | ConditionsChanged | Tick | StopRequested
)  # fmt: skip


# Commands


@dataclass(frozen=True, slots=True)
class SpoolTask:
    """Write the task to disk, then feed TaskSpooled or SpoolFailed. Parameters in chunks are fetched first, which may
    take long."""

    task: Task
    delivery: DeliveryHandle


@dataclass(frozen=True, slots=True)
class CancelSpooling:
    """Stop fetching the parameters of a task that is not wanted any more. No event follows."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Ack:
    delivery: DeliveryHandle


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Hand the spooled task to the training thread, then feed TrainingFinished or TrainingFailed."""

    task: Task


@dataclass(frozen=True, slots=True)
class CancelTraining:
    """Ask the trainer to stop, if it can. Its result is discarded either way."""

    task_id: str


@dataclass(frozen=True, slots=True)
class WriteOutbox:
    """Write the update's next memory, if any, then the update, then feed OutboxWritten or OutboxFailed."""

    task_id: str
    update_id: str


@dataclass(frozen=True, slots=True)
class ClearTask:
    """Delete the task from the disk."""

    task_id: str


@dataclass(frozen=True, slots=True)
class PublishUpdate:
    """Publish the update from the outbox, then feed PublishConfirmed or PublishFailed. `from_start` means that chunks
    which were sent before are of no use."""

    update_id: str
    task_id: str
    from_start: bool = False


@dataclass(frozen=True, slots=True)
class AnnounceAgain:
    """Publish the manifest of an update that went in chunks once more. Feed NotAnnounced if there is none."""

    update_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class ClearOutbox:
    """Delete the update from the disk."""

    update_id: str


@dataclass(frozen=True, slots=True)
class WriteSent:
    """Write to disk which updates await a receipt and which tasks are over."""

    sent: Mapping[str, tuple[str, str]]
    done: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MoveMemory:
    """Make the memory that an accepted update left the run's memory, then feed MemoryMoved or MemoryNotMoved."""

    update_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class DropNextMemory:
    """Delete the memory that an update would have left, because it is not accepted. The run's memory stays."""

    update_id: str


@dataclass(frozen=True, slots=True)
class ForgetSoftMemory:
    """Delete the memory of this task's run, if the participant can go on without it (schemas.methods.MemoryKind)."""

    task_id: str


@dataclass(frozen=True, slots=True)
class ClearMemory:
    """Delete the memory of a run from the disk."""

    run_id: str


@dataclass(frozen=True, slots=True)
class SendHello:
    hello: Hello


@dataclass(frozen=True, slots=True)
class SendDecline:
    """Publish the decline, then feed DeclineConfirmed or DeclineFailed."""

    decline: Decline


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log: an event and its fields (`schemas.local.event_log`)."""

    level: Literal["info", "warning", "error"]
    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Exit:
    """End the service's loop. `error` is the text of an AppError, None for an ordinary end."""

    reason: Literal["run_finished", "stopped", "unsupported"]
    error: str | None = None


Command = (
    SpoolTask | CancelSpooling | Ack | StartTraining | CancelTraining | WriteOutbox | ClearTask | PublishUpdate
    | AnnounceAgain | ClearOutbox | WriteSent | MoveMemory | DropNextMemory | ForgetSoftMemory | ClearMemory
    | SendHello | SendDecline
    | Note | Exit
)  # fmt: skip
