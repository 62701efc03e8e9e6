"""`fedmq demo`."""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options
from fedmq.cli.console_log import FORM_WITH_THREAD, debugging, log_to
from fedmq.schemas.errors import InputError
from fedmq.schemas.local.extras import check_installed


def command(
    broker: Annotated[str | None, typer.Option("--broker", help="Run over this broker (amqp://…).")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help='An mnist.npz, or "full" for Keras\'s; without it, the sample.')
    ] = None,
    participants: Annotated[int, typer.Option(help="How many.", min=1, max=50)] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for everything; without it, runs/demo-TIME.")
    ] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="One process, no broker.")] = False,
    _debug: options.Debug = False,
) -> None:
    """Train MNIST with participants of different speeds and unequal shares of the data, and watch.

    Over RabbitMQ with real processes where rabbitmq-server is installed (a private node, never one that runs here
    already) or --broker is given; else in one process. Ends with a summary and a picture.
    """
    check_installed("keras", "fedmq demo")
    check_installed("tensorflow", "fedmq demo")
    from rich.console import Console

    from fedmq.demo.data import load_mnist
    from fedmq.demo.demo import RUN_ID, DemoPlan, run_demo

    load_mnist(data)  # a wrong file is told before anything is started
    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    if (folder / RUN_ID).exists():
        raise InputError(f"{folder} holds a demo's run already, which would be continued: give --out another folder.")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    # The screen is the live view's.
    log_to(logging.FileHandler(folder / "logs" / "demo.log"), form=FORM_WITH_THREAD, debug=debugging())
    options.terminate_as_interrupt()
    plan = DemoPlan(folder, participants, data, broker, embedded, prefix=f"fedmq-demo-{secrets.token_hex(3)}")
    raise typer.Exit(run_demo(plan, Console()))
