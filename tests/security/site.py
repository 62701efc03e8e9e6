"""A federation's corner of a real broker: a virtual host, and users with exactly the rights of their roles."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.rights import Rights, coordinator_rights, device_rights
from fedmq.broker_config.topology import Topology
from fedmq.schemas.local.backoff import Backoff

COORDINATOR = "coordinator"
DEVICES = ("sensor", "sensor-2", "a.b", "aXb")
"""Ids that are told apart only by expressions that are escaped and anchored."""
PASSWORD = "only for this test"
DEVICE_LIMITS = {"max-connections": 6, "max-channels": 16}
"""The limits of a device's user (docs/operations.md)."""
QUICK = Backoff(base_s=0.05, cap_s=0.2)
WAIT_S = 30.0


class Site:
    """A virtual host with its users. Its prefix has a dot, which an expression must escape."""

    def __init__(self, node: PrivateNode, vhost: str, folder: Path) -> None:
        self.node = node
        self.vhost = vhost
        self.topology = Topology("fed.mq")
        self._folder = folder
        rights = {name: device_rights(self.topology.prefix, name) for name in DEVICES}
        self.grant({COORDINATOR: coordinator_rights(self.topology.prefix), **rights})

    def grant(self, rights: dict[str, Rights]) -> None:
        """Make users, or give them other rights, with one call of rabbitmqctl. Devices have their limits."""
        limits = {name: DEVICE_LIMITS for name in rights if name in DEVICES}
        users = [
            {"name": name, "tags": "", "limits": limits.get(name, {}), **_password_hash(PASSWORD)} for name in rights
        ]
        permissions = [
            {"user": name, "vhost": self.vhost, "configure": one.configure, "write": one.write, "read": one.read}
            for name, one in rights.items()
        ]
        path = self._folder / "users.json"
        path.write_text(json.dumps({"vhosts": [{"name": self.vhost}], "users": users, "permissions": permissions}))
        self.node.ctl("import_definitions", str(path))

    def url(self, user: str) -> str:
        return self.node.url_for(user=user, password=PASSWORD, vhost=self.vhost)

    def transport(self, user: str, name: str | None = None, max_message_bytes: int = 2**24) -> AmqpTransport:
        """Return a transport that is not open yet."""
        return AmqpTransport(self.url(user), name=name or user, backoff=QUICK, max_message_bytes=max_message_bytes)

    @contextlib.contextmanager
    def raw(self, user: str) -> Iterator[Any]:
        """Yield a plain pika channel of this user."""
        parameters = pika.URLParameters(self.url(user))
        parameters.socket_timeout = parameters.blocked_connection_timeout = WAIT_S
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection.channel()
        finally:
            with contextlib.suppress(AMQPError):
                connection.close()

    def refusal(self, user: str, act: Callable[[Any], object]) -> int | None:
        """Return the code with which the broker refuses an act on a raw channel; None if it does not."""
        with self.raw(user) as channel:
            try:
                act(channel)
            except (ChannelClosedByBroker, ConnectionClosedByBroker) as refused:
                return int(refused.reply_code)
        return None

    def depths(self) -> dict[str, int]:
        """Return the number of ready messages in each queue that is there, of all that fedmq may have made."""
        topology, found = self.topology, {}
        queues = (*topology.coordinator_queues, *map(topology.participant, DEVICES))
        uploads = [topology.upload(name, "0" * 32) for name in DEVICES]
        with self.raw(COORDINATOR) as channel:
            connection = channel.connection
            for queue in (*queues, *uploads):
                asked = connection.channel()
                with contextlib.suppress(ChannelClosedByBroker):
                    found[queue.name] = int(asked.queue_declare(queue.name, passive=True).method.message_count)
        return found

    def clear(self) -> None:
        """Delete the queues and exchanges of the federation, so that the next run finds an empty broker."""
        topology = self.topology
        with self.raw(COORDINATOR) as channel:
            for name in self.depths():
                channel.queue_delete(name)
            for exchange in (*topology.exchanges, *map(topology.upload_exchange, DEVICES)):
                channel.exchange_delete(exchange.name)

    def close(self) -> None:
        self.node.ctl("delete_vhost", self.vhost)


def _password_hash(password: str) -> dict[str, str]:
    """Return a password as RabbitMQ's definitions have it: a salt, then SHA-256 of salt and password."""
    salt = b"salt"
    hashed = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    return {"password_hash": hashed, "hashing_algorithm": "rabbit_password_hashing_sha256"}


def until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Ask until the condition holds."""
    pause = threading.Event()
    for _ in range(int(within_s / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError(f"not within {within_s:g} s")
