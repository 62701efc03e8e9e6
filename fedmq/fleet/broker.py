"""The administration of the broker that a fleet needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from fedmq.broker_config.rights import Rights


class BrokerAdmin(Protocol):
    """Every method may be called again with the same arguments, and then changes nothing. All raise BrokerError."""

    def users(self) -> Collection[str]: ...

    def add_user(
        self, name: str, rights: Rights, password: str | None = None, limits: Mapping[str, int] | None = None
    ) -> None: ...

    def delete_user(self, name: str) -> None: ...

    def declare_exchange(self, name: str) -> None: ...

    def delete_exchange(self, name: str) -> None: ...

    def delete_queues(self, names: Collection[str]) -> None: ...

    def queues(self) -> Collection[str]: ...

    def connections_of(self, user: str) -> Collection[str]: ...

    def set_vhost_limits(self, limits: Mapping[str, int]) -> None: ...

    def set_operator_policy(self, name: str, pattern: str, definition: Mapping[str, Any]) -> None: ...
