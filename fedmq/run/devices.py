"""A device of a fleet: one file, its bundle, and its app are all that it needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fedmq.config.device import load_device
from fedmq.fleet import bundle
from fedmq.fleet.bundle import Bundle
from fedmq.fleet.certificates import verifier
from fedmq.fleet.device import Device, tighten
from fedmq.fleet.joining import bundle_path, join
from fedmq.participant.service.service import ParticipantService
from fedmq.run.roles import amqp, participant_for


def device_service(path: Path, config: Path | None, app: Path | None, flags: Sequence[str]) -> ParticipantService:
    """Return the participant of a bundle. With a token the device joins first, which takes a running coordinator.

    `config` is a federation file with settings of the device's own, `app` its app, which wins over the file's.

    Raises ConfigError, AppError, FleetError and BrokerError.
    """
    device = open_device(path)
    settings = load_device(
        config, app, flags, broker=device.broker_settings(), coordinator_user=device.bundle.coordinator_user
    )
    verify = verifier(device.bundle.coordinator_key)
    return participant_for(settings, device.participant_id, credentials=device, verify=verify)


def open_device(path: Path) -> Device:
    """Read a bundle, or a token, with which the device joins now unless it has joined before."""
    tighten(path)
    content = bundle.read(path)
    if not isinstance(content, Bundle):
        target = bundle_path(path)
        if target.exists():
            tighten(target)
            found = bundle.read(target)
            content = found if isinstance(found, Bundle) else join(path, content, amqp)
        else:
            content = join(path, content, amqp)
        path = target
    return Device(path, content, time.time)
