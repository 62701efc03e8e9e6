"""A device goes: first out of the inventory, so that the coordinator takes nothing more from it, then out of the
broker.

Each step may be done again. A command that was killed is run again, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedmq.broker_config.admin.admin import BrokerAdmin
from fedmq.broker_config.faults import fault
from fedmq.broker_config.topology import Topology
from fedmq.fleet.enrolment import end_token
from fedmq.fleet.inventory import Inventory
from fedmq.fleet.setup import shared
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)

CLOSING_S = 30.0
"""Longest wait for the broker to close the connections of a deleted user: up to 13 s were measured on a busy 4.0."""
POLL_S = 0.25


def revoke(
    device_id: str,
    *,
    inventory: Inventory,
    admin: BrokerAdmin,
    now_s: float,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Revoke a device, for good. Return a sentence for the operator.

    Raises ConfigError if there is no such device, and BrokerError: it is revoked then, and the same command goes on.
    """
    inventory.begin_revocation(device_id, now_s)
    fault("fleet-revoking")
    fleet = shared(inventory)
    admin.delete_user(device_id)
    fault("fleet-user-deleted")
    for token in inventory.tokens():
        if token.device_id == device_id and token.state != "closed":
            end_token(token, inventory, admin, fleet.prefix)
    closed = _connections_close(device_id, admin, monotonic, sleep)
    topology = Topology(fleet.prefix)
    own, uploads = topology.participant(device_id).name, f"{fleet.prefix}.payload.{device_id}."
    # An id may go on after a dot: the queues of "a.b" begin as those of "a" do, with a key that has another form.
    admin.delete_queues([name for name in admin.queues() if name == own or _is_payload(name, uploads)])
    fault("fleet-queues-deleted")
    admin.delete_exchange(topology.upload_exchange(device_id).name)
    fault("fleet-exchange-deleted")
    inventory.revoked(device_id)
    if not closed:
        log.warning("connections_still_open", participant=device_id, detail="the broker has not closed them yet")
    return f"{device_id} is revoked. Its id is never enrolled again."


def _connections_close(
    device_id: str, admin: BrokerAdmin, monotonic: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    deadline = monotonic() + CLOSING_S
    while admin.connections_of(device_id):
        if monotonic() >= deadline:
            return False
        sleep(POLL_S)
    return True


def _is_payload(name: str, beginning: str) -> bool:
    key = name.removeprefix(beginning)
    return key != name and len(key) == 32 and set(key) <= set("0123456789abcdef")
