"""The making of a fleet: its authority, and the broker's and the coordinator's credentials.

Each step is done once: what is there already stays. So a command that was killed is run again and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmq.broker_config.faults import fault
from fedmq.fleet import certificates
from fedmq.fleet.bundle import Shared
from fedmq.fleet.certificates import DAY_S, Credential
from fedmq.fleet.folder import FleetFolder, read_text, write_secret
from fedmq.fleet.inventory import Inventory
from fedmq.schemas.errors import ConfigError, FleetError

OWN_LIFETIME_S = 825 * DAY_S
"""Lifetime of the broker's and the coordinator's certificates. `fedmq fleet renew` renews them."""
DEVICE_LIFETIME_S = 90 * DAY_S
RENEWED_AFTER = 1 / 3
"""Part of a certificate's lifetime after which it is renewed. A device that is away for weeks still has two thirds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices for a fleet that are the same for all its devices."""

    urls: tuple[str, ...]
    """amqps:// URLs of the broker, without a user."""
    prefix: str
    coordinator_user: str
    server_names: tuple[str, ...]
    """Host names and addresses by which the broker is reached."""
    max_message_bytes: int
    max_payload_bytes: int
    participant_queues: str
    device_lifetime_s: float = DEVICE_LIFETIME_S


def make(folder: FleetFolder, plan: Plan, now_s: float, ca_key: Path | None = None) -> list[str]:
    """Make a fleet's folder with everything that needs no broker; return a sentence on each thing that was made.

    A fleet that is there takes the plan's limits, URLs and server names, and keeps the rest.

    Raises FleetError if the folder cannot be written, and ConfigError if the plan is for another prefix or another
    coordinator's user than the fleet was made for.
    """
    made = []
    folder.make()
    if not folder.ca.exists():
        authority = certificates.new_ca(f"fedmq {plan.prefix}", now_s)
        write_secret(ca_key or folder.ca_key, authority.key)
        fault("fleet-ca-key")
        write_secret(folder.ca, authority.certificate)
        made.append(f"the authority {folder.ca}, for ten years; its key is {ca_key or folder.ca_key}")
    if not folder.signing_key.exists():
        write_secret(folder.signing_key, certificates.new_signing_key().private)
        made.append(f"the coordinator's signing key {folder.signing_key}")
    fault("fleet-signing-key")
    with Inventory.create(folder.inventory) as inventory:
        before = shared(inventory) if inventory.fact("shared") else None
        if before is not None and (before.prefix, before.coordinator_user) != (plan.prefix, plan.coordinator_user):
            raise ConfigError(
                f"{folder.path} is the fleet of the prefix {before.prefix} and the coordinator's user "
                f"{before.coordinator_user}, got {plan.prefix} and {plan.coordinator_user}: use another folder."
            )
        made += _own_credentials(folder, plan, now_s, ca_key)
        fault("fleet-credentials")
        now = Shared.model_validate(
            {
                "urls": plan.urls,
                "prefix": plan.prefix,
                "coordinator_user": plan.coordinator_user,
                "coordinator_key": certificates.public_signing_key(read_text(folder.signing_key)),
                "ca": read_text(folder.ca),
                "max_message_bytes": plan.max_message_bytes,
                "max_payload_bytes": plan.max_payload_bytes,
                "participant_queues": plan.participant_queues,
            }
        )
        if now != before:
            inventory.set_fact("shared", now.model_dump_json())
            made.append(f"the inventory {folder.inventory}" if before is None else "the inventory has the new settings")
        inventory.set_fact("server_names", ",".join(plan.server_names))
        inventory.set_fact("device_lifetime_s", repr(plan.device_lifetime_s))
        fault("fleet-inventory")
    return made


def shared(inventory: Inventory) -> Shared:
    """Return what every device of the fleet is told. Raises FleetError if the fleet was not made to its end."""
    text = inventory.fact("shared")
    if text is None:
        raise FleetError(f"{inventory.path} is not complete: run `fedmq fleet init` again.")
    return Shared.model_validate_json(text)


def device_lifetime_s(inventory: Inventory) -> float:
    """Return the lifetime of the devices' certificates, in seconds."""
    return float(inventory.fact("device_lifetime_s") or DEVICE_LIFETIME_S)


def renew_own(folder: FleetFolder, inventory: Inventory, now_s: float, ca_key: Path | None = None) -> list[str]:
    """Renew the broker's and the coordinator's certificates if they are due. Return a sentence on each.

    Raises FleetError if the authority's key is away.
    """
    names = (inventory.fact("server_names") or "localhost").split(",")
    told = []
    authority = folder.authority(ca_key)
    if due(read_text(folder.server), now_s):
        _write_server(folder, authority, names, now_s)
        told.append(f"the broker's certificate {folder.server}: RabbitMQ reads it again within minutes")
    if due(read_text(folder.coordinator), now_s):
        _write_coordinator(folder, authority, shared(inventory).coordinator_user, now_s)
        told.append(f"the coordinator's certificate {folder.coordinator}: its next connection takes it")
    return told


def due(certificate: str, now_s: float) -> bool:
    """True if a third of the certificate's lifetime is over."""
    return now_s >= certificates.facts(certificate).passed(RENEWED_AFTER)


def _own_credentials(folder: FleetFolder, plan: Plan, now_s: float, ca_key: Path | None) -> list[str]:
    made = []
    if not folder.server.exists() or not _names_fit(folder, plan.server_names):
        _write_server(folder, folder.authority(ca_key), plan.server_names, now_s)
        made.append(f"the broker's certificate {folder.server} for {', '.join(plan.server_names)}")
    if not folder.coordinator.exists():
        _write_coordinator(folder, folder.authority(ca_key), plan.coordinator_user, now_s)
        made.append(f"the coordinator's certificate {folder.coordinator} for the user {plan.coordinator_user}")
    return made


def _names_fit(folder: FleetFolder, names: Sequence[str]) -> bool:
    return set(names) <= set(certificates.server_names(read_text(folder.server)))


def _write_server(folder: FleetFolder, authority: Credential, names: Sequence[str], now_s: float) -> None:
    write_secret(folder.server, certificates.server_certificate(authority, names, now_s, OWN_LIFETIME_S).pem)


def _write_coordinator(folder: FleetFolder, authority: Credential, user: str, now_s: float) -> None:
    write_secret(folder.coordinator, certificates.client_certificate(authority, user, now_s, OWN_LIFETIME_S).pem)
