"""The tidy tables of a study, each as CSV and as Parquet:

evaluations     a row for each value that was measured
cells           a row for each cell
differences     a row for each measure of each strategy against the first one, paired by seed
(studies.sweep.differences) tuning          a row for each parameter of each trial
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedmq.coordinator.settings import TargetMetric
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.differences import difference_rows
from fedmq.studies.sweep.tuning import Tuned

_CELL = (
    "strategy", "population", "seed", "finished", "detail", "diverged_s", "time_s", "versions", "updates", "bytes_up",
    "bytes_down", "dropouts", "missed_arrivals", "mean_staleness", "cohorts", "backend", "digest", "took_s", "key",
)  # fmt: skip
COLUMNS: dict[str, dict[str, str]] = {
    "evaluations": {
        "strategy": "string", "population": "string", "seed": "int64", "version": "int64", "time_s": "double",
        "updates": "int64", "bytes_up": "double", "bytes_down": "double", "metric": "string", "value": "double",
    },
    "cells": {
        **dict.fromkeys(("strategy", "population"), "string"), "seed": "int64",
        **dict.fromkeys(("finished", "detail"), "string"), "diverged_s": "double", "time_s": "double",
        **dict.fromkeys(("versions", "updates"), "int64"), **dict.fromkeys(("bytes_up", "bytes_down"), "double"),
        **dict.fromkeys(("dropouts", "missed_arrivals"), "int64"), "mean_staleness": "double", "cohorts": "int64",
        **dict.fromkeys(("backend", "digest"), "string"), "took_s": "double", "key": "string", "discarded": "int64",
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


def write_tables(
    folder: Path, results: Sequence[CellResult], tunings: Sequence[Tuned] = (), *, target: TargetMetric | None = None
) -> list[Path]:
    """Write all tables, each whole or not at all, and return their paths. `target` is that of `write_report`."""
    tables = {
        "evaluations": list(evaluation_rows(results)),
        "cells": list(cell_rows(results)),
        "differences": list(difference_rows(results, target)),
        "tuning": list(tuning_rows(tunings)),
    }
    written = []
    for name, rows in tables.items():
        written.append(_write_csv(folder / f"{name}.csv", rows, COLUMNS[name]))
        written.append(_write_parquet(folder / f"{name}.parquet", rows, COLUMNS[name]))
    return written


def evaluation_rows(results: Sequence[CellResult]) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of each evaluation of each cell."""
    for result in results:
        for e in result.evaluations:
            for metric, value in e["metrics"].items():
                yield {
                    "strategy": result.strategy, "population": result.population, "seed": result.seed,
                    "version": e["version"], "time_s": e["time_s"], "updates": e["updates"],
                    "bytes_up": e["bytes_up"], "bytes_down": e["bytes_down"], "metric": metric, "value": value,
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


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> Path:
    part = path.with_suffix(".csv.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
    return path


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> Path:
    import pyarrow as pa  # here, so that processes that run cells do not load it
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    part = path.with_suffix(".parquet.part")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), part)
    part.replace(path)
    return path
