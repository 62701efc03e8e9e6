"""The status of a run, read from its ledger, for `fedmq status`, the live view and --json."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from fedmq.coordinator.decisions.events import SUPERSEDED
from fedmq.coordinator.decisions.records import ParticipantRecord, TaskRecord
from fedmq.coordinator.state.ledger.reader import LedgerReader, believed, check_files
from fedmq.coordinator.state.ledger.rows import EpochRow
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import LedgerError

RATE_WINDOW_S = 10.0
RECENT_UPDATES = 500
"""Number of updates that the last staleness and the rate are read from. A status costs the same late in a run."""
AWAY_AFTER_S = 60.0
BEING_MADE_S = 5.0
"""A ledger file of this age may not have its tables yet."""

RunState = Literal["running", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class ParticipantStatus:
    """One participant.

    `state` is training, late (its lease is over), idle, busy, declined, unreachable or away; done if the run is
    finished.
    """

    participant_id: str
    state: str
    num_examples: int
    last_seen_ago_s: float
    base_version: int | None
    """Base version of the task that it holds."""
    task_age_s: float | None
    last_staleness: int | None
    accepted: int
    discarded: int
    declined: int
    decline: str = ""
    """Reason for which it declined the last task that it answered; empty if it did not."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run at its last commit. Times are run time: the time for which the coordinator was up."""

    run_id: str
    state: RunState
    finished: str | None
    strategy: str
    version: int
    elapsed_s: float
    committed_ago_s: float
    coordinator: EpochRow | None
    """Epoch of the active coordinator, or of the last one that was active."""
    accepted: int
    updates_per_s: float
    """Accepted updates a second over the last 10 s of run time."""
    discarded: Mapping[str, int]
    clamped: Mapping[str, int]
    """Accepted updates in which a claim of the participant was cut down to its bound, by the claim's name."""
    staleness: Mapping[int, int]
    tasks_out: int
    metrics: Mapping[str, float]
    """Metrics of the newest central evaluation that worked."""
    evaluated_version: int | None
    federated_metrics: Mapping[str, float]
    """Metrics of the newest version that its participants reported of their own training: means over their examples."""
    evaluation_problem: str
    participants: tuple[ParticipantStatus, ...]
    versions_by_timeout: int = 0
    """Number of versions that their buffer's timeout made."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "staleness": {str(key): count for key, count in self.staleness.items()}}

    @property
    def mean_staleness(self) -> float | None:
        """Mean staleness of the accepted updates; None before the first."""
        count = sum(self.staleness.values())
        return sum(tau * n for tau, n in self.staleness.items()) / count if count else None


def read_status(run_dir: Path) -> RunStatus:
    """Read a run's folder, also while its coordinator writes. Raises LedgerError if there is no run."""
    path = RunFolder(run_dir).ledger
    with believed(path), LedgerReader(path) as ledger:
        run, coordinator = ledger.run(), ledger.newest_epoch()
        accepted = ledger.accepted()
        recent = ledger.updates(after=max(0, accepted - RECENT_UPDATES))
        evaluations = ledger.evaluations()
        version = ledger.version()
        reported = ledger.federated_metrics(after=version - 1) if version else []
        worked = [row for row in evaluations if row.metrics]
        problems = [row for row in evaluations if row.metrics or not row.detail.startswith(SUPERSEDED)][-1:]
        tasks = {task.participant_id: task for task in ledger.open_tasks()}
        last_staleness = {update.participant_id: update.staleness for update in recent}
        declines = ledger.last_declines()
        timeout_s = _setting(run.settings, "participant_timeout_s", AWAY_AFTER_S)
        participants = tuple(
            _participant(
                row.record,
                tasks.get(row.record.participant_id),
                run.elapsed_s,
                last_staleness.get(row.record.participant_id),
                _state_without_task(row.record, run.elapsed_s, timeout_s) if run.finished is None else "done",
                declines.get(row.record.participant_id, ""),
            )
            for row in ledger.participants()
        )
        committed_ago_s = max(0.0, time.time() - run.committed_wall_s)
        return RunStatus(
            run_id=run.run_id,
            state=_state(run.finished, coordinator, committed_ago_s),
            finished=run.finished,
            strategy=_strategy(run.settings),
            version=version,
            elapsed_s=run.elapsed_s,
            committed_ago_s=committed_ago_s,
            coordinator=coordinator,
            accepted=accepted,
            updates_per_s=_rate([update.run_s for update in recent], run.elapsed_s),
            discarded=ledger.discarded(),
            clamped=ledger.clamped(),
            staleness=ledger.staleness(),
            tasks_out=sum(task.state == "out" for task in tasks.values()),
            metrics=worked[-1].metrics if worked else {},
            evaluated_version=worked[-1].version if worked else None,
            federated_metrics=reported[-1].metrics if reported else {},
            evaluation_problem="".join(row.detail for row in problems if not row.metrics),
            participants=participants,
            versions_by_timeout=ledger.timeouts(),
        )


