"""The status of a run, read from its ledger, for `fedmq status`, the live view and --json."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from fedmq.coordinator.decisions.events import SUPERSEDED
from fedmq.coordinator.decisions.records import ParticipantRecord, TaskRecord
from fedmq.coordinator.state.ledger.forms import PLAIN, Forms
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import BrokerRow, BrokerState, EpochRow
from fedmq.coordinator.state.ledger.traffic import NO_MODELS, ModelBytes, Traffic
from fedmq.coordinator.state.ledger.trust import believed, check_files
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.schemas.errors import LedgerError
from fedmq.schemas.local.locks import holding

RATE_WINDOW_S = 10.0
RECENT_UPDATES = 500
"""Number of updates that the last staleness and the rate are read from. A status costs the same late in a run."""
AWAY_AFTER_S = 60.0
BEING_MADE_S = 5.0
"""A ledger file of this age may not have its tables yet."""
NO_TRAFFIC = Traffic(0, 0, 0)

RunState = Literal["running", "waiting", "stopped", "finished"]
WhyAway = Literal["", "silent", "left", "revoked"]


@dataclass(frozen=True, slots=True)
class ParticipantStatus:
    """One participant.

    `state` is training, late (its lease is over), idle, busy, declined, unreachable or away; done if the run is
    finished. It is what the coordinator last knew, if that is stopped.
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
    why_away: WhyAway = ""
    """Reason of its absence: nothing was heard from it, its process said that it ends, or it is in the fleet no
    more."""
    lacks: str = ""
    """Codec, or "zstd", that the run asks for and it does not have: its updates are plain. Empty if it has all."""


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The active coordinator's connection to the broker, since its last change."""

    state: BrokerState
    detail: str
    since_s: float
    """Seconds from that change until now."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run at its last commit. Ages are counted from now. Run time is the time for which the coordinator was up."""

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
    set_backs: tuple[str, ...]
    """Sentences on what was lost, each time that the folder turned out to be restored from a backup, oldest first."""
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
    plain_versions: tuple[int, str] = (0, "")
    """Number of versions that could not be distilled, and why the newest of them could not."""
    silence_s: float = AWAY_AFTER_S
    """Seconds without a commit that are no silence yet: participants that are here say hello more often."""
    coordinator_paused: bool = False
    """True if the active coordinator's process is stopped by a signal, or by a debugger."""
    broker: BrokerStatus | None = None
    """None if the run does not go on, or nothing has changed since its coordinator became active."""
    coordinator_elsewhere: bool = False
    """True if the active coordinator is on another host, and only its commits show that it works."""

    waiting_pids: tuple[int, ...] = ()
    """Coordinators of this machine that have the run folder while none is active."""
    bytes_up: Traffic = NO_TRAFFIC
    """Bytes of the accepted updates that were counted: those of an older fedmq were not."""
    bytes_down: Traffic = NO_TRAFFIC
    """Bytes of the tasks that the broker has taken, repeats included, likewise."""
    models: ModelBytes = NO_MODELS
    """Models that tasks refer to: their bytes, as the coordinator sent them, and as `bytes_down` counts them."""
    forms: Forms = PLAIN
    """Forms in which updates and models travel."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        told = {**asdict(self), "staleness": {str(key): count for key, count in self.staleness.items()}}
        for key, traffic in (("bytes_up", self.bytes_up), ("bytes_down", self.bytes_down)):
            told[key] = {**asdict(traffic), "ratio": traffic.ratio}
        del told["forms"], told["models"]["version"]
        return {**told, **self.forms.to_json()}

    @property
    def mean_staleness(self) -> float | None:
        """Mean staleness of the accepted updates; None before the first."""
        count = sum(self.staleness.values())
        return sum(tau * n for tau, n in self.staleness.items()) / count if count else None


def read_status(run_dir: Path) -> RunStatus:
    """Read a run's folder, also while its coordinator writes. Raises LedgerError if there is no run."""
    path = RunFolder(run_dir).ledger
    with believed(path), LedgerReader(path) as ledger, ledger.at_one_moment():
        run, coordinator = ledger.run(), ledger.newest_epoch()
        now = time.time()
        committed_ago_s = max(0.0, now - run.committed_wall_s)
        process = _Process() if run.finished is not None else _look_at(coordinator, committed_ago_s)
        running = process.alive
        waiting = [] if running or run.finished is not None else holding(RunFolder(run_dir).lock)
        elapsed_s = run.elapsed_s + (committed_ago_s if running else 0.0)
        broker = _broker(ledger.broker(), now) if running else None
        heard_s = elapsed_s if running and not process.paused else run.elapsed_s
        if broker is not None and broker.state == "disconnected":
            heard_s -= broker.since_s
        timeout_s = _setting(run.settings, "participant_timeout_s", AWAY_AFTER_S)
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
        forms = Forms.of(run.settings)
        participants = []
        for row in ledger.participants():
            record, name = row.record, row.record.participant_id
            task = tasks.get(name)
            why_away = "" if run.finished is not None else _why_away(record, heard_s - timeout_s)
            state = "done" if run.finished is not None else _state_of(record, task, heard_s, why_away)
            participants.append(
                ParticipantStatus(
                    participant_id=name,
                    state=state,
                    num_examples=record.num_examples,
                    # Run time stands still while no coordinator works; the row's time does not.
                    last_seen_ago_s=max(committed_ago_s + run.elapsed_s - record.last_seen_s, now - row.wall_s, 0.0),
                    base_version=None if task is None else task.base_version,
                    task_age_s=None if task is None else max(0.0, committed_ago_s + run.elapsed_s - task.issued_s),
                    last_staleness=last_staleness.get(name),
                    accepted=record.accepted,
                    discarded=record.discarded,
                    declined=record.declined,
                    decline=declines.get(name, ""),
                    why_away=why_away,
                    lacks=(forms.uplink and forms.uplink.lacking(record.codecs)) or "",
                )
            )
        return RunStatus(
            run_id=run.run_id,
            state="finished" if run.finished is not None else _state(running, waiting),
            finished=run.finished,
            strategy=_strategy(run.settings),
            version=version,
            elapsed_s=elapsed_s,
            committed_ago_s=committed_ago_s,
            coordinator=coordinator,
            accepted=accepted,
            updates_per_s=_rate([update.run_s for update in recent], elapsed_s),
            discarded=ledger.discarded(),
            clamped=ledger.clamped(),
            set_backs=tuple(one.told() for one in ledger.set_backs()),
            staleness=ledger.staleness(),
            tasks_out=sum(task.state == "out" for task in tasks.values()),
            metrics=worked[-1].metrics if worked else {},
            evaluated_version=worked[-1].version if worked else None,
            federated_metrics=reported[-1].metrics if reported else {},
            evaluation_problem="".join(row.detail for row in problems if not row.metrics),
            versions_by_timeout=ledger.timeouts(),
            plain_versions=ledger.plain_versions(),
            participants=tuple(participants),
            silence_s=max(AWAY_AFTER_S, timeout_s),
            coordinator_paused=process.paused,
            broker=broker,
            coordinator_elsewhere=process.elsewhere,
            waiting_pids=tuple(waiting),
            bytes_up=ledger.bytes_up(),
            bytes_down=ledger.bytes_down(),
            models=ledger.bytes_of_models(),
            forms=forms,
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


def _broker(row: BrokerRow | None, now: float) -> BrokerStatus | None:
    return None if row is None else BrokerStatus(row.state, row.detail, max(0.0, now - row.wall_s))


def _why_away(record: ParticipantRecord, silent_before_s: float) -> WhyAway:
    if record.revoked:
        return "revoked"
    if record.left:
        return "left"
    return "silent" if record.last_seen_s < silent_before_s else ""


def _state(running: bool, waiting: Sequence[int]) -> RunState:
    if running:
        return "running"
    return "waiting" if waiting else "stopped"


def _state_of(record: ParticipantRecord, task: TaskRecord | None, now_s: float, why_away: WhyAway) -> str:
    if why_away:
        return "away"
    if task is not None:
        return "training" if task.state == "out" else "late"
    if not record.reachable:
        return "unreachable"
    if record.asked_again_at_s is not None and record.asked_again_at_s > now_s:
        return "declined"
    return "idle" if record.accepting else "busy"


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


@dataclass(frozen=True, slots=True)
class _Process:
    """The active coordinator's process, as far as it can be seen from here."""

    alive: bool = False
    paused: bool = False
    elsewhere: bool = False


def _look_at(coordinator: EpochRow | None, committed_ago_s: float) -> _Process:
    """Look for the process. One of another host shows only by its commits."""
    if coordinator is None or coordinator.ended_wall_s is not None:
        return _Process()
    if coordinator.host != socket.gethostname():
        return _Process(alive=committed_ago_s < AWAY_AFTER_S, elsewhere=True)
    try:
        process = psutil.Process(coordinator.pid)
        alive = process.create_time() <= coordinator.began_wall_s + 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return _Process(alive, paused=process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP})
    except psutil.Error:
        return _Process()
