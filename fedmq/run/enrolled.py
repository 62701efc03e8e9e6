"""Coordinators and participants of a fleet: what its folder, or a device's bundle, says about how they run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from fedmq.broker_config.admin.admin import BrokerAdmin
from fedmq.config.file import FederationConfig
from fedmq.coordinator.members import Members
from fedmq.fleet import certificates
from fedmq.fleet.backend import BackendChoice, backend
from fedmq.fleet.bundle import Shared, vhost_of
from fedmq.fleet.folder import FleetFolder, read_text
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.registrar import Registrar
from fedmq.fleet.setup import shared
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.signing import Sign

log = EventLog(__name__)

LOOK_S = 0.05
"""Time after which a change of the inventory holds for the next message, a revocation for example."""
SAME = ("max_message_bytes", "max_payload_bytes", "participant_queues")
"""Settings that the devices know from their bundles."""


@dataclass(frozen=True, slots=True)
class OpenFleet:
    """A fleet at work in a coordinator."""

    config: FederationConfig
    """The federation, with the fleet's address and certificates where the file has none."""
    members: Members
    registrar: Registrar
    sign: Sign
    """Signs tasks, with the key in the fleet's folder."""


def as_coordinator(config: FederationConfig) -> FederationConfig:
    """Return the federation with the fleet's address and the coordinator's certificate where the file has none.

    Raises ConfigError if file and fleet contradict each other.
    """
    if config.security.fleet is None:
        return config
    folder = FleetFolder(Path(config.security.fleet))
    with Inventory(folder.inventory) as inventory:
        return _applied(config, folder, shared(inventory))


@contextmanager
def open_fleet(config: FederationConfig) -> Iterator[OpenFleet]:
    """Yield the federation's fleet at work. Raises FleetError if `security.fleet` names none, and ConfigError."""
    assert config.security.fleet is not None
    folder = FleetFolder(Path(config.security.fleet))
    # Two, because the loop asks the one, and must not wait for a write of the other.
    with Inventory(folder.inventory, LOOK_S) as members, Inventory(folder.inventory) as own:
        admin = _admin(own, folder)
        registrar = Registrar(folder, own, wall_s=time.time, admin=admin)
        fleet = shared(own)
        yield OpenFleet(_applied(config, folder, fleet), members, registrar, _signer(folder, fleet))


def _admin(inventory: Inventory, folder: FleetFolder) -> BrokerAdmin | None:
    """Return the broker's administration, which deletes the users of tokens; None if this machine has no way to it."""
    try:
        return backend(BackendChoice.noted(inventory), folder, vhost_of(shared(inventory)))
    except ConfigError as error:
        log.info("no_administration", detail=f"{error}. Users of tokens stay until the next `fedmq fleet` command")
        return None


def _signer(folder: FleetFolder, fleet: Shared) -> Sign:
    """Return the signing of tasks. Raises ConfigError if the devices know another key, and FleetError."""
    private = read_text(folder.signing_key)
    if certificates.public_signing_key(private) != fleet.coordinator_key:
        raise ConfigError(
            f"{folder.signing_key} is not the key that the devices' bundles have: every device would refuse every "
            "task. Put the fleet's own key back. A standby coordinator has a copy of the same folder."
        )
    log.info("tasks_are_signed", key=fleet.coordinator_key[:16])
    return certificates.signer(private)


def _applied(config: FederationConfig, folder: FleetFolder, fleet: Shared) -> FederationConfig:
    broker, given = config.broker, config.broker.model_fields_set
    if "coordinator_user" in config.security.model_fields_set and (
        config.security.coordinator_user != fleet.coordinator_user
    ):
        raise ConfigError(
            f"security.coordinator_user is {config.security.coordinator_user!r}, and the fleet in {folder.path} was "
            f"made for {fleet.coordinator_user!r}: leave the setting out, or make another fleet."
        )
    if broker.prefix != fleet.prefix:
        raise ConfigError(
            f"broker.prefix is {broker.prefix!r}, and the fleet in {folder.path} was made for {fleet.prefix!r}."
        )
    for key in SAME:
        if getattr(broker, key) != getattr(fleet, key):
            detail = f"{getattr(broker, key)} here, {getattr(fleet, key)} in the devices' bundles: run fedmq fleet init"
            log.warning("fleet_differs", key=f"broker.{key}", detail=f"{detail}, and give them new ones")
    changes: dict[str, Any] = {}
    if "auth" not in given:
        changes["auth"] = "external"
    if changes.get("auth", broker.auth) == "external":
        if "cert_file" not in given:
            changes["cert_file"] = str(folder.coordinator)
        if "url" not in given or not broker.url.get_secret_value().startswith("amqps://"):
            changes["url"] = SecretStr(",".join(fleet.urls))
    if "ca_file" not in given:
        changes["ca_file"] = str(folder.ca)
    return config.model_copy(
        update={
            "broker": broker.model_copy(update=changes),
            "security": config.security.model_copy(update={"coordinator_user": fleet.coordinator_user}),
        }
    )
