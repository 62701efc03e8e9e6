"""The command line: it finds the command, loads that one alone, and turns errors into one clear message.

    0  done            1  the run or a check failed            2  bad input: file, flag, environment, app
    3  the broker refused us or cannot be reached            130, 143  ended by Ctrl-C, SIGTERM

Rules
1. `fedmq --version` and the list of commands load no command's module.
2. A command's module loads typer and the error tree. Its function imports the rest, after the flags have been checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fedmq import __version__
from fedmq.schemas.errors import BrokerError, FedmqError, InputError
from fedmq.schemas.redaction import redacted
from fedmq.schemas.texts import escaped

if TYPE_CHECKING:
    from typer import Typer

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_BROKER = 3
EXIT_INTERRUPTED = 130

COMMANDS = {
    "demo": "Train MNIST with participants of different speeds and unequal shares of the data, and watch.",
    "broker": "Run a private RabbitMQ node with fedmq's configuration, until Ctrl-C.",
    "fleet": "Make a fleet, and let devices in and out: certificates, bundles, tokens, revocations.",
    "coordinator": "Coordinate a run: start it, or continue it after a stop or a crash. The run_id says which run.",
    "participant": "Train for a federation, on data that stay here.",
    "status": "Show a running or finished run from its ledger. No broker is needed.",
    "verify": "Check that a run's ledger and checkpoints agree: nothing missing or twice, each weight as claimed.",
    "explain": "List the updates that made a model version: whose, how stale, and with which weight.",
    "study": "Compare strategies in virtual time, with the coordinator's own core.",
    "doctor": "Check configuration, app, trainer and broker, and say what to do about each finding.",
}
"""Name to help, which is the first line of its function's docstring in fedmq.cli.commands."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code. If it is this process's own, nothing that it started outlives it."""
    sys.exit(_own_status(sys.argv[1:]) if argv is None else _status(argv))


def _own_status(argv: Sequence[str]) -> int:
    """Run one command in this process, which ends with it."""
    from fedmq.schemas.local.streams import prepare_streams

    prepare_streams()
    if list(argv[:1]) == ["--version"]:
        return _status(argv)
    from fedmq.cli.signals import ended_by_signal, terminate_as_interrupt
    from fedmq.schemas.local.leaving import leave
    from fedmq.schemas.local.log_filter import redact_uncaught

    redact_uncaught()
    status = EXIT_FAILED
    try:
        terminate_as_interrupt()
        status = _status(argv)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    finally:
        if status == EXIT_INTERRUPTED:
            status = ended_by_signal() or status
        leave(status)
    return status


def _status(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    if list(argv[:1]) == ["--version"]:
        print(f"fedmq {__version__}")
        return 0
    try:
        command_line(argv)(args=argv)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except FedmqError as e:
        from fedmq.schemas.local.console_log import debugging

        if debugging():
            import traceback

            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        print(f"fedmq: {escaped(str(e), keep=chr(10))}", file=sys.stderr)
        return exit_code(e)
    return 0


def command_line(argv: Sequence[str]) -> Typer:
    """Return the application in which the command that `argv` names is real. The others only show their help."""
    import typer

    app = typer.Typer(
        name="fedmq",
        help="Asynchronous federated learning over RabbitMQ.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 the broker refused or is not there.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def root(_version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        """Asynchronous federated learning over RabbitMQ."""

    wanted = next((argument for argument in argv if not argument.startswith("-")), "")  # root flags take no values
    for name, text in COMMANDS.items():
        if name == wanted:
            module = import_module(f"fedmq.cli.commands.{name}")
            if hasattr(module, "SUBCOMMANDS"):
                app.add_typer(_group(module), name=name, help=text)
            else:
                app.command(name=name, help=_unwrapped(module.command.__doc__))(module.command)
        else:
            app.command(name=name, help=text)(_only_listed)
    return app


def _group(module: ModuleType) -> Typer:
    """Return a command with commands of its own. If the module has a `command` too, it runs without any of them."""
    import typer

    own = getattr(module, "command", None)
    group = typer.Typer(no_args_is_help=own is None)
    if own is not None:
        group.callback(invoke_without_command=True, help=_unwrapped(own.__doc__ or ""))(own)
    for name, function in module.SUBCOMMANDS.items():
        passed_on = name in getattr(module, "PASSED_ON", ())
        settings = {"allow_interspersed_args": False, "ignore_unknown_options": True} if passed_on else {}
        group.command(name=name, help=_unwrapped(function.__doc__ or ""), context_settings=settings)(function)
    return group


def _unwrapped(text: str) -> str:
    """Return each paragraph as one line, which typer then wraps to the width of the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _only_listed() -> None:
    raise AssertionError("the command that argv names is the real one")


def exit_code(error: FedmqError) -> int:
    """Return 2 for the user's mistakes, 3 for the broker's, 1 for the rest."""
    if isinstance(error, InputError):
        return EXIT_INPUT
    return EXIT_BROKER if isinstance(error, BrokerError) else EXIT_FAILED
