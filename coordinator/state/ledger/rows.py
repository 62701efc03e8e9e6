"""Rows: the plain values that go into the ledger and come out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedmq.coordinator.decisions.commands import Accept, Discard, DropBuffer, NewVersion
from fedmq.coordinator.decisions.events import EvaluationArrived
from fedmq.coordinator.decisions.records import ClosedState, ParticipantRecord, TaskRecord
from fedmq.coordinator.state.ledger.traffic import ModelBytes
from fedmq.schemas.local.clocks import Moment
from fedmq.schemas.parameters import Array

MOST_DISCARD_ROWS = 1000
"""Discards of one reason that have a row each, from the first. Later ones have a row if they close a task."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """The run as its ledger knows it. `finished` is the reason for its end; None while it goes on."""

    run_id: str
    run_uid: str
    settings: Mapping[str, Any]
    created_wall_s: float
    elapsed_s: float
    committed_wall_s: float
    finished: str | None


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One coordinator's time as the active one.

    `ended_wall_s` is None until it leaves by itself: None means that it works, was killed, or was taken over from.
    """

    epoch: int
    host: str
    pid: int
    began_wall_s: float
    ended_wall_s: float | None


BrokerState = Literal["connected", "disconnected", "blocked"]


@dataclass(frozen=True, slots=True)
class BrokerRow:
    """The last change of an epoch's connection to the broker. `blocked`: the broker takes no messages."""

    state: BrokerState
    detail: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint: the name of the file with its arrays, and its scalars."""

    seq: int
    file: str
    digest: str
    version: int
    accepted: int
    scalars: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ArchivedUpdate:
    """The place of an accepted update's tensors (coordinator.state.archive)."""

    accepted_order: int
    file: str
    offset: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class ArchivedVersion:
    """The place of a distilled version's floating tensors (coordinator.state.archive)."""

    version: int
    file: str
    offset: int
    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Base:
    """A file of the archive that holds the state after `accepted` updates."""

    accepted: int
    version: int
    file: str
    digest: str
    num_bytes: int
    made: Moment


@dataclass(frozen=True, slots=True)
class Stamp:
    """The moment of an event: run time, and Unix time for people."""

    run_s: float
    wall_s: float


@dataclass(slots=True)
class CommitGroup:
    """Everything that the transaction of one commit writes. Its updates are committed as a group."""

    accepted: list[tuple[Accept, Stamp]] = field(default_factory=list)
    versions: list[tuple[NewVersion, Stamp]] = field(default_factory=list)
    discards: list[tuple[Discard, Stamp]] = field(default_factory=list)
    drops: list[tuple[DropBuffer, Stamp]] = field(default_factory=list)
    evaluations: list[tuple[EvaluationArrived, Stamp]] = field(default_factory=list)
    participants: dict[str, ParticipantRecord] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    """Participants whose rows are deleted, before `participants` are written."""
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    memories: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    archived: list[ArchivedUpdate | ArchivedVersion] = field(default_factory=list)
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    """(seq, wire bytes, decoded bytes) of tasks that the broker has taken (coordinator.state.ledger.traffic)."""
    models: list[ModelBytes] = field(default_factory=list)
    """Models that were published to the stream, and tasks that refer to one."""
    finished: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a task: accepted (in `version`, None while buffered), discarded (why), or over without an update."""

    task_id: str
    participant_id: str
    state: ClosedState
    update_id: str | None = None
    version: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One model version: the number of updates in it, and its moment."""

    version: int
    num_updates: int
    run_s: float
    wall_s: float
    by_timeout: bool = False
    """True if its buffer was not full, and the buffer's timeout made it."""
    plain: str | None = None
    """Reason for which it is the plain mean, "" if it was distilled; None if the strategy does not distil."""


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One central evaluation. It has no metrics if it failed; `detail` then says why."""

    version: int
    metrics: Mapping[str, float]
    detail: str
    run_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class FederatedMetricsRow:
    """Mean of the metrics that participants reported with the updates of one version, weighted by `num_examples`.

    Each metric's mean covers the updates that have it. It describes local training on local data; it is not an
    evaluation of the version.
    """

    version: int
    num_updates: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One accepted update. `weight` and `version` are None while no version holds it."""

    accepted_order: int
    update_id: str
    task_id: str
    participant_id: str
    base_version: int
    staleness: int
    client_weight: float
    weight: float | None
    version: int | None
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float]
    train_s: float
    run_s: float
    wall_s: float
    arrival_group: int | None = None
    """The arrival group that the update came in time for; None if it came late, or if the strategy has no groups."""
    wire_bytes: int | None = None
    """Bytes that it took to the coordinator (coordinator.state.ledger.traffic). `updates_in` fills these two in; None
    elsewhere, and if they were not counted."""
    decoded_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ParticipantRow:
    """A participant as of the last commit that changed it."""

    record: ParticipantRecord
    wall_s: float
