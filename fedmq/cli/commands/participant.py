"""`fedmq participant`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from fedmq.cli.commands import options
from fedmq.schemas.errors import ConfigError


def command(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The federation file.", show_default=False)
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The file of `fedmq fleet enrol` or `fedmq fleet token`. It needs no federation file."),
    ] = None,
    app: Annotated[Path | None, typer.Option(help="With --bundle: the app file. Default: app.py.")] = None,
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
    if bundle is not None:
        if broker is not None or participant_id is not None:
            raise ConfigError("--bundle says who this device is and where its broker is: leave --id and --broker out.")
        from fedmq.run.devices import device_service

        service = device_service(bundle, config, app, settings or ())
    else:
        if config is None or app is not None:
            raise ConfigError(
                "--app is for a device with a bundle: the federation file names the app."
                if config is not None
                else "Give the federation file (--config) or, on a device of a fleet, its bundle (--bundle)."
            )
        federation = options.configured(config, broker, settings)
        name = checked_id(participant_id or socket.gethostname())
        if federation.security.fleet is not None and federation.broker.auth != "external":
            raise ConfigError(
                f"This federation has a fleet ({federation.security.fleet}), whose devices log in by certificate: "
                f"start with --bundle {name}.bundle, the file of `fedmq fleet enrol {name}`. To log in by password all "
                "the same, take `fleet` out of [security]."
            )
        from fedmq.run.participant import participant_for

        service = participant_for(federation, name)
    ended = service.run()
    print(f"Participant {service.participant_id}: {ended.replace('_', ' ')}.")


def checked_id(name: str, place: str = "--id") -> str:
    """Return the name if it can be an id. Raises ConfigError."""
    from pydantic import TypeAdapter, ValidationError

    from fedmq.schemas.messages import Identifier

    try:
        return TypeAdapter(Identifier).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f'{place} is "{name}", allowed: 1 to 64 letters, digits, dots, underscores or dashes, '
            "the first a letter or a digit."
        ) from None
