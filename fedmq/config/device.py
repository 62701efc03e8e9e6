"""The settings of a device: its app and its [participant] table. Its bundle knows the rest.

A device needs no federation file. If it has one, its app, what goes with the app ([files], [uplink]) and its own tables
are taken from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedmq.broker_config.security import SecuritySettings
from fedmq.broker_config.settings import BrokerSettings
from fedmq.config.file import Files, absolute_codec, absolute_files, absolute_path, load_config
from fedmq.config.mistakes import explain
from fedmq.config.overrides import Overrides, from_environment, from_flags
from fedmq.coordinator.settings import UplinkSettings
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.errors import ConfigError

OF_THE_BUNDLE = (
    "url", "auth", "prefix", "max_message_bytes", "max_payload_bytes", "participant_queues", "ca_file", "cert_file",
    "key_file",
)  # fmt: skip
"""Keys of the [broker] table that the bundle sets. The others are the device's own: a slow link wants other times."""


class DeviceConfig(BaseModel):
    """The checked settings of a device. Its paths are absolute after `load_device`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str = "app.py"
    files: Files = {}
    uplink: UplinkSettings = UplinkSettings()
    broker: BrokerSettings = BrokerSettings()
    security: SecuritySettings = SecuritySettings()
    participant: ParticipantSettings = ParticipantSettings()


def load_device(
    config: Path | None,
    app: Path | None,
    flags: Sequence[str],
    *,
    broker: BrokerSettings,
    coordinator_user: str,
    environ: Mapping[str, str] | None = None,
) -> DeviceConfig:
    """Read the device's own settings, and lay the bundle's over them.

    Without a federation file, paths are relative to the working directory. `app` wins over the file's.

    Raises ConfigError, which lists all mistakes.
    """
    environ = os.environ if environ is None else environ
    if config is not None:
        file = load_config(config, flags, environ)
        own = DeviceConfig(
            app=file.app, files=file.files, uplink=file.uplink, broker=file.broker, participant=file.participant
        )
    else:
        own = _without_file(flags, environ)
    of_bundle = {key: getattr(broker, key) for key in OF_THE_BUNDLE}
    return own.model_copy(
        update={
            "app": own.app if app is None else absolute_path(str(app), Path.cwd()),
            "broker": own.broker.model_copy(update=of_bundle),
            "security": SecuritySettings(identity="user", coordinator_user=coordinator_user),
        }
    )


def _without_file(flags: Sequence[str], environ: Mapping[str, str]) -> DeviceConfig:
    tree: dict[str, object] = {}
    schema = DeviceConfig.model_json_schema()
    overrides = Overrides(schema, tree)
    from_environment(overrides, environ)
    from_flags(overrides, flags)
    mistakes = list(overrides.mistakes)
    own: DeviceConfig | None = None
    try:
        own = DeviceConfig.model_validate(tree)
    except ValidationError as error:
        mistakes += explain(error, tree, schema, overrides.origins)
    if mistakes or own is None:
        raise ConfigError("\n".join(["The device's settings:", *(f"  {m.place}: {m.text}" for m in mistakes)]))
    here = Path.cwd()
    return own.model_copy(
        update={
            "app": absolute_path(own.app, here),
            "files": absolute_files(own.files, here),
            "uplink": absolute_codec(own.uplink, here),
            "participant": own.participant.model_copy(
                update={"spool_dir": absolute_path(own.participant.spool_dir, here)}
            ),
        }
    )
