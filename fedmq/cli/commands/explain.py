"""`fedmq explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options


def command(
    run_dir: Annotated[Path, typer.Argument(help="The run's folder, as in runs/mnist.")],
    version: Annotated[int, typer.Argument(help="The model version, from 1.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
    _debug: options.Debug = False,
) -> None:
    """List the updates that made a model version: whose, how stale, and with which weight."""
    from fedmq.coordinator.audit import audit
    from fedmq.coordinator.state.ledger.reader import LedgerReader
    from fedmq.coordinator.state.run_folder import RunFolder

    with LedgerReader(RunFolder(run_dir).ledger) as ledger:
        found = audit.explain(ledger, version)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from fedmq.views.explanation import explanation_view
    from fedmq.views.uncut import print_uncut

    console = options.console()
    if console.is_terminal:
        console.print(*explanation_view(found), sep="\n")
    else:
        print_uncut(console, explanation_view(found))
