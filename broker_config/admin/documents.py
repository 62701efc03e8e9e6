"""RabbitMQ's definitions as data, for users, exchanges and limits. Both backends import them, in one call each.

RabbitMQ applies a document in this order: users, rights, exchanges, parameters. If it fails in between, a user without
rights may be left, which can do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fedmq.broker_config.definitions import password_hash
from fedmq.broker_config.rights import Rights

Document: TypeAlias = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class User:
    """A user of the broker. Without a password only a certificate lets it in."""

    name: str
    rights: Rights
    password: str | None = field(default=None, repr=False)
    limits: Mapping[str, int] = field(default_factory=dict)
    """Limits as RabbitMQ names them: `max-connections`, `max-channels`."""


def added(vhost: str, users: Sequence[User], exchanges: Sequence[str]) -> Document:
    """Return the document that adds these users and direct exchanges."""
    return {
        "users": [
            {
                "name": user.name,
                # RabbitMQ refuses every password, also the empty one, to a user whose hash is empty.
                "password_hash": password_hash(user.password) if user.password else "",
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
                "limits": dict(user.limits),
            }
            for user in users
        ],
        "permissions": [
            {
                "user": user.name,
                "vhost": vhost,
                "configure": user.rights.configure,
                "write": user.rights.write,
                "read": user.rights.read,
            }
            for user in users
        ],
        "exchanges": [
            {
                "name": name,
                "vhost": vhost,
                "type": "direct",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in exchanges
        ],
    }


def vhost_limits(vhost: str, limits: Mapping[str, int]) -> Document:
    """Return the document that sets a virtual host's limits."""
    return {"parameters": [_parameter(vhost, "vhost-limits", "limits", dict(limits))]}


def operator_policy(vhost: str, name: str, pattern: str, definition: Mapping[str, Any]) -> Document:
    """Return the document that sets an operator policy for queues."""
    value = {"pattern": pattern, "apply-to": "queues", "priority": 0, "definition": dict(definition)}
    return {"parameters": [_parameter(vhost, "operator_policy", name, value)]}


def _parameter(vhost: str, component: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"vhost": vhost, "component": component, "name": name, "value": value}
