"""The connection of a benchmark's processes: by password, or by certificate if their environment names a folder."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.tls import NodeTls
from fedmq.fleet import setup
from fedmq.fleet.folder import FleetFolder

FLEET = "FEDMQ_BENCH_FLEET"
"""Variable that names a fleet's folder. With it every process is the coordinator's user, over TLS."""


def files() -> dict[str, str]:
    """Return the certificate files as AmqpTransport takes them; nothing without a fleet."""
    path = os.environ.get(FLEET)
    if path is None:
        return {}
    folder = FleetFolder(Path(path))
    own = str(folder.coordinator)
    return {"ca_file": str(folder.ca), "cert_file": own, "key_file": own}


def options() -> dict[str, Any]:
    """Return the arguments of AmqpTransport that say who we are."""
    found = files()
    return {"auth": "external", **found} if found else {}


def removal_options() -> dict[str, Any]:
    """Return the same for `remove`."""
    found = files()
    return {"auth": "external", "tls": TlsFiles(**found)} if found else {}


USER = "coordinator"
"""The one user of a fleet's processes here. The broker lets it say for whom a message is."""


@contextmanager
def fleet_node(work: Path) -> Iterator[tuple[PrivateNode, FleetFolder]]:
    """Yield a node that lets in certificates alone, and the folder of its fleet."""
    folder = FleetFolder(work / "fleet")
    plan = setup.Plan(
        urls=("amqps://127.0.0.1:5671/%2F",), prefix="bench", coordinator_user=USER, server_names=("127.0.0.1",),
        max_message_bytes=2**27, max_payload_bytes=2**30, participant_queues="classic",
    )  # fmt: skip
    setup.make(folder, plan, time.time())
    with PrivateNode(work / "tls", tls=NodeTls(folder.ca, folder.server, folder.server)) as node:
        node.ctl("add_user", USER, secrets.token_hex(16))
        node.ctl("clear_password", USER)
        node.ctl("set_user_tags", USER, "impersonator")
        node.ctl("set_permissions", USER, ".*", ".*", ".*")
        yield node, folder
