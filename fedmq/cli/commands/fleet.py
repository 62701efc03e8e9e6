"""`fedmq fleet init | enrol | token | list | revoke | renew`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmq.cli.commands import options
from fedmq.schemas.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from fedmq.broker_config.admin.admin import BrokerAdmin
    from fedmq.config.file import FederationConfig
    from fedmq.fleet.folder import FleetFolder
    from fedmq.fleet.inventory import Inventory
    from fedmq.fleet.rows import Device, Token
    from fedmq.fleet.setup import Plan

MOST_QUEUES = 100_000
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Folder = Annotated[Path, typer.Option("--fleet", help="The fleet's folder.")]
Node = Annotated[
    Path | None,
    typer.Option(
        "--node",
        help="Folder of a private node (`fedmq broker --dir`). Default: the fleet's own node.",
    ),
]
System = Annotated[bool, typer.Option("--system", help="The RabbitMQ of this machine, by rabbitmqctl.")]
Management = Annotated[
    bool, typer.Option("--management", help="The management API whose URL is in the variable FEDMQ_MANAGEMENT_URL.")
]
CaKey = Annotated[
    Path | None, typer.Option("--ca-key", help="The authority's key, if it is not in the fleet's folder.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The device's id, which is also its user on the broker.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write. Default: ID.bundle, or ID.token.")]
Again = Annotated[bool, typer.Option("--again", help="Also if the device has a certificate already.")]
MaxExamples = Annotated[int | None, typer.Option(min=1, help="Most examples that this device may claim for an update.")]


def command() -> None:
    """Make a fleet, and let devices in and out: certificates, bundles, tokens, revocations."""


def init(
    *,
    config: options.Config,
    fleet: Annotated[
        Path | None, typer.Option("--fleet", help="The fleet's folder. Default: fleet beside the federation file.")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="amqps:// URL by which devices reach the broker; again for each node. Default: broker.url."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Another name or address of the broker for its certificate, beside those in the URLs."),
    ] = None,
    days: Annotated[float, typer.Option(help="Lifetime of the devices' certificates.", min=0.001, max=3650)] = 90.0,
    max_queues: Annotated[int, typer.Option(help="Most queues in the virtual host.", min=100)] = MOST_QUEUES,
    ca_key: Annotated[
        Path | None, typer.Option("--ca-key", help="Place for the authority's key, such as a stick that is kept apart.")
    ] = None,
    node: Node = None,
    system: System = False,
    management: Management = False,
    settings: options.Set = None,
    _debug: options.Debug = False,
) -> None:
    """Make a fleet: an authority, the certificates of broker and coordinator, and the coordinator's user.

    Run it again at any time. It keeps what is there and takes new settings. A broker that is new, or has lost its
    users, gets the users of all devices again.
    """
    federation = options.configured(config, None, settings)
    from fedmq.fleet import broker, setup
    from fedmq.fleet.folder import FleetFolder
    from fedmq.fleet.inventory import Inventory

    folder = FleetFolder((fleet or config.resolve().parent / "fleet").resolve())
    plan = _plan(federation, url or [], name or [], days)
    for told in setup.make(folder, plan, time.time(), ca_key):
        print(f"Made {told}.")
    with Inventory(folder.inventory) as inventory:
        broker.prepare_again(inventory)
        try:
            admin = _admin(folder, inventory, node, system, management)
            for told in broker.prepare(admin, inventory, max_queues=max_queues):
                print(f"The broker has {told}.")
        except (BrokerUnavailable, ConfigError) as error:
            print(f"\nThe broker is not prepared yet. The next `fedmq fleet` command does it. The reason: {error}")
            print(_what_next(folder, plan.urls))


def enrol(
    *,
    device_id: Id,
    out: Out = None,
    fleet: Folder = Path("fleet"),
    max_examples: MaxExamples = None,
    again: Again = False,
    ca_key: CaKey = None,
    node: Node = None,
    system: System = False,
    management: Management = False,
    _debug: options.Debug = False,
) -> None:
    """Enrol a device and write the one file that it needs, its bundle.

    A command that was killed is run again, and goes on.
    """
    from fedmq.cli.commands.participant import checked_id
    from fedmq.fleet.enrolment import enrol as do

    name = checked_id(device_id, "ID")
    with _opened(fleet, node, system, management) as (folder, inventory, admin):
        told = do(
            name, out or Path(f"{name}.bundle"), folder=folder, inventory=inventory, admin=admin, now_s=time.time(),
            ca_key=ca_key, max_examples=max_examples, again=again,
        )  # fmt: skip
    print(f"{told}\nOn the device: fedmq participant --bundle {out or f'{name}.bundle'} --app app.py")


def token(
    *,
    device_id: Id,
    ttl: Annotated[str, typer.Option(help="Time in which the device has to join, as in 90s, 30m, 1h, 7d.")] = "1h",
    out: Out = None,
    fleet: Folder = Path("fleet"),
    max_examples: MaxExamples = None,
    again: Again = False,
    node: Node = None,
    system: System = False,
    management: Management = False,
    _debug: options.Debug = False,
) -> None:
    """Write a token, with which one device joins once. It makes its own key, and a coordinator has to run.

    The broker has to let clients without a certificate in meanwhile (`fedmq broker --joining`, docs/operations.md).
    """
    from fedmq.cli.commands.participant import checked_id
    from fedmq.fleet.enrolment import token as do

    name, ttl_s = checked_id(device_id, "ID"), _seconds(ttl)
    with _opened(fleet, node, system, management) as (_folder, inventory, admin):
        told = do(
            name, out or Path(f"{name}.token"), ttl_s, inventory=inventory, admin=admin, now_s=time.time(),
            max_examples=max_examples, again=again,
        )  # fmt: skip
    print(f"{told}\nOn the device: fedmq participant --bundle {out or f'{name}.token'} --app app.py")
    print("Meanwhile a coordinator has to run, and the broker has to let joining devices in (fedmq broker --joining).")


def list_devices(fleet: Folder = Path("fleet"), _debug: options.Debug = False) -> None:
    """List the devices: their state, and the end of their certificates."""
    from fedmq.fleet.folder import FleetFolder
    from fedmq.fleet.inventory import Inventory

    with Inventory(FleetFolder(fleet).inventory) as inventory:
        devices = inventory.devices()
        tokens = {token.device_id: token for token in inventory.tokens()}
        rows = [
            ("device", "state", "certificate until", "may claim at most"),
            *(_row(inventory, one, tokens.get(one.id)) for one in devices),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        waiting = inventory.requests()
        if waiting:
            print(f"{len(waiting)} requests wait for the authority's key: fedmq fleet renew --ca-key PATH")


def revoke(
    device_id: Id,
    fleet: Folder = Path("fleet"),
    node: Node = None,
    system: System = False,
    management: Management = False,
    _debug: options.Debug = False,
) -> None:
    """Revoke a device for good: nothing more is taken from it, and the broker lets it in no more.

    Its id is never enrolled again. A command that was killed is run again, and goes on.
    """
    from fedmq.fleet.revocation import revoke as do

    with _opened(fleet, node, system, management) as (_folder, inventory, admin):
        print(do(device_id, inventory=inventory, admin=admin, now_s=time.time()))


def renew(fleet: Folder = Path("fleet"), ca_key: CaKey = None, _debug: options.Debug = False) -> None:
    """Sign the requests that wait for the authority's key, and renew the broker's and the coordinator's certificates.

    Devices ask for their renewals by themselves. A coordinator with the authority's key answers them at once.
    """
    from fedmq.fleet import registrar, setup
    from fedmq.fleet.folder import FleetFolder
    from fedmq.fleet.inventory import Inventory

    folder = FleetFolder(fleet)
    with Inventory(folder.inventory) as inventory:
        told = setup.renew_own(folder, inventory, time.time(), ca_key)
        told += registrar.sign_waiting(folder, inventory, time.time(), ca_key)
    for line in told or ["nothing: no certificate of broker or coordinator is due, and no request waits"]:
        print(f"Renewed {line}.")


SUBCOMMANDS = {"init": init, "enrol": enrol, "token": token, "list": list_devices, "revoke": revoke, "renew": renew}


@contextmanager
def _opened(
    fleet: Path, node: Path | None, system: bool, management: bool
) -> Iterator[tuple[FleetFolder, Inventory, BrokerAdmin]]:
    """Yield the fleet with its broker, once that is prepared and old tokens are gone."""
    from fedmq.fleet import broker, enrolment
    from fedmq.fleet.folder import FleetFolder
    from fedmq.fleet.inventory import Inventory

    folder = FleetFolder(fleet.resolve())
    with Inventory(folder.inventory) as inventory:
        admin = _admin(folder, inventory, node, system, management)
        for told in broker.prepare(admin, inventory, max_queues=MOST_QUEUES):
            print(f"The broker has {told}.")
        enrolment.sweep(inventory, admin, time.time())
        yield folder, inventory, admin


def _admin(folder: FleetFolder, inventory: Inventory, node: Path | None, system: bool, management: bool) -> BrokerAdmin:
    from fedmq.fleet.backend import BackendChoice, backend
    from fedmq.fleet.bundle import vhost_of
    from fedmq.fleet.setup import shared

    choice = BackendChoice.given(node, system, management) or BackendChoice.noted(inventory)
    admin = backend(choice, folder, vhost_of(shared(inventory)))
    choice.note(inventory)
    return admin


def _plan(federation: FederationConfig, urls: list[str], names: list[str], days: float) -> Plan:
    from urllib.parse import urlsplit

    from fedmq.fleet.bundle import public_url
    from fedmq.fleet.certificates import DAY_S
    from fedmq.fleet.setup import Plan

    broker = federation.broker
    given = urls or re.split(r",\s*(?=amqps?://)", broker.url.get_secret_value())
    reached = tuple(dict.fromkeys(public_url(one) for one in given))
    hosts = [urlsplit(one).hostname or "" for one in reached]
    return Plan(
        urls=reached,
        prefix=broker.prefix,
        coordinator_user=federation.security.coordinator_user,
        server_names=tuple(dict.fromkeys([*hosts, *names, "localhost", "127.0.0.1"])),
        max_message_bytes=broker.max_message_bytes,
        max_payload_bytes=broker.max_payload_bytes,
        participant_queues=broker.participant_queues,
        device_lifetime_s=days * DAY_S,
    )


def _what_next(folder: FleetFolder, urls: tuple[str, ...]) -> str:
    from urllib.parse import urlsplit

    port = urlsplit(urls[0]).port
    return f"""
