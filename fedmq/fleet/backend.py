"""The way in which a fleet's commands administer the broker, and the note of it in the inventory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmq.broker_config.admin.admin import BrokerAdmin
from fedmq.broker_config.admin.management import ManagementAdmin
from fedmq.broker_config.admin.rabbitmqctl import RabbitmqctlAdmin
from fedmq.broker_config.node.ctl import FILE, Ctl
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.schemas.errors import ConfigError

MANAGEMENT_URL = "FEDMQ_MANAGEMENT_URL"
"""Variable with the URL of a management API. It holds an administrator's password, so it is no argument."""
MANAGEMENT_CA = "FEDMQ_MANAGEMENT_CA"
"""Variable with the file of that API's authority, if the system does not know it."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """One way. No choice is the private node in the fleet's own folder: a broker that others use is changed only if
    somebody says so."""

    kind: Literal["own", "node", "system", "management"] = "own"
    place: str = ""
    """Folder of a private node."""

    @classmethod
    def given(cls, node: Path | None, system: bool, management: bool) -> BackendChoice | None:
        """Return the choice that flags make; None if they make none. Raises ConfigError if they make two."""
        if (node is not None) + system + management > 1:
            raise ConfigError("--node, --system and --management are ways to the broker: give one of them")
        if node is not None:
            return cls("node", str(node.resolve()))
        if management:
            return cls("management")
        return cls("system") if system else None

    @classmethod
    def noted(cls, inventory: Inventory) -> BackendChoice:
        """Return the choice of the last command that made one."""
        text = inventory.fact("backend")
        if text is None:
            return cls()
        kind, place = json.loads(text)
        return cls(kind, place)

    def note(self, inventory: Inventory) -> None:
        """Remember the choice for the next command."""
        if self != BackendChoice.noted(inventory):
            inventory.set_fact("backend", json.dumps([self.kind, self.place]))


def backend(choice: BackendChoice, folder: FleetFolder, vhost: str) -> BrokerAdmin:
    """Return the broker's administration. Nothing is asked yet. Raises ConfigError if there is no such way here."""
    if choice.kind == "management":
        url = os.environ.get(MANAGEMENT_URL)
        if not url:
            raise ConfigError(
                f"the management API's URL is not set: give it in the variable {MANAGEMENT_URL}, because it holds a "
                "password and everybody can see a command's arguments"
            )
        return ManagementAdmin(url, vhost, ca_file=os.environ.get(MANAGEMENT_CA))
    if choice.kind == "system":
        return RabbitmqctlAdmin(Ctl.of_system(), vhost)
    if choice.kind == "node":
        return RabbitmqctlAdmin(Ctl.of_node(Path(choice.place)), vhost)
    own = folder.path / "broker"
    if not (own / FILE).exists():
        raise ConfigError(
            "which broker is the fleet's? Start one of its own (fedmq broker --fleet), or name it: --system for the "
            "RabbitMQ of this machine, --node for a private node elsewhere, --management for a management API"
        )
    return RabbitmqctlAdmin(Ctl.of_node(own), vhost)
