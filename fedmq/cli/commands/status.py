"""`fedmq status`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options

WATCH_INTERVAL_S = 1.0


def command(
    run_dir: Annotated[Path | None, typer.Argument(help="The run's folder. Default: the run of --config.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The federation file.")] = None,
    settings: options.Set = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait for the run, and show it every second until it ends or Ctrl-C.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    _debug: options.Debug = False,
) -> None:
    """Show a running or finished run from its ledger. No broker is needed.

    Give no argument to see the newest run in ./runs.
    """
    from fedmq.coordinator.state.ledger.reader import believed
    from fedmq.coordinator.state.run_folder import RunFolder
    from fedmq.views.status import has_begun, newest_run, read_status

    if run_dir is None:
        run_dir = options.configured(config, None, settings).run_dir if config else newest_run(Path("runs"))
    if watch and not as_json and not has_begun(run_dir):
        print(f"Waiting for the run in {run_dir} to start. Ctrl-C ends this.", flush=True)
        while not has_begun(run_dir):
            time.sleep(WATCH_INTERVAL_S)
    ledger = RunFolder(run_dir).ledger
    status = read_status(run_dir)
    if as_json:
        print(json.dumps(status.to_json()))
        return
    from fedmq.views.status_view import status_view

    console = options.console()
    if not watch:
        with believed(ledger):
            console.print(status_view(status))
        return
    from rich.live import Live

    with believed(ledger), Live(status_view(status), console=console, auto_refresh=False) as live:
        while status.finished is None:
            time.sleep(WATCH_INTERVAL_S)
            status = read_status(run_dir)
            live.update(status_view(status), refresh=True)
