"""One TOML file per federation: the same for the coordinator and every participant.

A value comes from the strongest of: command-line flags, `FEDMQ_*` environment variables, the file, the defaults.
All mistakes are reported together, each with its place, the value got and the values allowed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.security import SecuritySettings
from fedmq.broker_config.settings import BrokerSettings
from fedmq.config.custom_strategy import CustomStrategy
from fedmq.config.mistakes import Mistake, explain, show
from fedmq.config.overrides import Overrides, from_environment, from_flags
from fedmq.coordinator.decisions.requirements import unmet
from fedmq.coordinator.settings import (
    ArchiveSettings,
    CommitSettings,
    DownlinkSettings,
    RunSettings,
    TrainingSettings,
    UplinkSettings,
)
from fedmq.coordinator.strategies import BuiltIn
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.files import decoded
from fedmq.schemas.messages import Digest

Files = dict[str, Digest]
"""Files that the app reads, each with its SHA-256."""


class FederationConfig(BaseModel):
    """A checked federation file. Its paths are absolute after `load_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str = "app.py"
    """The app file. Like all paths in the file, it is relative to the federation file."""
    runs_dir: str = "runs"
    """Folder in which each run has a folder of its own, with its checkpoints and its ledger."""
    initial: str | None = None
    """A .safetensors file to start from. None starts from the app's model."""
    files: Files = {}
    """Files that the app reads. Every participant's must be the same."""
    run: RunSettings
    strategy: Annotated[BuiltIn | CustomStrategy, Field(discriminator="name")]
    training: TrainingSettings = TrainingSettings()
    uplink: UplinkSettings = UplinkSettings()
    downlink: DownlinkSettings = DownlinkSettings()
    commit: CommitSettings = CommitSettings()
    archive: ArchiveSettings = ArchiveSettings()
    broker: BrokerSettings = BrokerSettings()
    security: SecuritySettings = SecuritySettings()
    participant: ParticipantSettings = ParticipantSettings()

    @property
    def run_dir(self) -> Path:
        """Folder of this run's checkpoints and ledger."""
        return Path(self.runs_dir) / self.run.run_id


def load_config(
    path: str | Path, flags: Sequence[str] = (), environ: Mapping[str, str] | None = None, *, broker: str | None = None
) -> FederationConfig:
    """Read, override and check a federation file.

    `flags` are `key.path=value` texts (`--set`). `broker` is the value of `--broker`, which wins over them.

    Raises ConfigError, which lists all mistakes.
    """
    path = Path(path)
    tree = read_toml(path)
    schema = FederationConfig.model_json_schema()
    overrides = Overrides(schema, tree)
    from_environment(overrides, os.environ if environ is None else environ)
    from_flags(overrides, flags)
    if broker is not None:
        overrides.put(("broker", "url"), broker.strip(), "--broker")
    mistakes = list(overrides.mistakes)
    config: FederationConfig | None = None
    try:
        config = FederationConfig.model_validate(tree)
    except ValidationError as e:
        mistakes += explain(e, tree, schema, overrides.origins)
    else:
        mistakes += [mistake.of(overrides.origins) for mistake in _beyond_types(config)]
    if mistakes or config is None:
        raise ConfigError(_report(path, mistakes))
    return _absolute(config, path.resolve().parent)


FEDERATION_HINT = "give its path with --config (examples/mnist/federation.toml is one)"


def read_toml(path: Path, what: str = "federation", hint: str = FEDERATION_HINT) -> dict[str, Any]:
    """Return the file as a tree of tables. Raises ConfigError if it is missing or is not TOML."""
    try:
        text = decoded(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} file {path}: {hint}.") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"The {what} file {path} is not text in UTF-8 ({e}): save it as UTF-8.") from None
    except OSError as e:
        raise ConfigError(f"The {what} file {path} cannot be read: {e}") from e
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None


def _beyond_types(config: FederationConfig) -> list[Mistake]:
    """Return the mistakes that pydantic's types do not find."""
    stop = config.run.stop
    found = []
    if all(
        value is None for value in (stop.max_versions, stop.max_updates, stop.max_time_s, stop.target, stop.patience)
    ):
        allowed = "one or more of max_versions, max_updates, max_time_s, target, patience"
        found.append(Mistake("run.stop", f"the run would never end; set {allowed}"))
    found += _broker(config.broker)
    if not isinstance(config.strategy, CustomStrategy):
        lacking = unmet(config.run.client_weights, config.strategy, config.training, config.run.steps)
        found += [Mistake(place, text) for place, text in lacking]
        for table in (config.uplink, config.downlink):
            found += [Mistake(place, text) for place, text in table.unmet(config.strategy)]
    return found


def _broker(broker: BrokerSettings) -> list[Mistake]:
    """Return the mistakes that show without reading the certificate, which only the roles need."""
    found = []
    try:
        addresses = Addresses(broker.url.get_secret_value())
    except ConfigError as e:
        return [Mistake("broker.url", str(e))]
    if broker.auth == "external":
        if broker.cert_file is None:
            found.append(Mistake("broker.cert_file", 'missing; auth = "external" logs in by this certificate'))
        if not all(address.tls for address in addresses):
            found.append(Mistake("broker.url", 'auth = "external" takes TLS, expected amqps://HOST:PORT/VHOST'))
    return found


def _report(path: Path, mistakes: Sequence[Mistake]) -> str:
    count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n".join([f"{path} has {count}:", *(f"  {m.place}: {m.text}" for m in mistakes)])


def _fleet(given: str | None, folder: Path) -> str | None:
    """Return the fleet's folder; None if there is no fleet."""
    if given is None and not (folder / "fleet" / "inventory.sqlite").is_file():
        return None
    return absolute_path(given or "fleet", folder)


def absolute_path(value: str, folder: Path) -> str:
    """Return a path of a file's setting, which is relative to the file's folder. Raises ConfigError."""
    try:
        return str((folder / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError) as e:  # a link to itself, or a home that nobody has
        raise ConfigError(f"The path {show(value)} cannot be followed: {e}") from None


def absolute_files(files: Files, folder: Path) -> Files:
    """Return the [files] table with absolute paths. Raises ConfigError."""
    return {absolute_path(path, folder): digest for path, digest in files.items()}


def absolute_codec(uplink: UplinkSettings, folder: Path) -> UplinkSettings:
    """Return the [uplink] table with the absolute path of its file. Raises ConfigError."""
    return uplink if uplink.file is None else uplink.model_copy(update={"file": absolute_path(uplink.file, folder)})


def _absolute(config: FederationConfig, folder: Path) -> FederationConfig:
    def resolve(value: str) -> str:
        return absolute_path(value, folder)

    broker = {
        key: resolve(value)
        for key in ("ca_file", "cert_file", "key_file")
        if (value := getattr(config.broker, key)) is not None
    }
    return config.model_copy(
        update={
            "app": resolve(config.app),
            "runs_dir": resolve(config.runs_dir),
            "files": absolute_files(config.files, folder),
            "initial": None if config.initial is None else resolve(config.initial),
            "broker": config.broker.model_copy(update=broker),
            "commit": config.commit
            if config.commit.copy_dir is None
            else config.commit.model_copy(update={"copy_dir": resolve(config.commit.copy_dir)}),
            "strategy": replace(config.strategy, file=resolve(config.strategy.file))
            if isinstance(config.strategy, CustomStrategy)
            else config.strategy,
            "uplink": absolute_codec(config.uplink, folder),
            "participant": config.participant.model_copy(update={"spool_dir": resolve(config.participant.spool_dir)}),
            "security": config.security
            if (fleet := _fleet(config.security.fleet, folder)) is None
            else config.security.model_copy(update={"fleet": fleet}),
        }
    )
