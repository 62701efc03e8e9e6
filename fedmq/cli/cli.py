"""The command line. Each command is a thin function in fedmq.cli.commands; here are what they share: errors become one
clear message, and exit codes mean something.

    0  done            1  the run or a check failed            2  bad input: file, flag, environment, app
    3  the broker refused us or cannot be reached            130, 143  ended by Ctrl-C, SIGTERM
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

from fedmq import __version__
from fedmq.cli.commands import broker, coordinator, demo, doctor, explain, options, participant, status, study, verify
from fedmq.schemas.errors import BrokerError, FedmqError, InputError

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_BROKER = 3

app = typer.Typer(
    name="fedmq",
    help="Asynchronous federated learning over RabbitMQ.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 the broker refused or is not there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (demo, broker, coordinator, participant, status, verify, explain, study, doctor):
    app.command(name=module.__name__.rsplit(".", 1)[-1])(module.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedmq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _show_version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Asynchronous federated learning over RabbitMQ."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        app(args=argv)
    except FedmqError as e:
        if options.debugging():
            traceback.print_exc()
        print(f"fedmq: {e}", file=sys.stderr)
        sys.exit(exit_code(e))


def exit_code(error: FedmqError) -> int:
    """2 for the user's mistakes, 3 for the broker's, 1 for the rest."""
    if isinstance(error, InputError):
        return EXIT_INPUT
    return EXIT_BROKER if isinstance(error, BrokerError) else EXIT_FAILED
