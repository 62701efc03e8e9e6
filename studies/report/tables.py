"""The tidy tables of a study, each as CSV and as Parquet:

evaluations     a row for each value that was measured
cells           a row for each cell
participants    a row for each participant of each cell
differences     a row for each measure of each strategy against the first one, paired by seed
                (studies.sweep.differences)
tuning          a row for each parameter of each trial

A spreadsheet takes a text that begins like a formula for one. So the CSV has an apostrophe before it (`as_text`). The
Parquet has every text as it is.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.report.texts import as_text
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.differences import difference_rows
from fedmq.studies.sweep.tuning import Tuned

_CELL = (
    "strategy", "population", "seed", "finished", "detail", "diverged_s", "time_s", "versions", "updates", "bytes_up",
    "bytes_down", "tasks_issued", "tasks_withdrawn", "dropouts", "missed_arrivals", "mean_staleness", "cohorts",
    "backend", "digest", "took_s", "key",
)  # fmt: skip
COLUMNS: dict[str, dict[str, str]] = {
    "evaluations": {
        "strategy": "string", "population": "string", "seed": "int64", "version": "int64", "time_s": "double",
        "updates": "int64", "bytes_up": "double", "bytes_down": "double",
        "tasks_issued": "int64", "tasks_withdrawn": "int64", "metric": "string", "value": "double",
    },
    "cells": {
        **dict.fromkeys(("strategy", "population"), "string"), "seed": "int64",
        **dict.fromkeys(("finished", "detail"), "string"), "diverged_s": "double", "time_s": "double",
        **dict.fromkeys(("versions", "updates"), "int64"), **dict.fromkeys(("bytes_up", "bytes_down"), "double"),
        **dict.fromkeys(("tasks_issued", "tasks_withdrawn", "dropouts", "missed_arrivals"), "int64"),
        "mean_staleness": "double", "cohorts": "int64",
        **dict.fromkeys(("backend", "digest"), "string"), "took_s": "double", "key": "string", "discarded": "int64",
    },
    "participants": {
        **dict.fromkeys(("strategy", "population"), "string"), **dict.fromkeys(("seed", "participant"), "int64"),
        "participant_id": "string", "num_examples": "int64", "mean_task_s": "double", "accepted": "int64",
        **dict.fromkeys(("weight", "intended_weight", "weight_share", "intended_share"), "double"),
    },
    "differences": {
        **dict.fromkeys(("population", "strategy", "reference", "measure", "metric"), "string"),
        **dict.fromkeys(("target", "difference", "low", "high"), "double"),
        **dict.fromkeys(("seeds_paired", "seeds_left_out", "reached", "reference_reached"), "int64"),
    },
    "tuning": {
        "strategy": "string", "population": "string", "trial": "int64", "parameter": "string", "value": "double",
        "metric": "string", "score": "double", "score_low": "double", "score_high": "double", "seeds": "int64",
        "reached_s": "double", "finished": "string", "chosen": "bool",
    },
}  # fmt: skip
"""Columns of the tables with Parquet's types. An empty table has them as well."""

ROWS_AT_ONCE = 50_000
"""Rows in memory at one time, and of a row group of a Parquet file."""


def write_tables(
    folder: Path, results: Sequence[CellResult], tunings: Sequence[Tuned] = (), *, target: TargetMetric | None = None
) -> list[Path]:
    """Write all tables, each whole or not at all, and return their paths. `target` is that of `write_report`."""
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "evaluations": list(evaluation_rows(results)),
        "cells": list(cell_rows(results)),
        "participants": participant_rows(results),
        "differences": list(difference_rows(results, target)),
        "tuning": list(tuning_rows(tunings)),
    }
    written: list[Path] = []
    for name, rows in tables.items():
        paths = folder / f"{name}.csv", folder / f"{name}.parquet"
        _write(*paths, iter(rows), COLUMNS[name])
        written += paths
    return written


def evaluation_rows(results: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of each evaluation of each cell."""
    for result in results:
        for e in result.evaluations:
            for metric, value in e["metrics"].items():
                yield {
                    "strategy": result.strategy, "population": result.population, "seed": result.seed,
                    "version": e["version"], "time_s": e["time_s"], "updates": e["updates"],
                    "bytes_up": e["bytes_up"], "bytes_down": e["bytes_down"],
                    "tasks_issued": e.get("tasks_issued"), "tasks_withdrawn": e.get("tasks_withdrawn"),
                    "metric": metric, "value": value,
                }  # fmt: skip


def cell_rows(results: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """Yield a row for each cell, with all discards in one column."""
    for result in results:
        yield {name: getattr(result, name) for name in _CELL} | {"discarded": sum(result.discarded.values())}


def tuning_rows(tunings: Sequence[Tuned]) -> Iterator[dict[str, Any]]:
    """Yield a row for each parameter of each trial of each strategy on each population."""
    for tuned in tunings:
        for number, trial in enumerate(tuned.trials, 1):
            lowest, highest = trial.extremes
            for parameter, value in trial.values.items():
                yield {
                    "strategy": tuned.strategy, "population": tuned.population, "trial": number,
                    "parameter": parameter, "value": value, "metric": tuned.metric, "score": trial.score,
                    "score_low": lowest, "score_high": highest, "seeds": len(trial.scores),
                    "reached_s": trial.reached_s, "finished": trial.finished, "chosen": trial is tuned.best,
                }  # fmt: skip


def participant_rows(results: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """Yield a row for each participant of each cell.

    Shares are parts of the sum over the participants of the cell: effective weights beside intended ones.
    """
    for result in results:
        total, intended = math.fsum(result.weight), math.fsum(result.intended)
        for i, (task_s, accepted, weight, own) in enumerate(
            zip(result.task_s, result.accepted, result.weight, result.intended, strict=True)
        ):
            yield {
                "strategy": result.strategy, "population": result.population, "seed": result.seed, "participant": i,
                "participant_id": result.participant_ids[i] if result.participant_ids else None,
                "num_examples": result.num_examples[i] if result.num_examples else None,
                "mean_task_s": task_s, "accepted": accepted, "weight": weight, "intended_weight": own,
                "weight_share": weight / total if total else 0.0, "intended_share": own / intended if intended else 0.0,
            }  # fmt: skip


def _write(csv_path: Path, parquet_path: Path, rows: Iterator[dict[str, Any]], columns: dict[str, str]) -> None:
    """Write the rows in both forms, some at a time: a study may have millions of them."""
    import pyarrow as pa  # here, so that processes that run cells do not load it
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    csv_part, parquet_part = csv_path.with_suffix(".csv.part"), parquet_path.with_suffix(".parquet.part")
    with csv_part.open("w", encoding="utf-8", newline="") as file, pq.ParquetWriter(parquet_part, schema) as parquet:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            writer.writerows({name: as_text(value) for name, value in row.items()} for row in some)
            parquet.write_table(pa.Table.from_pylist(some, schema=schema))
    csv_part.replace(csv_path)
    parquet_part.replace(parquet_path)
