"""`fedmq explain`."""

from __future__ import annotations

import json
from dataclasses import asdict
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
        print(json.dumps(asdict(found)))
        return
    from rich.table import Table
    from rich.text import Text

    from fedmq.schemas.texts import escaped

    point = found.point
    how = ", by its buffer's timeout" if point.by_timeout else ""
    table = Table(title=f"Version {version}: {point.num_updates} updates, after {point.run_s:.1f} s of run time{how}")
    for heading in ("participant", "task"):
        table.add_column(heading)
    grouped = any(row.arrival_group is not None for row in found.updates)
    for heading in ("base", "staleness", "examples", "client weight", "weight", "loss", *["group"] * grouped):
        table.add_column(heading, justify="right")
    for row in found.updates:
        loss = row.metrics.get("loss")
        table.add_row(
            row.participant_id, row.task_id, str(row.base_version), str(row.staleness), str(row.num_examples),
            f"{row.client_weight:.4g}", f"{row.weight:.4g}", "" if loss is None else f"{loss:.4g}",
            *["late" if row.arrival_group is None else str(row.arrival_group)] * grouped,
        )  # fmt: skip
    console = options.console()
    console.print(table)
    for lost in found.lost:
        console.print(
            f"Before it, {lost.count} accepted updates were discarded, because "
            f"{'the method began anew' if lost.anew else 'their version failed'}: {lost.reason}"
        )
    if found.metrics:
        metrics = (f"{escaped(name)} {value:.4f}" for name, value in found.metrics.items())
        console.print(Text("On the test data: " + "  ".join(metrics)))
