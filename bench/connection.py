"""The connection of a benchmark's processes: by password, or by certificate if their environment names a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedmq.broker_config.amqp.tls import TlsFiles
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
