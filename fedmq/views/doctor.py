"""Check all that a run needs, and say what to do about each finding.

The role decides what is done on the broker, and which rights may be advised. Without one, `fitting_role` looks at the
broker's user. If nothing tells the roles apart, as in a demo with one user, both roles' work is done.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fedmq
from fedmq.app.needed_files import check_files
from fedmq.broker_config.amqp.handshake import MIB, identify
from fedmq.broker_config.amqp.probe import Probe
from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.amqp.transport import addresses_for
from fedmq.broker_config.settings import BrokerSettings
from fedmq.config import custom_strategy
from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.coordinator.state.run_folder import place_of
from fedmq.coordinator.strategies.protocol import Strategy
from fedmq.run.broker_user import amqp, check_user
from fedmq.schemas.errors import BrokerError, ConfigError, FedmqError
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.local.extras import EXTRAS
from fedmq.views.checks import codecs, folders, past_run, run_settings
from fedmq.views.checks.past_run import PastRun
from fedmq.views.checks.queues import depths
from fedmq.views.checks.rehearsal import TRY_S, Rehearsal
from fedmq.views.checks.time_limit import TookTooLong, limited
from fedmq.views.credentials import certificate, identity, modes
from fedmq.views.finding import Finding, Level, Role
from fedmq.views.role_rights import asked
from fedmq.views.role_rights import check as check_rights

PACKAGES = ("numpy", "pydantic", "pika", "msgpack")
OPTIONAL = (*EXTRAS, "tensorflow-cpu")
OPEN_TIMEOUT_S = 10.0
ENVELOPE_BYTES = 64 * 1024
"""Upper bound on the bytes that an envelope adds to its tensors."""


def fitting_role(config: FederationConfig, participant_id: str | None) -> Role | None:
    """Return the role that the broker's user has; None if one user may have both, or if there is none to be read."""
    security = config.security
    if security.fleet is not None:
        return "coordinator"  # only its host has the folder
    user = broker_user(config.broker)
    if user == security.coordinator_user:
        return "coordinator"
    if user is not None and (user == participant_id or security.kind(config.broker.auth) == "user"):
        return "participant"
    return None


def _files(config: FederationConfig | DeviceConfig) -> Iterator[Finding]:
    """Yield whether the files that the app reads are the federation's."""
    try:
        check_files(config.files)
    except ConfigError as error:
        yield Finding("wrong", f"files: {error}", "do what it says: no process starts without them", error)
    else:
        if config.files:
            yield Finding("ok", f"files: {len(config.files)} with the digests of [files]")


def broker_user(settings: BrokerSettings) -> str | None:
    """Return the user that we log in as; None if URL and certificate do not say."""
    try:
        return addresses_for(settings.url.get_secret_value(), settings.auth, TlsFiles.of(settings)).current.user
    except ConfigError:
        return None


def examine(
    config: FederationConfig | DeviceConfig,
    participant_id: str,
    role: Role | None = None,
    secrets: Iterable[Path] = (),
    *,
    now: datetime | None = None,
    try_s: float = TRY_S,
) -> Iterator[Finding]:
    """Run all checks, cheap ones first, and yield each finding. A device of a fleet is a participant.

    `secrets` are more files and folders that must be closed to other users. `now` is for the certificate. `try_s` is
    the time limit of each trial.
    """
    yield _packages()
    private = [Path(config.participant.spool_dir), *secrets]
    strategy: Strategy[Any] | None = None
    past: PastRun | None = None
    strangers: str | None = None
    if isinstance(config, DeviceConfig):
        yield Finding("ok", f"configuration: device {participant_id} of a fleet, app {config.app}")
    else:
        run = f"run {config.run.run_id}, strategy {config.strategy.name}, app {config.app}"
        yield Finding("ok", f"configuration: {run}")
        private.append(config.run_dir)
        strategy = yield from _strategy(config, try_s)
    yield from _files(config)
    yield from codecs.look(config, role)
    places = folders.places(config, participant_id, role)
    rights = [(place, folders.writable(place)) for place in places]
    for _, finding in rights:
        yield finding
    readable = all(finding.level == "ok" for place, finding in rights if place.setting == "runs_dir")
    keeper: past_run.Held | None = None
    if isinstance(config, FederationConfig) and role != "participant" and readable:
        keeper = past_run.held(config)
        past, wrong = past_run.look(config, strategy)
        yield from wrong
        if past is None:
            strangers = f"run {config.run.run_id} has not begun"
    yield from modes([*private, *_keys(config.broker)])
    rehearsal = Rehearsal(config, participant_id, role, strategy, past=past, try_s=try_s)
    yield from rehearsal.findings()
    for place in places:
        yield from folders.room(place, rehearsal.model_bytes)
    fleet = isinstance(config, FederationConfig) and config.security.fleet is not None and role == "coordinator"
    kind = config.security.kind(config.broker.auth, fleet=fleet)
    yield identity(kind)
    yield from certificate(config.broker, role, now or datetime.now(UTC))
    ours: str | None = None
    try:
        if role is not None:
            name = config.security.coordinator_user if role == "coordinator" else participant_id
            check_user(config, kind, name, "the coordinator" if role == "coordinator" else "the participant (--id)")
        ours = yield from _broker(config.broker, rehearsal.model_bytes, role, participant_id, strangers)
    except ConfigError as e:
        yield Finding(
            "wrong", f"login: {e}", "put the [broker] table right: url, auth, ca_file, cert_file, key_file", e
        )
    if keeper is not None and isinstance(config, FederationConfig):
        yield past_run.live(config, keeper, ours)


