"""The way in which a fleet's commands administer the broker, and the note of it in the inventory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmq.fleet.broker import BrokerAdmin
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """One way: the folder of a private node, or the URL of a management API. Neither is this machine's RabbitMQ, or the
    private node in the fleet's own folder if there is one."""

    node: Path | None = None
    management: str | None = None

    @classmethod
    def given(cls, node: Path | None, management: str | None) -> BackendChoice | None:
        """Return the choice that flags make; None if they make none. Raises ConfigError if they make two."""
        if node is not None and management is not None:
            raise ConfigError("--node and --management are two ways to the broker: give one of them")
        if node is None and management is None:
            return None
        return cls(None if node is None else node.resolve(), management)

    @classmethod
    def noted(cls, inventory: Inventory) -> BackendChoice:
        """Return the choice of the last command."""
        node, management = inventory.fact("backend_node"), inventory.fact("backend_management")
        return cls(Path(node) if node else None, management or None)

    def note(self, inventory: Inventory) -> None:
        """Remember the choice for the next command."""
        if self != BackendChoice.noted(inventory):
            inventory.set_fact("backend_node", str(self.node or ""))
            inventory.set_fact("backend_management", self.management or "")


def backend(choice: BackendChoice, folder: FleetFolder) -> BrokerAdmin:
    """Return the broker's administration. Nothing is asked yet. Raises ConfigError if there is no such way here."""
    raise ConfigError(f"{choice} {folder}")
