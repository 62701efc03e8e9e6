"""A device comes in: by a bundle with its certificate, or by a token with which it asks for one.

Steps of `enrol` and of `token`, each of which may be done again
1. the inventory's row "enrolling"
2. the user of the broker, without a password: only the certificate's holder is let in; and the exchange of its uploads
3. the bundle, or the token with its temporary user
4. the row "enrolled"

A command that was killed between any two is run again, and goes on. A certificate whose bundle was not written is of no
use to anybody, because its key is gone.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from fedmq.broker_config.admin.admin import BrokerAdmin
from fedmq.broker_config.faults import fault
from fedmq.broker_config.rights import joining_rights
from fedmq.broker_config.topology import Topology
from fedmq.fleet import bundle, certificates
from fedmq.fleet.broker import add_devices
from fedmq.fleet.bundle import Bundle, Shared, TokenFile
from fedmq.fleet.folder import FleetFolder
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.rows import CertificateRow, Token
from fedmq.fleet.setup import device_lifetime_s, shared
from fedmq.schemas.errors import ConfigError, FedmqError
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

JOIN_PREFIX = "join-"
"""Beginning of the temporary users' names."""
JOINING_LIMITS = {"max-connections": 4, "max-channels": 8}
USED_TOKEN_S = 7 * 24 * 3600.0
"""Time for which a device may fetch its certificate again after it has asked in time."""


def check_id(device_id: str, coordinator_user: str) -> None:
    """Raise ConfigError if a device may not have this name, which `schemas.messages.Identifier` allows."""
    folded = device_id.casefold()
    if folded == coordinator_user.casefold():
        raise ConfigError(f'"{device_id}" is the coordinator\'s user: choose another id.')
    if folded.startswith(JOIN_PREFIX):
        raise ConfigError(f'"{device_id}" begins as the temporary users of tokens do: choose an id without "join-".')


def enrol(
    device_id: str,
    path: Path,
    *,
    folder: FleetFolder,
    inventory: Inventory,
    admin: BrokerAdmin,
    now_s: float,
    ca_key: Path | None = None,
    max_examples: int | None = None,
    again: bool = False,
) -> str:
    """Enrol a device and write its bundle to `path`. Return a sentence for the operator.

    `again` makes another bundle for a device that has one.

    Raises ConfigError for an id that cannot be enrolled, FleetError and BrokerError.
    """
    authority = folder.authority(ca_key)
    device = _prepared(device_id, inventory, admin, now_s, max_examples)
    if device == "enrolled" and not again and inventory.certificates(device_id):
        if path.is_file():
            return f"{device_id} is enrolled already; its bundle is {path}."
        raise ConfigError(
            f"{device_id} is enrolled already, and {path} is not there. If its bundle is lost, make another one with "
            "--again; if somebody else may have it, revoke the device and enrol it under another id."
        )
    issued = certificates.client_certificate(authority, device_id, now_s, device_lifetime_s(inventory))
    inventory.add_certificate(row_of(device_id, issued.certificate))
    fault("fleet-certificate")
    content = Bundle(
        **shared(inventory).model_dump(), participant_id=device_id, certificate=issued.certificate, key=issued.key
    )
    bundle.write(path, content)
    fault("fleet-bundle")
    inventory.enrolled(device_id)
    fault("fleet-enrolled")
    return f"{device_id} is enrolled. Take {path} to the device, and delete it here: who has it is {device_id}."


def token(
    device_id: str,
    path: Path,
    ttl_s: float,
    *,
    inventory: Inventory,
    admin: BrokerAdmin,
    now_s: float,
    max_examples: int | None = None,
    again: bool = False,
) -> str:
    """Prepare a device and write a token with which it may join once. Earlier tokens of this id end. Return a sentence
    for the operator. Raises as `enrol` does."""
    _prepared(device_id, inventory, admin, now_s, max_examples)
    if inventory.certificates(device_id) and not again:
        raise ConfigError(
            f"{device_id} has a certificate already. If its bundle is lost, make a token with --again; if somebody "
            "else may have it, revoke the device and enrol it under another id."
        )
    fleet = shared(inventory)
    for old in inventory.tokens():
        if old.device_id == device_id and old.state != "closed":
            end_token(old, inventory, admin, fleet.prefix)
    fault("fleet-old-tokens")
    user, password = f"{JOIN_PREFIX}{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    inventory.begin_token(user, device_id, now_s, now_s + ttl_s)
    fault("fleet-token-row")
    admin.add_user(user, joining_rights(fleet.prefix, user), password=password, limits=JOINING_LIMITS)
    fault("fleet-token-user")
    content = TokenFile(
        **fleet.model_dump(), participant_id=device_id, user=user, password=password, expires_s=now_s + ttl_s
    )
    bundle.write(path, content)
    fault("fleet-token")
    inventory.open_token(user)
    inventory.enrolled(device_id)
    fault("fleet-token-open")
    return f"Take {path} to the device within {ttl_s:g} s. It lets one device in as {device_id}, once."


def end_token(token: Token, inventory: Inventory, admin: BrokerAdmin, prefix: str) -> None:
    """Delete a token's user and queue, and note it. Raises BrokerError."""
    admin.delete_user(token.user)
    admin.delete_queues([Topology(prefix).participant(token.user).name])
    inventory.close_token(token.user)


def over(token: Token, inventory: Inventory, now_s: float) -> bool:
    """True if a token's user may be deleted: it is out of time, or its device has its certificate on disk."""
    if token.state == "closed":
        return False
    if token.key_id is None:
        return now_s >= token.expires_s
    row = inventory.certificate_of_key(token.key_id)
    return (row is not None and row.installed_s is not None) or now_s >= token.expires_s + USED_TOKEN_S


def sweep(inventory: Inventory, admin: BrokerAdmin, now_s: float) -> None:
    """Delete the users of tokens that are over. A broker that refuses is told in the log, and asked again later."""
    for one in inventory.tokens():
        if over(one, inventory, now_s):
            try:
                end_token(one, inventory, admin, shared(inventory).prefix)
            except FedmqError as error:
                log.warning("token_not_ended", user=one.user, error=error)
                return
            log.info("token_ended", participant=one.device_id, user=one.user)


def row_of(device_id: str, certificate: str) -> CertificateRow:
    """Return the inventory's row of a certificate."""
    facts = certificates.facts(certificate)
    return CertificateRow(facts.serial, device_id, facts.key_id, certificate, facts.not_before_s, facts.not_after_s)


def _prepared(device_id: str, inventory: Inventory, admin: BrokerAdmin, now_s: float, max_examples: int | None) -> str:
    """Make the row, the user and the exchange of a device. Return its state before."""
    fleet: Shared = shared(inventory)
    check_id(device_id, fleet.coordinator_user)
    if inventory.device(device_id) is None and device_id in admin.users():
        raise ConfigError(
            f'The broker has a user "{device_id}" that is no device of this fleet: choose another id, or delete the '
            "user."
        )
    device = inventory.begin_enrolment(device_id, now_s, max_examples)
    fault("fleet-row")
    if device.state == "enrolling":
        add_devices(admin, fleet.prefix, [device_id])
        fault("fleet-user")
    return device.state