def _strategy(config: FederationConfig, try_s: float) -> Generator[Finding, None, Strategy[Any] | None]:
    """Build the strategy and check the run's settings with it. Returns it; None if that fails."""
    try:
        with limited(try_s):
            strategy = custom_strategy.build(config.strategy)
            findings = list(run_settings.look(config, strategy))
    except TookTooLong:
        yield Finding("wrong", f"strategy: its file was cut off after {try_s:g} s", "put the strategy's file right")
    except FedmqError as e:
        advice = "put strategy.options in the federation file right, or the strategy's file"
        yield Finding("wrong", f"strategy: {e}", advice, e)
    except Exception as e:  # noqa: BLE001  a property of a strategy of the user's own
        yield Finding("wrong", f"strategy: {type(e).__name__}: {e}", "put the strategy's file right")
    else:
        yield from findings
        return strategy
    return None


def _keys(settings: BrokerSettings) -> Iterator[Path]:
    """Yield the file with the key of our certificate."""
    key = settings.key_file or settings.cert_file
    if key is not None:
        yield Path(key)


def _packages() -> Finding:
    missing = []
    found = [f"Python {platform.python_version()}", f"fedmq {fedmq.__version__}"]
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name in PACKAGES:
                missing.append(name)
    if missing:
        return Finding("wrong", f"packages: {', '.join(missing)} missing", "pip install fedmq, in this environment")
    return Finding("ok", f"packages: {', '.join(found)}")


def _broker(
    settings: BrokerSettings,
    model_bytes: int,
    role: Role | None,
    participant_id: str,
    strangers: str | None = None,
) -> Generator[Finding, None, str | None]:
    """Check the broker as this role. `model_bytes` are those of an update, 0 if unknown.

    `strangers` says why updates that wait cannot be this run's (queues.depths). Returns the place of this broker and
    prefix (`run_folder.place_of`); None if the broker could not be asked.
    """
    url, tls = settings.url.get_secret_value(), TlsFiles.of(settings)
    identity = None
    silent: list[BrokerError] = []
    for address in addresses_for(url, settings.auth, tls):
        try:
            identity = identify(address, tls)
        except BrokerError as e:
            silent.append(e)
        else:
            yield Finding("ok", f"broker: {identity.product} {identity.version} at {address}")
    for error in silent:  # one node of a cluster may be away, but not all of them
        level: Level = "wrong" if identity is None else "warning"
        advice = "start it, or correct broker.url (FEDMQ_BROKER_URL, --broker)"
        yield Finding(level, f"broker: {error}", advice, error if level == "wrong" else None)
    if identity is None:
        return None
    yield from _limits(settings, identity.max_message_bytes, model_bytes)
    topology = settings.topology()
    transport, place = amqp(settings, "doctor"), None
    try:
        transport.open((), (), timeout_s=OPEN_TIMEOUT_S)
        place = place_of(transport.broker_id, topology.prefix)
        transport.close()  # a device may have few connections
        with Probe(url, settings.auth, tls) as probe:
            how = "certificate" if probe.address.by_certificate else "password"
            where = f"virtual host {probe.address.vhost!r}"
            yield Finding("ok", f"login: user {probe.address.user!r} by {how}, {where}")
            yield from check_rights(probe, topology, role, participant_id)
            yield from depths(probe, topology, role, participant_id, strangers=strangers)
    except BrokerError as e:
        advice = "do what the message says, then run fedmq doctor again"
        if "set_permissions" in str(e):  # the virtual host is closed to this user, who has no rights there at all
            address = addresses_for(url, settings.auth, tls).current
            advice = asked(address, role, topology.prefix, participant_id).command()
        yield Finding("wrong", f"login: {e}", advice, e)
    finally:
        transport.close()
    return place


def _limits(settings: BrokerSettings, brokers: int | None, model_bytes: int) -> Iterator[Finding]:
    ours, most = settings.max_message_bytes, settings.max_payload_bytes
    if brokers is not None and ours > brokers:
        yield Finding(
            "warning",
            f"message size: max_message_bytes is {ours / MIB:.0f} MiB, the broker's default {brokers / MIB:.0f} MiB",
            f"set max_message_size = {ours} in its rabbitmq.conf, or lower broker.max_message_bytes",
        )
    needed = model_bytes + ENVELOPE_BYTES
    if not model_bytes:
        return
    if needed > most:
        yield Finding(
            "wrong",
            f"payload size: an update takes {needed / MIB:.1f} MiB, max_payload_bytes is {most / MIB:.1f} MiB",
            f"set broker.max_payload_bytes to {needed} or more, at most {MAX_PAYLOAD_BYTES}",
        )
    elif needed > ours:
        chunk_bytes = min(settings.chunk_bytes, ours)
        yield Finding(
            "ok",
            f"message size: an update takes {needed / MIB:.1f} MiB, in {-(-needed // chunk_bytes)} chunks of "
            f"{chunk_bytes / MIB:.2g} MiB",
        )
    else:
        yield Finding("ok", f"message size: an update takes {needed / MIB:.2f} of at most {ours / MIB:.0f} MiB")
