"""The fleet's part of the broker: the users of coordinator and devices, the exchanges of uploads, and limits for all.

All of it follows from the inventory. So a broker that has lost its users, or a new one, is made like the old one.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmq.broker_config.admin.admin import DEVICE_LIMITS, BrokerAdmin
from fedmq.broker_config.admin.documents import User
from fedmq.broker_config.faults import fault
from fedmq.broker_config.rights import coordinator_rights, device_rights
from fedmq.broker_config.topology import Topology
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.setup import shared

AT_ONCE = 1000
"""Most devices that are added in one call."""
_PREPARED = "broker_prepared"


def prepare_again(inventory: Inventory) -> None:
    """Let the next `prepare` do its work once more: the broker may be a new one, or may have lost its users."""
    inventory.set_fact(_PREPARED, "")


def prepare(admin: BrokerAdmin, inventory: Inventory, *, max_queues: int) -> list[str]:
    """Give the coordinator and all devices of the inventory their users, and set the limits that hold for all users.
    Return what was done, in words that follow "The broker has".

    It is done once for a fleet, and once more after each `prepare_again`. A user that is there keeps its connections.
    If the broker fails, the next call does all of it. Raises BrokerError.
    """
    if inventory.fact(_PREPARED):
        return []
    fleet = shared(inventory)
    tokens = [token for token in inventory.tokens() if token.state in ("open", "used")]
    lost = {token.user for token in tokens} - set(admin.users()) if tokens else set()
    admin.add_user(fleet.coordinator_user, coordinator_rights(fleet.prefix))
    fault("fleet-coordinator-user")
    admin.set_vhost_limits({"max-queues": max_queues})
    example = Topology(fleet.prefix, payload_max_bytes=fleet.max_payload_bytes).upload("x", "0" * 32).arguments()
    escaped = fleet.prefix.replace(".", r"\.")
    bounds = {"max-length-bytes": example["x-max-length-bytes"], "expires": example["x-expires"]}
    admin.set_operator_policy(f"{fleet.prefix}-payloads", rf"^{escaped}\.payload\.", bounds)
    fault("fleet-limits")
    told = [f"the user {fleet.coordinator_user} with the coordinator's rights"]
    told += _devices(admin, inventory, fleet.prefix)
    for token in tokens:
        if token.user in lost:  # its password is in the token's file alone
            inventory.close_token(token.user)
            told.append(f"no user for the token of {token.device_id} any more: if it has not joined, make another one")
    inventory.set_fact(_PREPARED, "yes")
    return told


def add_devices(admin: BrokerAdmin, prefix: str, device_ids: Sequence[str]) -> None:
    """Give devices their users, without a password, and the exchanges of their uploads. Raises BrokerError."""
    users = [User(one, device_rights(prefix, one), limits=DEVICE_LIMITS) for one in device_ids]
    admin.add_devices(users, [Topology(prefix).upload_exchange(one).name for one in device_ids])


def _devices(admin: BrokerAdmin, inventory: Inventory, prefix: str) -> list[str]:
    """Add the devices that take part, and delete the users of those that do not: an old backup may have them."""
    names = [device.id for device in inventory.devices() if device.state in ("enrolling", "enrolled")]
    for first in range(0, len(names), AT_ONCE):
        add_devices(admin, prefix, names[first : first + AT_ONCE])
    fault("fleet-devices")
    told = [f"the users of {len(names)} device{'s' if len(names) > 1 else ''}"] if names else []
    # The rows are read again, because a device may have been revoked before its user was added.
    gone = {device.id for device in inventory.devices() if device.state in ("revoking", "revoked")}
    for name in sorted(gone & set(admin.users())) if gone else ():
        admin.delete_user(name)
        told.append(f"no user {name} any more, because that device is revoked")
    return told
