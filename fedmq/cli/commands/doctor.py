"""`fedmq doctor`."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from fedmq.cli.commands import options
from fedmq.cli.commands.participant import checked_id
from fedmq.cli.console_log import debugging

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "wrong": ("✗", "bold red")}


def command(
    config: options.Config,
    participant_id: Annotated[
        str, typer.Option("--id", help="Participant as which load_data() and training are tried.")
    ] = "sensor-1",
    broker: options.Broker = None,
    settings: options.Set = None,
    _debug: options.Debug = False,
) -> None:
    """Check configuration, app, trainer and broker, and say what to do about each finding.

    The exit status is 0 if nothing is wrong. The doctor declares the federation's queues, as the coordinator would.
    """
    from rich.text import Text

    federation = options.configured(config, broker, settings)
    name = checked_id(participant_id)
    if federation.security.fleet is not None:
        from fedmq.run.enrolled import as_coordinator  # it takes the extra `fleet`

        federation = as_coordinator(federation)
    if not debugging():
        logging.getLogger("fedmq").setLevel(logging.WARNING)  # the findings say the same
    from fedmq.views.doctor import examine

    console = options.console(soft_wrap=True, highlight=False)
    wrong = 0
    for finding in examine(federation, name):
        mark, style = MARKS[finding.level]
        console.print(Text.assemble((f"{mark} ", style), finding.what))
        if finding.advice:
            console.print(Text.assemble("    → ", (finding.advice, "bold")))
        wrong += finding.level == "wrong"
    if wrong:
        console.print(f"\n{wrong} thing(s) to put right.", style="bold red")
        raise typer.Exit(1)
    console.print("\nReady.", style="bold green")
