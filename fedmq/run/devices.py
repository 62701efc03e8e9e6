"""A device of a fleet: one file, its bundle, and its app are all that it needs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedmq.config.device import DeviceConfig, load_device
from fedmq.fleet import bundle
from fedmq.fleet.bundle import Bundle
from fedmq.fleet.certificates import verifier
from fedmq.fleet.device import Device, tighten
from fedmq.fleet.joining import bundle_path, join
from fedmq.participant.service.service import ParticipantService
from fedmq.run.broker_user import amqp
from fedmq.run.participant import participant_for
from fedmq.schemas.errors import ConfigError


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


@contextmanager
def device_to_look_at(
    path: Path, config: Path | None, app: Path | None, flags: Sequence[str]
) -> Iterator[tuple[str, DeviceConfig]]:
    """Yield the id and the settings of an enrolled device, without writing beside its bundle and without joining.

    A token's bundle is taken if the device has joined. Raises ConfigError and FleetError.
    """
    content = bundle.read(path)
    if not isinstance(content, Bundle):
        target = bundle_path(path)
        found = bundle.read(target) if target.exists() else None
        if not isinstance(found, Bundle):
            raise ConfigError(
                f"{path} is a token, and this device has not joined with it yet: start fedmq participant --bundle "
                f"{path}, which writes {target.name}."
            )
        content = found
    with tempfile.TemporaryDirectory(prefix="fedmq-doctor-") as folder:
        device = Device(Path(folder) / "bundle", content, time.time)
        broker = device.broker_settings()
        yield (
            device.participant_id,
            load_device(config, app, flags, broker=broker, coordinator_user=content.coordinator_user),
        )


def open_device(path: Path) -> Device:
    """Read a bundle, or a token, with which the device joins now unless it has joined before.

    The mode is changed after the reading: a path that was given by mistake stays as it is.
    """
    content = bundle.read(path)
    tighten(path)
    if not isinstance(content, Bundle):
        target = bundle_path(path)
        if target.exists():
            found = bundle.read(target)
            tighten(target)
            content = found if isinstance(found, Bundle) else join(path, content, amqp)
        else:
            content = join(path, content, amqp)
        path = target
    return Device(path, content, time.time)