def has_begun(run_dir: Path) -> bool:
    """Return True if the folder's ledger holds a run. Raises LedgerError if the file there is no ledger."""
    path = RunFolder(run_dir).ledger
    if not check_files(path) or path.stat().st_size == 0:
        return False
    try:
        with LedgerReader(path) as ledger:
            return not ledger.is_new()
    except LedgerError:
        if time.time() - path.stat().st_mtime < BEING_MADE_S:
            return False
        raise


def read_curve(run_dir: Path, metric: str = "accuracy") -> list[tuple[float, float]]:
    """Return (run time in seconds, value) of each central evaluation that has this metric."""
    path = RunFolder(run_dir).ledger
    with believed(path), LedgerReader(path) as ledger:
        return [(row.run_s, row.metrics[metric]) for row in ledger.evaluations() if metric in row.metrics]


def newest_run(runs_dir: Path) -> Path:
    """Return the run whose ledger was written last, below `runs_dir` or below a demo's folder in it.

    Raises LedgerError if there is none.
    """
    found = [*runs_dir.glob("*/ledger.sqlite*"), *runs_dir.glob("*/*/ledger.sqlite*")]
    ledgers = sorted(found, key=lambda path: path.lstat().st_mtime)
    if not ledgers:
        raise LedgerError(f"There is no run below {runs_dir}: start one with fedmq coordinator, or name its folder.")
    return ledgers[-1].parent


def _state_without_task(record: ParticipantRecord, now_s: float, timeout_s: float) -> str:
    if not record.reachable:
        return "unreachable"
    if now_s - record.last_seen_s > timeout_s:
        return "away"
    if record.asked_again_at_s is not None and record.asked_again_at_s > now_s:
        return "declined"
    return "idle" if record.accepting else "busy"


def _participant(  # noqa: PLR0917 (a row's parts, in the order of its columns)
    record: ParticipantRecord,
    task: TaskRecord | None,
    now_s: float,
    last_staleness: int | None,
    otherwise: str,
    decline: str,
) -> ParticipantStatus:
    state = otherwise if task is None else "training" if task.state == "out" else "late"
    return ParticipantStatus(
        participant_id=record.participant_id,
        state=state,
        num_examples=record.num_examples,
        last_seen_ago_s=max(0.0, now_s - record.last_seen_s),
        base_version=None if task is None else task.base_version,
        task_age_s=None if task is None else max(0.0, now_s - task.issued_s),
        last_staleness=last_staleness,
        accepted=record.accepted,
        discarded=record.discarded,
        declined=record.declined,
        decline=decline,
    )


def _rate(times_s: list[float], now_s: float) -> float:
    window_s = min(RATE_WINDOW_S, now_s)
    return sum(at_s > now_s - window_s for at_s in times_s) / window_s if window_s > 0 else 0.0


def _setting(settings: Mapping[str, Any], name: str, default: float) -> float:
    run = settings.get("run")
    return float(run.get(name, default)) if isinstance(run, Mapping) else default


def _strategy(settings: Mapping[str, Any]) -> str:
    """Return the strategy's name in the federation file; the class name if it is the user's own."""
    found = settings.get("strategy")
    return str(found.get("name") or found.get("type", "")) if isinstance(found, Mapping) else str(found or "")


def _state(finished: str | None, coordinator: EpochRow | None, committed_ago_s: float) -> RunState:
    if finished is not None:
        return "finished"
    at_work = coordinator is not None and coordinator.ended_wall_s is None and _is_alive(coordinator, committed_ago_s)
    return "running" if at_work else "stopped"


def _is_alive(coordinator: EpochRow, committed_ago_s: float) -> bool:
    """Return True if the coordinator's process lives. A process of another host shows only by its commits."""
    if coordinator.host != socket.gethostname():
        return committed_ago_s < AWAY_AFTER_S
    try:
        return bool(psutil.Process(coordinator.pid).create_time() <= coordinator.began_wall_s + 1.0)
    except psutil.Error:
        return False
