"""The summary of a run, as its coordinator leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmq.coordinator.state.ledger.reader import open_if_made
from fedmq.coordinator.state.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The state of a run. `finished` is the reason, None if the run can be resumed; `model_path` is set once it is
    finished."""

    run_id: str
    version: int
    accepted: int
    discarded: Mapping[str, int]
    finished: str | None
    metrics: Mapping[str, float]
    """Metrics of the last central evaluation that succeeded."""
    model_path: Path | None


def summary_of(folder: RunFolder, run_id: str) -> RunSummary:
    """Return the summary of the run in this folder; it has just begun if there is no ledger yet."""
    reader = open_if_made(folder.ledger)
    if reader is None:
        return RunSummary(run_id, 0, 0, {}, None, {}, None)
    with reader as ledger, ledger.at_one_moment():
        finished = None if ledger.is_new() else ledger.run().finished
        models = [path for path in (folder.final_model, folder.final_parameters) if path and path.exists()]
        metrics = [row.metrics for row in ledger.evaluations() if row.metrics]
        return RunSummary(
            run_id=run_id,
            version=ledger.version(),
            accepted=ledger.accepted(),
            discarded=ledger.discarded(),
            finished=finished,
            metrics=metrics[-1] if metrics else {},
            model_path=models[0] if models and finished is not None else None,
        )
