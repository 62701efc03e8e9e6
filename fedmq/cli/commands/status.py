"""`fedmq status`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options

WATCH_INTERVAL_S = 1.0
RUNS = Path("runs")
"""Folder of the newest run, if no other is named."""


def command(
    *,
    run_dir: Annotated[Path | None, typer.Argument(help="The run's folder. Default: the run of --config.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The federation file.")] = None,
    settings: options.Set = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait for the run, and show it every second until it ends or Ctrl-C.")
    ] = False,
    everybody: Annotated[
        bool, typer.Option("--all", "-a", help="Show all participants, also if the screen has no room for them.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for scripts. With --watch: one a line, every second.")
    ] = False,
    _debug: options.Debug = False,
) -> None:
    """Show a running or finished run from its ledger. No broker is needed.

    Give no argument to see the newest run in ./runs. A terminal shows as many participants as it has lines for.
    """
    from fedmq.coordinator.state.ledger.trust import believed
    from fedmq.coordinator.state.run_folder import RunFolder
    from fedmq.views.status import read_status

    if run_dir is None and config is not None:
        run_dir = options.configured(config, None, settings).run_dir
    run_dir = _begun(run_dir) if watch else _named(run_dir)
    status = read_status(run_dir)
    if as_json:
        print(json.dumps(status.to_json()), flush=True)
        while watch and status.finished is None:
            time.sleep(WATCH_INTERVAL_S)
            status = read_status(run_dir)
            print(json.dumps(status.to_json()), flush=True)
        return
    from fedmq.views.status_view import status_view
    from fedmq.views.uncut import print_uncut

    console, ledger = options.console(), RunFolder(run_dir).ledger
    if not console.is_terminal:
        with believed(ledger):
            print_uncut(console, [status_view(status, everybody=everybody)])
            while watch and status.finished is None:
                time.sleep(WATCH_INTERVAL_S)
                status = read_status(run_dir)
                print(flush=True)
                print_uncut(console, [status_view(status, everybody=everybody)])
        return
    if not watch:
        with believed(ledger):
            console.print(status_view(status, everybody=everybody))
        return
    from rich.live import Live

    with believed(ledger), Live(status_view(status, everybody=everybody), console=console, auto_refresh=False) as live:
        while status.finished is None:
            time.sleep(WATCH_INTERVAL_S)
            status = read_status(run_dir)
            live.update(status_view(status, everybody=everybody), refresh=True)


def _named(run_dir: Path | None) -> Path:
    from fedmq.views.status import newest_run

    return newest_run(RUNS) if run_dir is None else run_dir


def _begun(run_dir: Path | None) -> Path:
    """Return the folder of a run that has begun, and wait for it if need be."""
    from fedmq.schemas.errors import LedgerError
    from fedmq.views.status import has_begun

    told = False
    while True:
        try:
            found = _named(run_dir)
        except LedgerError:
            found = None
        if found is not None and has_begun(found):
            return found
        if not told:
            where = f"the run in {run_dir}" if run_dir is not None else f"a run below {RUNS}"
            print(f"Waiting for {where} to start. Ctrl-C ends this.", file=sys.stderr, flush=True)
            told = True
        time.sleep(WATCH_INTERVAL_S)
