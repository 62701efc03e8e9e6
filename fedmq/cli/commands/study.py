"""`fedmq study`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedmq.cli.commands import options
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.texts import escaped

if TYPE_CHECKING:
    from fedmq.studies.study import Study
    from fedmq.studies.sweep.tuning import Tuned

Order = Literal["drawn", "recorded"]


def command(  # noqa: PLR0917 - the flags of a command line
    file: Annotated[Path | None, typer.Argument(help="The study's file.", show_default=False)] = None,
    from_run: Annotated[
        Path | None,
        typer.Option("--from-run", help="Folder of a recorded run, whose participants are the population."),
    ] = None,
    order: Annotated[
        Order, typer.Option(help="Order of the run's tasks: durations drawn anew, or everything at its recorded time.")
    ] = "drawn",
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The run's federation file, in place of FILE.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results. It wins over the file's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, help="Number of processes. Default: one for each core.")
    ] = None,
    _debug: options.Debug = False,
) -> None:
    """Compare strategies in virtual time, with the coordinator's own core.

    A study runs every strategy of FILE on every population with every seed. A finished cell is not run again: after
    Ctrl-C the same command goes on.

    With --from-run the population is a recorded run's: what would other strategies have made of its participants? FILE
    names the strategies and the problem. With --config in place of FILE the problem is the run's own app.
    """
    from fedmq.views.study_screen import LABEL_WIDTH, failures, progress, summary
    from fedmq.views.uncut import print_uncut

    study, folder = _study(file, from_run, order, config)
    folder = out or folder
    console = options.console()
    tuned: list[Tuned] = []
    with progress(console) as (on_cell, on_progress):
        try:
            results = study.run(
                folder, workers=workers, on_cell=on_cell, on_progress=on_progress, on_tuned=tuned.append
            )
        except KeyboardInterrupt:
            kept = len(list((folder / "cells").glob("*.json")))
            print(f"\nStopped. {kept} finished cells are kept in {folder}; the same command goes on.", file=sys.stderr)
            raise
    print_uncut(console, summary(results, study.target, label_width=LABEL_WIDTH if console.is_terminal else None))
    for line in failures(results):
        print(line)
    if study.tuning is None or study.tuning.off:
        whose = "those of the run's federation file and the defaults" if study.source == "run" else "the study's own"
        print(f"Untuned: step sizes are {whose}, and which strategy looks best may be an accident of these.")
    for t in tuned:
        for doubt in t.doubts:
            print(escaped(f"Tuned up to an edge: {t.strategy} on {t.population}: {doubt}."))
    cells = "1 cell" if len(results) == 1 else f"{len(results)} cells"
    print(f"{cells} in {folder}: open report.html; evaluations.csv and .parquet have every value.")


def _study(file: Path | None, from_run: Path | None, order: Order, config: Path | None) -> tuple[Study, Path]:
    from fedmq.config.file import load_config
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
