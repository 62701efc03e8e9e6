"""`fedmq doctor`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedmq.cli.commands import options
from fedmq.cli.commands.participant import checked_id
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.console_log import debugging
from fedmq.schemas.texts import escaped

if TYPE_CHECKING:
    from fedmq.views.finding import Finding

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "wrong": ("✗", "bold red")}
ANYBODY = "sensor-1"


def command(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The federation file.", show_default=False)
    ] = None,
    role: Annotated[
        Literal["participant", "coordinator"] | None,
        typer.Option(help="Check as this role, with its rights. Default: that of the broker's user, or both."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="A device's bundle: check as that device.")] = None,
    app: Annotated[Path | None, typer.Option(help="With --bundle: the app file. Default: app.py.")] = None,
    participant_id: Annotated[
        str | None,
        typer.Option("--id", help=f"Participant as which training is tried. Default: the broker's user, or {ANYBODY}."),
    ] = None,
    try_s: Annotated[
        float, typer.Option("--try-s", min=0.1, help="Seconds after which a trial of your code is cut off.")
    ] = 60.0,
    broker: options.Broker = None,
    settings: options.Set = None,
    _debug: options.Debug = False,
) -> None:
    """Check configuration, app, trainer and broker, and say what to do about each finding.

    The exit status is 0 if nothing is wrong. As a coordinator the doctor declares what is shared, as a run would. As a
    participant it leaves nothing behind.
    """
    from rich.text import Text

    if not debugging():
        logging.getLogger("fedmq").setLevel(logging.WARNING)  # the findings say the same
    console = options.console(soft_wrap=True, highlight=False)
    wrong = 0
    if bundle is not None:
        if broker is not None or participant_id is not None or role == "coordinator":
            raise ConfigError(
                "--bundle says who this device is and where its broker is: leave --id, --broker and --role out."
            )
        findings = _of_device(bundle, config, app, settings, try_s)
    elif config is None or app is not None:
        raise ConfigError("Give the federation file (--config) or, on a device of a fleet, its bundle (--bundle).")
    else:
        findings = _of_federation(config, role, participant_id, broker, settings, try_s=try_s)
    with findings as found:
        for finding in found:
            mark, style = MARKS[finding.level]
            console.print(Text.assemble((f"{mark} ", style), escaped(finding.what, keep="\n")))
            if finding.advice:
                console.print(Text.assemble("    → ", (escaped(finding.advice, keep="\n"), "bold")))
            wrong += finding.level == "wrong"
    if wrong:
        console.print(f"\n{wrong} thing(s) to put right.", style="bold red")
        raise typer.Exit(1)
    console.print("\nReady.", style="bold green")


@contextmanager
def _of_device(
    bundle: Path, config: Path | None, app: Path | None, settings: list[str] | None, try_s: float
) -> Iterator[Iterator[Finding]]:
    from fedmq.run.devices import device_to_look_at
    from fedmq.views.doctor import examine

    with device_to_look_at(bundle, config, app, settings or ()) as (name, device):
        yield examine(device, name, "participant", [bundle], try_s=try_s)


@contextmanager
def _of_federation(
    config: Path,
    role: Literal["participant", "coordinator"] | None,
    participant_id: str | None,
    broker: str | None,
    settings: list[str] | None,
    *,
    try_s: float,
) -> Iterator[Iterator[Finding]]:
    federation = options.configured(config, broker, settings)
    name = None if participant_id is None else checked_id(participant_id)
    from fedmq.views.doctor import broker_user, examine, fitting_role

    role = role or fitting_role(federation, name)
    secrets: list[Path] = []
    if role == "coordinator" and federation.security.fleet is not None:
        from fedmq.run.enrolled import as_coordinator  # it takes the extra `fleet`

        secrets.append(Path(federation.security.fleet))
        federation = as_coordinator(federation)
    if name is None and role == "participant":
        by_user = federation.security.kind(federation.broker.auth) == "user"
        name = (broker_user(federation.broker) if by_user else None) or checked_id(socket.gethostname())
    yield examine(federation, name or ANYBODY, role, secrets, try_s=try_s)
