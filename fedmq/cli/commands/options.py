"""Options that several commands take."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmq.schemas.local.console_log import log_to
from fedmq.schemas.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

    from fedmq.config.file import FederationConfig


def _set_debug(wanted: bool) -> None:
    log_to(logging.StreamHandler(sys.stderr), debug=wanted)


Config = Annotated[Path, typer.Option("--config", "-c", help="The federation file.", show_default=False)]
Broker = Annotated[
    str | None, typer.Option("--broker", help="amqp:// URL. It wins over broker.url and FEDMQ_BROKER_URL.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file, as in --set run.concurrency=4."),
]
Debug = Annotated[
    bool, typer.Option("--debug", "-v", help="Log more, and show tracebacks.", callback=_set_debug, is_eager=True)
]


def configured(config: Path, broker: str | None, settings: list[str] | None) -> FederationConfig:
    """Read the federation file and lay the flags over it. Raises ConfigError."""
    from fedmq.config.file import load_config

    for flag, url in (("--broker", broker), *(("--set", setting) for setting in settings or ())):
        if url is not None:
            warn_of_password(flag, url)
    return load_config(config, settings or (), broker=broker)


def warn_of_password(flag: str, text: str) -> None:
    """Say that everybody on this machine can read a password that is on the command line."""
    if redacted(text) != text:
        print(
            f"fedmq: {flag} has a password, which every user of this machine sees in the list of processes. Give the "
            "URL by the variable FEDMQ_BROKER_URL, or as broker.url in a federation file that only you can read.",
            file=sys.stderr,
        )


def console(*, soft_wrap: bool = False, highlight: bool = True) -> Console:
    """Return a console on standard output that shows text as it is: brackets are no markup, colons no emoji.

    Ids, labels, paths and errors have both, as in pip install 'fedmq[studies]'.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, soft_wrap=soft_wrap, highlight=highlight)
