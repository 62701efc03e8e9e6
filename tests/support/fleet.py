"""A fleet in a folder, beside a broker's administration that only remembers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmq.broker_config.admin.documents import User
from fedmq.broker_config.rights import Rights
from fedmq.fleet import setup
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.setup import Plan

NOW_S = 1_800_000_000.0
PLAN = Plan(
    urls=("amqps://broker.test:5671/%2F",),
    prefix="fedmq",
    coordinator_user="coordinator",
    server_names=("127.0.0.1", "localhost"),
    max_message_bytes=16 * 1024**2,
    max_payload_bytes=4 * 1024**3,
    participant_queues="classic",
)


@dataclass
class FakeAdmin:
    """The users, exchanges and queues of a broker that is not there. `before` is called before each change."""

    rights: dict[str, Rights] = field(default_factory=dict)
    passwords: dict[str, str | None] = field(default_factory=dict)
    limits: dict[str, Mapping[str, int]] = field(default_factory=dict)
    exchanges: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    """Queues."""
    vhost_limits: dict[str, int] = field(default_factory=dict)
    policies: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    connections: dict[str, list[str]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda _what: None

    def users(self) -> Collection[str]:
        return set(self.rights)

    def add_user(
        self, name: str, rights: Rights, password: str | None = None, limits: Mapping[str, int] | None = None
    ) -> None:
        self.before("add_user")
        self.rights[name], self.passwords[name], self.limits[name] = rights, password, limits or {}

    def add_devices(self, users: Sequence[User], exchanges: Sequence[str]) -> None:
        self.before("add_devices")
        for user in users:
            self.rights[user.name], self.passwords[user.name] = user.rights, user.password
            self.limits[user.name] = user.limits
        self.exchanges |= set(exchanges)

    def delete_user(self, name: str) -> None:
        self.before("delete_user")
        self.rights.pop(name, None)

    def declare_exchange(self, name: str) -> None:
        self.before("declare_exchange")
        self.exchanges.add(name)

    def delete_exchange(self, name: str) -> None:
        self.before("delete_exchange")
        self.exchanges.discard(name)

    def delete_queues(self, names: Collection[str]) -> None:
        self.before("delete_queues")
        self.names -= set(names)

    def queues(self) -> Collection[str]:
        return set(self.names)

    def connections_of(self, user: str) -> Collection[str]:
        left = self.connections.get(user, [])
        return [left.pop()] if left else []

    def set_vhost_limits(self, limits: Mapping[str, int]) -> None:
        self.vhost_limits = dict(limits)

    def set_operator_policy(self, name: str, pattern: str, definition: Mapping[str, Any]) -> None:
        self.policies[name] = (pattern, definition)


def made(path: Path) -> FleetFolder:
    """Return the folder of a new fleet."""
    folder = FleetFolder(path / "fleet")
    setup.make(folder, PLAN, NOW_S)
    return folder
