"""What can happen to the agent, and what it can want done (h11's habit: no I/O here).

`agent.step(event, now) -> list of commands`; `now` is a monotonic clock in seconds. `delivery` is an opaque handle of
the service's. The service carries commands out in their order and feeds back the events that they cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedmq.schemas.messages import Decline, DeclineReason, Hello, Notice, Receipt, Task

DeliveryHandle = int


@dataclass(frozen=True, slots=True)
class Restored:
    """What the last process left on disk."""

    task: Task | None = None
    task_age_s: float | None = None
    """How long the task has been on this disk; None where the clocks cannot tell."""
    outbox: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """update_id -> (task_id, run_id): updates on disk. Those that are among `sent` too were sent in chunks, or cleared
    only in part."""
    sent: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """update_id -> (task_id, run_id): confirmed by the broker, without a receipt yet."""
    done: tuple[str, ...] = ()
    """Tasks that are over, oldest first: a late redelivery of one is not trained again."""
    unsettled: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """update_id -> (task_id, run_id): their verdicts decide what the participant remembers."""


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
class TaskSpooled:
    """SpoolTask worked: the task survives a crash now."""

    task_id: str
    delivery: DeliveryHandle


@dataclass(frozen=True, slots=True)
class SpoolFailed:
    """SpoolTask failed: the disk refused it (full, read-only), or, as `reason` says, its parameters cannot be had any
    more, or are more than this participant takes."""

    task_id: str
    delivery: DeliveryHandle
    detail: str
    reason: Literal["not_idle", "payload_lost", "unsupported"] = "not_idle"


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The trainer returned; the service holds the encoded update."""

    task_id: str
    num_examples: int


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The trainer raised, or returned what cannot be sent. `fatal`: no later task can fare better."""

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
    """`kept`: it was sent in chunks, and stays in the outbox until its receipt."""

    update_id: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class PublishFailed:
    update_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class NotAnnounced:
    """The manifest of an update that was sent in chunks is lost here."""

    update_id: str


@dataclass(frozen=True, slots=True)
class UpdateUnreadable:
    """The outbox has the update no more, or not whole."""

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
    """MoveMemory worked: what the update left is remembered."""

    update_id: str


@dataclass(frozen=True, slots=True)
class MemoryNotMoved:
    """MoveMemory failed (disk read-only)."""

    update_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class NoticeReceived:
    notice: Notice


@dataclass(frozen=True, slots=True)
class ConditionsChanged:
    """`unmet` is None when all hold, else the text of what does not."""

    unmet: str | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by: hellos and retries may be due."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Leave soon; what is not delivered by then stays on disk."""


Event = (
    Started | Connected | Disconnected | TaskReceived | TaskSpooled | SpoolFailed | TrainingFinished | TrainingFailed
    | OutboxWritten | OutboxFailed | PublishConfirmed | PublishFailed | DeclineConfirmed | DeclineFailed
    | NotAnnounced | UpdateUnreadable | ReceiptReceived | MemoryMoved | MemoryNotMoved | NoticeReceived
    | ConditionsChanged | Tick | StopRequested
)  # fmt: skip


# Commands


@dataclass(frozen=True, slots=True)
class SpoolTask:
    """Write the task to disk, then feed TaskSpooled or SpoolFailed. Parameters in chunks are fetched for that, which
    may take long."""

    task: Task
    delivery: DeliveryHandle


@dataclass(frozen=True, slots=True)
class CancelSpooling:
    """The task is not wanted any more: stop fetching its parameters. No event comes of it."""

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
    """Ask the trainer to stop, where it can; its result is discarded either way."""

    task_id: str


@dataclass(frozen=True, slots=True)
class WriteOutbox:
    """Write what will be remembered of it, then the finished update, then feed OutboxWritten or OutboxFailed."""

    task_id: str
    update_id: str


@dataclass(frozen=True, slots=True)
class ClearTask:
    """Take the task off the disk."""

    task_id: str


@dataclass(frozen=True, slots=True)
class PublishUpdate:
    """Publish the update from the outbox, then feed PublishConfirmed or PublishFailed. `from_start`: where it goes in
    chunks, those that were sent are of no use."""

    update_id: str
    task_id: str
    from_start: bool = False


@dataclass(frozen=True, slots=True)
class AnnounceAgain:
    """Publish the manifest of an update that was sent in chunks once more; feed NotAnnounced where there is none."""

    update_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class ClearOutbox:
    """Take the update off the disk."""

    update_id: str


@dataclass(frozen=True, slots=True)
class WriteSent:
    """Write down which updates await a receipt and which tasks are over."""

    sent: Mapping[str, tuple[str, str]]
    done: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MoveMemory:
    """The update is accepted: remember what it left, then feed MemoryMoved or MemoryNotMoved."""

    update_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class DropNextMemory:
    """The update is not accepted: what is remembered stays, and what it would have left goes off the disk."""

    update_id: str


@dataclass(frozen=True, slots=True)
class ClearMemory:
    """Take what is remembered of a run off the disk."""

    run_id: str


@dataclass(frozen=True, slots=True)
class SendHello:
    hello: Hello


@dataclass(frozen=True, slots=True)
class SendDecline:
    """Publish, then feed DeclineConfirmed or DeclineFailed."""

    decline: Decline


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log: an event and its fields (`schemas.local.event_log`)."""

    level: Literal["info", "warning", "error"]
    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Exit:
    """The loop ends: `error` is the text of an AppError, None for an ordinary end."""

    reason: Literal["run_finished", "stopped", "unsupported"]
    error: str | None = None


Command = (
    SpoolTask | CancelSpooling | Ack | StartTraining | CancelTraining | WriteOutbox | ClearTask | PublishUpdate
    | AnnounceAgain | ClearOutbox | WriteSent | MoveMemory | DropNextMemory | ClearMemory | SendHello | SendDecline
    | Note | Exit
)  # fmt: skip
