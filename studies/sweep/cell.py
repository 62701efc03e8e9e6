"""One cell of a study: its values, its run, and its file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.coordinator.settings import unfreezing
from fedmq.coordinator.strategies.protocol import Strategy, max_participants
from fedmq.schemas.errors import ConfigError, InputError
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.methods import METHODS
from fedmq.studies.engine.outcome import Outcome, Stuck
from fedmq.studies.engine.pace import check_pace
from fedmq.studies.engine.settings import StudyRun
from fedmq.studies.population import recorded_runs as recorded
from fedmq.studies.population.laws import law_files
from fedmq.studies.population.population import Population
from fedmq.studies.problems.frozen import with_schedule
from fedmq.studies.problems.problem import Problem
from fedmq.studies.simulate import check_metrics, check_number, check_order, check_training, goals, simulate
from fedmq.studies.sweep.cell_identity import plain
from fedmq.studies.sweep.explosion import explosion_of

MODELS_BESIDE = 8
"""Models in memory besides those of the tasks: the current version, the strategy's buffer and moments, and the arrays
of an aggregation."""
FORMAT = 10
"""Format of a cell's file and of the engine's results. It is raised whenever the results of a seed change (a test has
them)."""


@dataclass(frozen=True)
class Cell:
    """One strategy on one population from one seed (studies.study)."""

    study: str
    label: str
    strategy: Strategy[Any]
    population: Population
    problem: Problem
    run: StudyRun
    training: TrainingConfig
    seed: int

    @cached_property
    def key(self) -> str:
        """Digest of everything that decides the result. The study's name and the strategy's label do not."""
        parts = (self.strategy, self.population, self.problem, self.run, self.training)
        paths = [*self.population.traces, *getattr(self.problem, "files", ()), *getattr(self.strategy, "files", ())]
        paths += [] if self.run.uplink is None else [self.run.uplink.file]
        paths += [*law_files(self.population), *law_files(self.problem)]
        files = [_contents(path) for path in paths if path]
        if self.population.run is not None:
            files.append(recorded.digest(self.population.run))
        text = json.dumps([FORMAT, self.seed, *map(plain, parts), *files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class CellResult:
    """A finished cell, as in the tables. Lists of participants are in the order of the population."""

    key: str
    strategy: str
    population: str
    seed: int
    finished: str
    """Limit or goal that ended it, "diverged", or "stuck"."""
    detail: str
    diverged_s: float | None
    time_s: float
    versions: int
    updates: int
    bytes_up: float
    bytes_down: float
    discarded: Mapping[str, int]
    dropouts: int
    missed_arrivals: int
    mean_staleness: float
    staleness: list[int]
    """Number of accepted updates with a staleness of 0, 1, 2, ..."""
    tasks_out: list[list[float]]
    """Concurrency over time, as at most 200 points (time_s, tasks)."""
    weight: list[float]
    """Effective weights: the sum of the aggregation coefficients of each participant's updates."""
    intended: list[float]
    """Intended weights: the client weight of each participant's last update, or of a first one if there was none."""
    accepted: list[int]
    """Accepted updates of each participant."""
    task_s: list[float]
    """Mean seconds that a task of each participant takes, apart from dropouts and times off."""
    evaluations: list[dict[str, Any]]
    cohorts: int
    backend: str
    digest: str
    took_s: float
    num_examples: list[int] = field(default_factory=list)
    """Training examples of each participant. Cells of older versions have none."""
    participant_ids: list[str] = field(default_factory=list)
    """Name of each participant. Cells of older versions have none."""
    tasks_issued: int | None = None
    """Tasks that participants took: the trips of clients. None in the file of an earlier state of fedmq."""
    tasks_withdrawn: int | None = None


