"""definitions.json from the topology: `python -m fedmq.broker_config.definitions` writes it, `--check` compares.

The file is for operators who want the objects to exist before the first process comes (`rabbitmqctl
import_definitions`). Nothing depends on it: the coordinator declares the shared objects at its start, and each
participant its own queue. The file holds no user, and therefore no password.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from fedmq.broker_config.topology import DEFAULT_EXCHANGE, Topology

PATH = Path(__file__).parent / "definitions.json"


def definitions(topology: Topology, vhost: str = "/") -> dict[str, Any]:
    """Return all that a coordinator declares at its start, in the form of RabbitMQ's exports."""
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [
            {
                "name": exchange.name,
                "vhost": vhost,
                "type": "direct",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for exchange in topology.exchanges
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": queue.arguments(),
            }
            for queue in topology.coordinator_queues
        ],
        "bindings": [
            {
                "source": queue.exchange,
                "vhost": vhost,
                "destination": queue.name,
                "destination_type": "queue",
                "routing_key": queue.routing_key,
                "arguments": {},
            }
            for queue in topology.coordinator_queues
            if queue.exchange != DEFAULT_EXCHANGE
        ],
    }


def password_hash(password: str) -> str:
    """Return a password as RabbitMQ keeps it (rabbit_password_hashing_sha256), with a new salt."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def text() -> str:
    """Return the content of definitions.json for the default prefix."""
    return json.dumps(definitions(Topology()), indent=2) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file. With --check, only report if the file differs from the topology."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m fedmq.broker_config.definitions [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PATH.write_text(text())
    elif PATH.read_text() != text():
        print(
            f"{PATH} differs from broker_config.topology: run python -m fedmq.broker_config.definitions and commit it",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