Next, the broker, which devices reach at {" and ".join(urls)}. One of these two:

  fedmq broker --fleet {folder.path} --port {port}

  For a RabbitMQ of this machine: copy {folder.ca.name} and {folder.server.name} to a place that its user may read,
  enable the plugin rabbitmq_auth_mechanism_ssl, and write the following into rabbitmq.conf, with these paths. Then run
  this command again with --system.

    listeners.tcp = none
    listeners.ssl.default = {port}
    ssl_options.cacertfile = /etc/rabbitmq/fleet/{folder.ca.name}
    ssl_options.certfile = /etc/rabbitmq/fleet/{folder.server.name}
    ssl_options.keyfile = /etc/rabbitmq/fleet/{folder.server.name}
    ssl_options.verify = verify_peer
    ssl_options.fail_if_no_peer_cert = true
    ssl_options.versions.1 = tlsv1.3
    ssl_options.versions.2 = tlsv1.2
    auth_mechanisms.1 = EXTERNAL
    ssl_cert_login_from = common_name

Then, for each device: fedmq fleet enrol ID. The coordinator finds the fleet by itself."""


def _row(inventory: Inventory, device: Device, token: Token | None) -> tuple[str, str, str, str]:
    """Return a line of the list. A device without a certificate has its newest token's time in the place of it."""
    certificates = inventory.certificates(device.id)
    until = _day(certificates[-1].not_after_s) if certificates else "none yet"
    if not certificates and token is not None and device.state == "enrolled":
        over = token.state == "closed" or token.expires_s <= time.time()
        until = f"none, token {'ended' if over else 'until'} {_day(token.expires_s)}"
    limit = "" if device.max_examples is None else f"{device.max_examples} examples"
    return device.id, device.state, until, limit


def _day(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or not 0 < float(found[1]) * _UNITS[found[2]] <= 30 * _UNITS["d"]:
        raise ConfigError(f"--ttl is {text!r}, expected a time of at most 30d, as in 90s, 30m, 1h, 7d.")
    return float(found[1]) * _UNITS[found[2]]
