"""The screen of `fedmq study`: its progress, and the tables that it ends with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedmq.coordinator.settings import TargetMetric
from fedmq.schemas.texts import escaped
from fedmq.studies.sweep.cell import CellResult
from fedmq.studies.sweep.intervals import mean_text, number_text
from fedmq.studies.sweep.measures import cost_of, final_value, metrics_of
from fedmq.studies.sweep.pool import OnCell, OnProgress

LABEL_WIDTH = 24
"""Characters of a strategy's label on one line of a terminal."""


@contextmanager
def progress(console: Console) -> Iterator[tuple[OnCell, OnProgress | None]]:
    """Show a bar on a terminal, which also moves within cells. Elsewhere, print a line for each cell."""
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
    with Progress(*columns, console=console) as shown:
        bar = shown.add_task("", total=None, cells="")

        def finished(result: CellResult, done: int, total: int) -> None:
            text = escaped(f"{result.strategy}, {result.population}")
            shown.update(bar, completed=done, total=total, description=text, cells=f"{done}/{total} cells")

        def move(done: float, total: int) -> None:
            shown.update(
                bar, completed=max(done, shown.tasks[0].completed), total=total, cells=f"{int(done)}/{total} cells"
            )

        yield finished, move


def _cell(result: CellResult) -> str:
    return escaped(
        f"{result.strategy}, {result.population}, seed {result.seed}: {result.finished} at {result.time_s:,.1f} s, "
        f"{result.updates:,} updates, {result.took_s:.1f} s to compute"
    )


def summary(
    results: Sequence[CellResult], target: TargetMetric | None = None, *, label_width: int | None = LABEL_WIDTH
) -> Iterator[Table]:
    """Yield a table for each population with a row for each strategy: means over seeds with 95 % confidence intervals.

    A row has the time to the target if all seeds reached it, else how many did. A label longer than `label_width` takes
    several lines.
    """
    metrics = metrics_of(results)
    for population in dict.fromkeys(r.population for r in results):
        table = Table(
            title=Text(escaped(population), "table.title"),
            title_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("strategy", min_width=16, max_width=label_width, overflow="fold")
        for name in ("virtual s", "staleness", *metrics):
            table.add_column(Text(escaped(name), "table.header"), justify="right", no_wrap=True)
        if target is not None:
            text = escaped(f"s to {target.name} {target.value:g}")
            table.add_column(Text(text, "table.header"), justify="right", no_wrap=True)
        for strategy in dict.fromkeys(r.strategy for r in results):
            cells = [r for r in results if (r.population, r.strategy) == (population, strategy)]
            table.add_row(
                Text(escaped(strategy)),
                number_text(statistics.fmean(r.time_s for r in cells)),
                number_text(statistics.fmean(r.mean_staleness for r in cells)),
                *(mean_text([final_value(r, m) for r in cells]) for m in metrics),
                *(() if target is None else (_time_to(target, cells),)),
            )
        yield table


def _time_to(target: TargetMetric, cells: Sequence[CellResult]) -> str:
    times = [cost["time_s"] for r in cells if (cost := cost_of(r, target)) is not None]
    return mean_text(times) if len(times) == len(cells) else f"{len(times)} of {len(cells)} got there"


def failures(results: Sequence[CellResult]) -> Iterator[str]:
    """Yield a line for each cell that diverged or got stuck."""
    for r in results:
        if r.finished in {"diverged", "stuck"}:
            why = f": {r.detail}" if r.detail else ""
            when = r.time_s if r.diverged_s is None else r.diverged_s
            yield escaped(f"{r.strategy}, {r.population}, seed {r.seed} {r.finished} at {number_text(when)} s{why}")
