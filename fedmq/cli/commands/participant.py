"""`fedmq participant`."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from fedmq.cli.commands import options
from fedmq.schemas.errors import ConfigError


def command(
    config: options.Config,
    participant_id: Annotated[
        str | None, typer.Option("--id", help="This participant's id. Default: the machine's host name.")
    ] = None,
    broker: options.Broker = None,
    settings: options.Set = None,
    _debug: options.Debug = False,
) -> None:
    """Train for a federation, on data that stay here.

    A participant may be killed at any time: the same command goes on with its tasks and updates. Ctrl-C ends it
    cleanly.
    """
    federation = options.configured(config, broker, settings)
    name = checked_id(participant_id or socket.gethostname())
    options.terminate_as_interrupt()
    from fedmq.run.roles import participant_for

    service = participant_for(federation, name)
    ended = service.run()
    print(f"Participant {name}: {ended.replace('_', ' ')}.")


def checked_id(name: str) -> str:
    """Return the name if it can be an id. Raises ConfigError."""
    from pydantic import TypeAdapter, ValidationError

    from fedmq.schemas.messages import Identifier

    try:
        return TypeAdapter(Identifier).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f'--id is "{name}", allowed: 1 to 64 letters, digits, dots, underscores or dashes, '
            "the first a letter or a digit."
        ) from None