def _contents(path: str) -> str:
    """Return a digest of a file; "" if it cannot be read, which the run itself reports."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def check_cell(cell: Cell, limit_bytes: int, judged_by: Sequence[str] = ()) -> None:
    """Deal the problem out and set up the strategy, without training.

    `judged_by` are the metrics that it must measure; "" stands for any. Raises InputError with the reason if the cell
    cannot be run. If it needs too much memory, the message has the number.
    """
    where = f"{cell.label} on {cell.population.name}"
    try:
        members = cell.population.members(cell.seed)
        federation = cell.problem.deal(members, cell.seed)
        cell.strategy.init(federation.initial)
        federation = with_schedule(federation, unfreezing(cell.training), cell.strategy)
        check_number(cell.strategy, cell.population)
        check_order(cell.population, cell.run)
        check_metrics(federation, [*goals(cell.run), *judged_by])
        check_training(federation, cell.strategy, cell.population, cell.run, cell.training)
        check_pace(federation.num_examples, cell.strategy, cell.population, members, cell.run, cell.training)
    except InputError as e:
        raise InputError(f"{where}: {e}") from None
    model_bytes = federation.initial.num_bytes
    out = min(cell.run.concurrency, cell.population.participants)
    if cell.run.arrivals_per_s is not None:
        out = cell.population.participants
    remembered = max_participants(cell.strategy) or 0
    data_bytes = getattr(federation, "data_bytes", 0)
    # The methods' memories of participants are in float64, and SCAFFOLD's tasks have two models.
    each = 2 if METHODS[cell.strategy.reply].remembers else 1
    needed = model_bytes * (each * (2 * out + remembered) + MODELS_BESIDE) + data_bytes
    if needed > limit_bytes:
        raise ConfigError(
            f"{where}: a cell takes about {needed:,} bytes ({needed / 2**30:.1f} GiB): a model has {model_bytes:,}, "
            f"{out} tasks out keep up to two each, the strategy remembers {remembered}, the data take {data_bytes:,}. "
            f"A process may take {limit_bytes:,} (memory_limit_bytes shared by all workers): lower run.concurrency, "
            "take fewer workers, or raise the limit"
        )


def run_cell(folder: Path, cell: Cell, on_progress: Callable[[float], None] | None = None) -> CellResult:
    """Run the cell and write its file, whole or not at all.

    `on_progress` gets the part of the run that is over, 0 to 1.
    """
    start = time.perf_counter()
    stop = cell.run.stop

    def on_version(now_s: float, versions: int, updates: int) -> None:
        assert on_progress is not None
        limits = ((now_s, stop.max_time_s), (versions, stop.max_versions), (updates, stop.max_updates))
        on_progress(max((at / limit for at, limit in limits if limit), default=0.0))

    # The final model of a run that diverges is not finite, and should not warn.
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            outcome = simulate(
                cell.strategy, cell.problem, cell.population, cell.run, cell.training, seed=cell.seed,
                on_version=None if on_progress is None else on_version,
            )  # fmt: skip
            detail = ""
        except Stuck as e:
            outcome, detail = e.outcome, str(e)
    result = _result(cell, outcome, detail, time.perf_counter() - start)
    path = _path(folder, cell)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(asdict(result)), encoding="utf-8")
    part.replace(path)
    return judged(result)


def read_cell(folder: Path, cell: Cell) -> CellResult | None:
    """Read what an earlier run left, with the labels of the present study; None if there is nothing that can be
    read."""
    try:
        fields = json.loads(_path(folder, cell).read_text(encoding="utf-8"))
        result = CellResult(**fields)
    except (OSError, ValueError, TypeError):
        return None
    return judged(CellResult(**{**asdict(result), "strategy": cell.label, "population": cell.population.name}))


def judged(result: CellResult) -> CellResult:
    """Return the result of a run, which is called diverged if it exploded before it ended (studies.sweep.explosion).

    The cell's file has the run's own end.
    """
    explosion = None if result.finished == "diverged" else explosion_of(result.evaluations, result.time_s)
    if explosion is None:
        return result
    why = "; ".join(text for text in (explosion.why, result.detail) if text)
    return replace(result, finished="diverged", detail=why, diverged_s=explosion.at_s)


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def _result(cell: Cell, outcome: Outcome, detail: str, took_s: float) -> CellResult:
    rows = outcome.updates.columns()
    staleness, participants, count = rows["staleness"], outcome.participants, len(rows["staleness"])
    shown = np.unique(np.linspace(0, count - 1, 200).astype(int)) if count else np.array([], int)
    return CellResult(
        key=cell.key,
        strategy=cell.label,
        population=cell.population.name,
        seed=cell.seed,
        finished=outcome.finished,
        detail=detail,
        diverged_s=outcome.diverged_s,
        time_s=outcome.time_s,
        versions=len(outcome.version_s),
        updates=count,
        bytes_up=outcome.bytes_up,
        bytes_down=outcome.bytes_down,
        discarded=outcome.discarded,
        tasks_issued=outcome.tasks_issued,
        tasks_withdrawn=outcome.tasks_withdrawn,
        dropouts=outcome.dropouts,
        missed_arrivals=outcome.missed_arrivals,
        mean_staleness=float(staleness.mean()) if count else 0.0,
        staleness=np.bincount(staleness).tolist() if count else [],
        tasks_out=[[float(rows["time_s"][i]), int(rows["tasks_out"][i])] for i in shown],
        weight=[p.weight for p in participants],
        intended=outcome.intended_weights,
        task_s=[float(f"{mean:.4g}") for mean in outcome.mean_task_s],
        accepted=[p.accepted for p in participants],
        num_examples=outcome.num_examples,
        participant_ids=outcome.participant_ids,
        evaluations=[
            {"version": e.version, "time_s": e.time_s, "updates": e.updates, "bytes_up": e.bytes_up,
             "bytes_down": e.bytes_down, "tasks_issued": e.tasks_issued, "tasks_withdrawn": e.tasks_withdrawn,
             "metrics": dict(e.metrics)}
            for e in outcome.evaluations
        ],
        cohorts=outcome.cohorts,
        backend=outcome.backend,
        digest=outcome.digest(),
        took_s=took_s,
    )  # fmt: skip
