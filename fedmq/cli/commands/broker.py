"""`fedmq broker`: a RabbitMQ node of our own."""

from __future__ import annotations

import os
import shlex
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmq.cli.commands import options
from fedmq.cli.signals import stopped_by_signals
from fedmq.schemas.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from fedmq.broker_config.amqp.address import BrokerAddress
    from fedmq.broker_config.node.tls import NodeTls

POLL_S = 1.0
MOST_URL_BYTES = 4096
URL_FILE = "fedmq-url"
"""File with the node's URL. It holds the password, so only this user may read it."""
FLEET_NODE = "broker"
"""Folder of the node's data inside a fleet's folder."""


def command(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Folder that keeps data, port and password for the next start. Without it they are deleted."
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="AMQP port. Default: a free one.", min=1, max=65535)] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="Fleet folder of `fedmq fleet init`. The node serves TLS alone and lets in its certificates. Its data "
            "is in FLEET/broker unless --dir names another folder."
        ),
    ] = None,
    joining: Annotated[
        bool, typer.Option("--joining", help="With --fleet: also let in devices that join by a token.")
    ] = False,
    _debug: options.Debug = False,
) -> None:
    """Run a private RabbitMQ node with fedmq's configuration, until Ctrl-C.

    The node listens on 127.0.0.1 alone. It has a password of its own, or a fleet's certificates. A RabbitMQ that runs
    here already is left alone. `fedmq broker ctl` is rabbitmqctl for it.
    """
    if context.invoked_subcommand is not None:
        return
    from fedmq.broker_config.node.node import PrivateNode, find_server
    from fedmq.schemas.local.files import make_folder

    if joining and fleet is None:
        raise ConfigError("--joining is about a fleet's tokens: give --fleet too, or leave it out")
    tls = None if fleet is None else _tls(fleet, joining)
    with ExitStack() as stack:
        if fleet is not None:
            folder = folder or fleet / FLEET_NODE
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-broker-")))
        make_folder(folder)
        stack.enter_context(_alone(folder))
        before = _before(folder)
        node = PrivateNode(
            folder,
            port=port or (before.port if before else None),
            password=before.password if before and not before.tls else None,
            tls=tls,
        )
        _remember(folder, node.url)
        print(f"Starting RabbitMQ from {find_server()} ...", flush=True)
        stack.enter_context(node)
        stop = threading.Event()
        stack.enter_context(stopped_by_signals(stop.set, "the broker"))
        if tls:
            print("It lets in the fleet's certificates" + (", and passwords while devices join." if joining else "."))
        print(f"RabbitMQ listens on {node.url}\nIts data and logs are in {folder}. In each terminal that uses it:\n")
        print(f"  export FEDMQ_BROKER_URL='{node.url}'\n")
        print(f"rabbitmqctl for it: fedmq broker ctl --dir {shlex.quote(str(folder))} list_queues\n")
        print(f"Ctrl-C stops it, and so does: kill {os.getpid()}", flush=True)
        while not stop.wait(POLL_S):
            if node.pid is None:
                raise BrokerUnavailable(f"RabbitMQ has ended by itself. Its log is in {folder / 'log'}.")
    print("RabbitMQ has stopped.")


def ctl(
    arguments: Annotated[list[str], typer.Argument(help="A command of rabbitmqctl with its arguments.")],
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="The broker's folder, as `fedmq broker` tells it, if several run."),
    ] = None,
    fleet: Annotated[Path | None, typer.Option(help="The fleet whose broker it is, instead of --dir.")] = None,
) -> None:
    """Run rabbitmqctl for the node of `fedmq broker`, as in fedmq broker ctl list_queues.

    Without --dir and --fleet it is the only private node of yours that runs on this machine.

    Options of rabbitmqctl come after its command. The exit status is that of rabbitmqctl.
    """
    from fedmq.broker_config.node.ctl import Ctl, running_here

    if folder is not None and fleet is not None:
        raise ConfigError("Name the broker once: its folder with --dir, or its fleet with --fleet.")
    if fleet is not None:
        folder = fleet / FLEET_NODE
    raise typer.Exit(Ctl.of_node(folder or only_one(running_here())).call(*arguments))


def only_one(folders: Sequence[Path]) -> Path:
    """Return the one folder. Raises ConfigError if no node runs, or several do."""
    if len(folders) != 1:
        here = f"of which these run here: {', '.join(map(str, folders))}" if folders else "because none runs here"
        raise ConfigError(f"Name the broker, {here}. Give its folder with --dir, or its fleet with --fleet.")
    return folders[0]


SUBCOMMANDS = {"ctl": ctl}
PASSED_ON = ("ctl",)
"""Subcommands whose arguments, from the first one on, are another program's."""


def _tls(fleet: Path, joining: bool) -> NodeTls:
    from fedmq.broker_config.node.tls import NodeTls

    authority, own = fleet / "ca.pem", fleet / "server.pem"
    if not (authority.is_file() and own.is_file()):
        raise ConfigError(f"{fleet} is no fleet's folder, with ca.pem and server.pem: run `fedmq fleet init` first")
    return NodeTls(authority, certificate=own, key=own, passwords=joining)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second node out of the folder. Raises ConfigError if one runs in it."""
    from fedmq.schemas.local.locks import FileLock, holders

    lock = FileLock(folder / "lock")
    try:
        if not lock.take():
            raise ConfigError(
                f"A broker runs in {folder}: {holders(lock.path)}. Use it, stop it, or name another folder (--dir)."
            )
        yield
    finally:
        lock.close()


def _before(folder: Path) -> BrokerAddress | None:
    """Return the address of the last start in this folder: processes that know it find the node again."""
    from fedmq.broker_config.amqp.address import BrokerAddress
    from fedmq.schemas.local.files import read_text

    try:
        return BrokerAddress.parse(read_text(folder / URL_FILE, MOST_URL_BYTES).strip())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / URL_FILE} cannot be read: {error}") from None


def _remember(folder: Path, url: str) -> None:
    from fedmq.schemas.local.files import write_private

    write_private(folder / URL_FILE, f"{url}\n")
