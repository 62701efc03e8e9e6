"""`fedmq study`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedmq.cli.commands import options
from fedmq.config.file import load_config
from fedmq.coordinator.settings import TargetMetric
from fedmq.schemas.errors import ConfigError
from fedmq.studies.study import Study
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.intervals import mean_text
from fedmq.studies.sweep.measures import cost_of, final_value, metrics_of
from fedmq.studies.sweep.pool import OnCell, OnProgress
from fedmq.studies.sweep.tuning import Tuned

Order = Literal["drawn", "recorded"]


def command(  # noqa: PLR0917 - the flags of a command line
    file: Annotated[Path | None, typer.Argument(help="The study's file.", show_default=False)] = None,
    from_run: Annotated[
        Path | None,
        typer.Option("--from-run", help="A recorded run's folder: its participants are the population."),
    ] = None,
    order: Annotated[
        Order, typer.Option(help="Of the run's tasks: durations drawn anew, or everything when it was.")
    ] = "drawn",
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The run's federation file, in place of FILE.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder of the results; wins over the file.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, help="Processes; all cores without it.")
    ] = None,
    _debug: options.Debug = False,
) -> None:
    """Compare strategies in virtual time: every strategy, population and seed of FILE, with the coordinator's own core.

    Cells that are finished are not run again: after Ctrl-C the same command goes on. With --from-run the population is
    a recorded run's: what would other strategies have made of its participants? FILE says which, on what problem; with
    --config in place of FILE the problem is the run's own app.
    """
    study, folder = _study(file, from_run, order, config)
    folder = out or folder
    console = Console(markup=False, emoji=False)  # labels are text, whatever brackets and colons are in them
    tuned: list[Tuned] = []
    with _progress(console) as (on_cell, on_progress):
        try:
            results = study.run(
                folder, workers=workers, on_cell=on_cell, on_progress=on_progress, on_tuned=tuned.append
            )
        except KeyboardInterrupt:
            kept = len(list((folder / "cells").glob("*.json")))
            print(f"\nStopped. {kept} finished cells are kept in {folder}; the same command goes on.", file=sys.stderr)
            raise
    console.print(*summary(results, study.target), *failures(results), sep="\n")
    if study.tuning is None or study.tuning.off:
        print("Untuned: step sizes are the file's own, and which strategy looks best may be an accident of these.")
    for t in tuned:
        for doubt in t.doubts:
            print(f"Tuned up to an edge: {t.strategy} on {t.population}: {doubt}.")
    cells = "1 cell" if len(results) == 1 else f"{len(results)} cells"
    print(f"{cells} in {folder}: open report.html; evaluations.csv and .parquet have every value.")


def _study(file: Path | None, from_run: Path | None, order: Order, config: Path | None) -> tuple[Study, Path]:
    from fedmq.study.file import load_study
    from fedmq.study.from_run import population_table, study_of_run

    if from_run is None:
        if file is None:
            raise ConfigError("fedmq study needs a study's file (examples/studies has some), or --from-run")
        return load_study(file)
    if file is not None:
        study, folder = load_study(file, [population_table(from_run, order)])
        return study, folder.with_name(f"{folder.name}-{study.populations[0].name}")
    if config is None:
        raise ConfigError("--from-run needs FILE for strategies and problem, or --config for the run's own app")
    return study_of_run(from_run, load_config(config), order)


@contextmanager
def _progress(console: Console) -> Iterator[tuple[OnCell, OnProgress | None]]:
    """A bar on a terminal, which moves within cells too; a line for each cell elsewhere."""
    if not console.is_terminal:

        def line(result: CellResult, done: int, total: int) -> None:
            print(f"{done}/{total} {_cell(result)}", flush=True)

        yield line, None
        return
    columns = (
        BarColumn(),
        TextColumn("{task.fields[cells]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=None, cells="")

        def finished(result: CellResult, done: int, total: int) -> None:
            text = f"{result.strategy}, {result.population}"
            progress.update(bar, completed=done, total=total, description=text, cells=f"{done}/{total} cells")

        def move(done: float, total: int) -> None:
            progress.update(
                bar, completed=max(done, progress.tasks[0].completed), total=total, cells=f"{int(done)}/{total} cells"
            )

        yield finished, move


def _cell(result: CellResult) -> str:
    return (
        f"{result.strategy}, {result.population}, seed {result.seed}: {result.finished} at {result.time_s:,.1f} s, "
        f"{result.updates:,} updates, {result.took_s:.1f} s to compute"
    )


def summary(results: Sequence[CellResult], target: TargetMetric | None = None) -> Iterator[Table]:
    """A table for each population, a row for each strategy: means over seeds with 95 % confidence intervals. The time
    to the target where all seeds reached it, else how many did."""
    metrics = metrics_of(results)
    for population in dict.fromkeys(r.population for r in results):
        table = Table(title=population, title_justify="left", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("strategy", min_width=16, max_width=24)
        for name in ("virtual s", "staleness", *metrics):
            table.add_column(name, justify="right", no_wrap=True)
        if target is not None:
            table.add_column(f"s to {target.name} {target.value:g}", justify="right")
        for strategy in dict.fromkeys(r.strategy for r in results):
            cells = [r for r in results if (r.population, r.strategy) == (population, strategy)]
            table.add_row(
                strategy,
                f"{statistics.fmean(r.time_s for r in cells):,.5g}",
                f"{statistics.fmean(r.mean_staleness for r in cells):,.1f}",
                *(mean_text([final_value(r, m) for r in cells]) for m in metrics),
                *(() if target is None else (_time_to(target, cells),)),
            )
        yield table


def _time_to(target: TargetMetric, cells: Sequence[CellResult]) -> str:
    times = [cost["time_s"] for r in cells if (cost := cost_of(r, target)) is not None]
    return mean_text(times) if len(times) == len(cells) else f"{len(times)} of {len(cells)} got there"


def failures(results: Sequence[CellResult]) -> Iterator[str]:
    """A line for each cell that did not come to the end that was asked for."""
    for r in results:
        if r.finished in {"diverged", "stuck"}:
            why = f": {r.detail}" if r.detail else ""
            yield f"{r.strategy}, {r.population}, seed {r.seed} {r.finished} at {r.time_s:,.4g} s{why}"
