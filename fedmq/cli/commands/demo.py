"""`fedmq demo`."""

from __future__ import annotations

import io
import logging
import os
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options
from fedmq.schemas.errors import InputError
from fedmq.schemas.local.console_log import FORM_WITH_THREAD, debugging, log_to
from fedmq.schemas.local.extras import check_installed


def command(
    broker: Annotated[
        str | None,
        typer.Option("--broker", help="URL of a broker to run over (amqp://…), or env: the URL in FEDMQ_BROKER_URL."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help='An mnist.npz, or "full" for the file in Keras\'s cache. Default: the sample.'),
    ] = None,
    participants: Annotated[int, typer.Option(help="Number of participants.", min=1, max=50)] = 5,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for everything that is written. Default: runs/demo-TIME.")
    ] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="Run in one process, without a broker.")] = False,
    _debug: options.Debug = False,
) -> None:
    """Train MNIST with participants of different speeds and unequal shares of the data, and watch.

    If rabbitmq-server is installed or --broker is given, the demo runs over RabbitMQ, with a process for each
    participant. The node is a private one, never one that runs here already. Else everything runs in one process. The
    demo ends with a summary and a picture.
    """
    broker = _url(broker)
    check_installed("keras", "fedmq demo")
    check_installed("tensorflow", "fedmq demo")
    from fedmq.demo.data import load_mnist
    from fedmq.demo.demo import RUN_ID, DemoPlan, run_demo
    from fedmq.schemas.local.files import make_folder, open_log

    load_mnist(data)  # reports a wrong file before anything is started
    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    if (folder / RUN_ID).exists():
        raise InputError(f"{folder} holds a demo's run already, which would be continued. Give --out another folder.")
    for made in (folder, folder / "logs"):
        make_folder(made)
    # The screen is the live view's.
    lines = io.TextIOWrapper(open_log(folder / "logs" / "demo.log"), encoding="utf-8", write_through=True)
    log_to(logging.StreamHandler(lines), form=FORM_WITH_THREAD, debug=debugging())
    plan = DemoPlan(folder, participants, data, broker, embedded, prefix=f"fedmq-demo-{secrets.token_hex(3)}")
    raise typer.Exit(run_demo(plan, options.console()))


def _url(broker: str | None) -> str | None:
    """Return the URL that --broker gives. The word env keeps a password off the command line, where others see it."""
    if broker is None:
        return None
    if broker != "env":
        options.warn_of_password("--broker", broker)
        return broker
    url = os.environ.get("FEDMQ_BROKER_URL", "").strip()
    if not url:
        raise InputError("--broker env takes the broker's URL from the variable FEDMQ_BROKER_URL, which is not set.")
    return url
