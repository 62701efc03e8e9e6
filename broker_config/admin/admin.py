"""The administration of a broker, in one virtual host.

Rules
1. Each call may be made again with the same arguments, and then changes nothing: a command that was killed starts over.
2. What is deleted may be gone already.
3. A password is sent as a salted hash, and no error repeats it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from fedmq.broker_config.admin import documents
from fedmq.broker_config.admin.documents import Document, User
from fedmq.broker_config.rights import Rights

DEVICE_LIMITS: Mapping[str, int] = {"max-connections": 6, "max-channels": 16}
"""Limits of a device's user. A device has one connection, and a second one while it changes its certificate."""


class BrokerAdmin(Protocol):
    """A broker's administration. Every method raises BrokerError, in words that hold no secret."""

    def users(self) -> Collection[str]:
        """Return the names of all users of the broker."""
        ...

    def add_user(
        self, name: str, rights: Rights, password: str | None = None, limits: Mapping[str, int] | None = None
    ) -> None:
        """Give a user these rights, limits and password, and no other. Without a password only a certificate lets it
        in. A user of this name that is there already is replaced."""
        ...

    def add_devices(self, users: Sequence[User], exchanges: Sequence[str]) -> None:
        """Add many users and direct exchanges in one call, as `add_user` and `declare_exchange` do one by one."""
        ...

    def delete_user(self, name: str) -> None:
        """Delete a user. RabbitMQ closes its connections, which may take some seconds."""
        ...

    def declare_exchange(self, name: str) -> None:
        """Declare a durable direct exchange."""
        ...

    def delete_exchange(self, name: str) -> None: ...

    def queues(self) -> Collection[str]:
        """Return the names of all queues of the virtual host."""
        ...

    def delete_queues(self, names: Collection[str]) -> None: ...

    def connections_of(self, user: str) -> Collection[str]:
        """Return the names of a user's open connections."""
        ...

    def set_vhost_limits(self, limits: Mapping[str, int]) -> None:
        """Set the virtual host's limits, as {"max-queues": 5000}. They replace those that were set before."""
        ...

    def set_operator_policy(self, name: str, pattern: str, definition: Mapping[str, Any]) -> None:
        """Set limits for queues by name. They win over the arguments with which a device declares its queues."""
        ...


class ByDocuments:
    """The methods that RabbitMQ can do by an import of definitions. A backend adds the import itself."""

    vhost: str

    def _import(self, document: Document, secrets: Collection[str] = ()) -> None:
        raise NotImplementedError

    def add_user(
        self, name: str, rights: Rights, password: str | None = None, limits: Mapping[str, int] | None = None
    ) -> None:
        self.add_devices([User(name, rights, password, limits or {})], [])

    def add_devices(self, users: Sequence[User], exchanges: Sequence[str]) -> None:
        if not users and not exchanges:
            return
        document = documents.added(self.vhost, users, exchanges)
        passwords = [user.password for user in users if user.password]
        self._import(
            document, [*passwords, *(row["password_hash"] for row in document["users"] if row["password_hash"])]
        )

    def declare_exchange(self, name: str) -> None:
        self.add_devices([], [name])

    def set_vhost_limits(self, limits: Mapping[str, int]) -> None:
        self._import(documents.vhost_limits(self.vhost, limits))

    def set_operator_policy(self, name: str, pattern: str, definition: Mapping[str, Any]) -> None:
        self._import(documents.operator_policy(self.vhost, name, pattern, definition))
