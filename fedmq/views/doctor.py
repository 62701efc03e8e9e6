"""Check all that a run needs, and say what to do about each finding.

The role decides what is done on the broker, and which rights may be advised. Without one, `fitting_role` looks at the
broker's user. If nothing tells the roles apart, as in a demo with one user, both roles' work is done.
"""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import fedmq
from fedmq.app.model_process import ModelChild
from fedmq.broker_config.amqp.handshake import MIB, identify
from fedmq.broker_config.amqp.probe import Probe
from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.amqp.transport import addresses_for
from fedmq.broker_config.settings import BrokerSettings
from fedmq.broker_config.topology import Topology
from fedmq.config import custom_strategy
from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.run.roles import amqp, check_user
from fedmq.schemas.errors import BrokerError, ConfigError, FedmqError, MissingExtra
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.local.extras import EXTRAS
from fedmq.schemas.messages import Reply, TrainingConfig
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
    now: datetime | None = None,
) -> Iterator[Finding]:
    """Run all checks, cheap ones first, and yield each finding. A device of a fleet is a participant.

    `secrets` are more files and folders that must be closed to other users. `now` is for the certificate.
    """
    yield _packages()
    reply: Reply | None = "delta"
    training, folders = TrainingConfig(), {"participant.spool_dir": config.participant.spool_dir}
    private = [Path(config.participant.spool_dir), *secrets]
    if isinstance(config, DeviceConfig):
        yield Finding("ok", f"configuration: device {participant_id} of a fleet, app {config.app}")
    else:
        run = f"run {config.run.run_id}, strategy {config.strategy.name}, app {config.app}"
        yield Finding("ok", f"configuration: {run}")
        training, folders = config.training, {"runs_dir": config.runs_dir, **folders}
        private.append(config.run_dir)
        reply = None
        try:
            reply = custom_strategy.build(config.strategy).reply
        except FedmqError as e:
            advice = "put strategy.options in the federation file right, or the strategy's file"
            yield Finding("wrong", f"strategy: {e}", advice, e)
    yield from _folders(folders)
    yield from modes([*private, *_keys(config.broker)])
    size = 0
    for finding, num_bytes in _app(Path(config.app), participant_id, training, reply):
        size = max(size, num_bytes)
        yield finding
    fleet = isinstance(config, FederationConfig) and config.security.fleet is not None and role == "coordinator"
    kind = config.security.kind(config.broker.auth, fleet=fleet)
    yield identity(kind)
    yield from certificate(config.broker, role, now or datetime.now(UTC))
    try:
        if role is not None:
            name = config.security.coordinator_user if role == "coordinator" else participant_id
            check_user(config, kind, name, "the coordinator" if role == "coordinator" else "the participant (--id)")
        yield from _broker(config.broker, size, role, participant_id)
    except ConfigError as e:
        yield Finding(
            "wrong", f"login: {e}", "put the [broker] table right: url, auth, ca_file, cert_file, key_file", e
        )


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


def _folders(folders: Mapping[str, str]) -> Iterator[Finding]:
    for name, text in folders.items():
        existing = Path(text)
        while not existing.exists():
            existing = existing.parent
        try:
            with tempfile.TemporaryFile(dir=existing):
                yield Finding("ok", f"{name}: {text} can be written")
        except OSError as e:
            advice = f"let this user write there, or set {name} to another folder"
            yield Finding("wrong", f"{name}: {text} cannot be written ({e.strerror})", advice)


def _app(
    app: Path, participant_id: str, training: TrainingConfig, reply: Reply | None
) -> Iterator[tuple[Finding, int]]:
    """Yield findings, each with the model's size in bytes; 0 if that is unknown.

    Training is tried unless `reply`, the form of the strategy's updates, is None: the strategy could not be built.
    """
    with tempfile.TemporaryDirectory(prefix="fedmq-doctor-") as folder:
        child = ModelChild(app, Path(folder))
        try:
            child.ready()
            parameters = child.initial()
            count = sum(array.size for array in parameters.values())
            size = parameters.num_bytes
            shown = f"{count:,} numbers in {len(parameters)} tensors, {size / MIB:.2f} MiB"
            yield Finding("ok", f"model: {shown}"), size
            if not child.evaluates:
                advice = "add load_test_data() to the app file to have it"
                yield Finding("warning", "evaluation: the app gives no test data, so there is none", advice), size
            if reply is not None:
                tried = child.try_training(participant_id, training, reply)
                yield Finding("ok", f"training: one step as {participant_id} on {tried} examples worked"), size
        except MissingExtra as e:
            advice = "run that command in this environment, then fedmq doctor again"
            yield Finding("wrong", f"app: {e}", advice, e), 0
        except FedmqError as e:
            advice = "put the app file right; fedmq doctor --id NAME tries it as another participant"
            yield Finding("wrong", f"app: {e}", advice, e), 0
        finally:
            child.close()


def _broker(settings: BrokerSettings, model_bytes: int, role: Role | None, participant_id: str) -> Iterator[Finding]:
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
        return
    yield from _limits(settings, identity.max_message_bytes, model_bytes)
    topology = settings.topology()
    transport = amqp(settings, "doctor")
    try:
        transport.open((), (), timeout_s=OPEN_TIMEOUT_S)
        transport.close()  # a device may have few connections
        with Probe(url, settings.auth, tls) as probe:
            how = "certificate" if probe.address.by_certificate else "password"
            where = f"virtual host {probe.address.vhost!r}"
            yield Finding("ok", f"login: user {probe.address.user!r} by {how}, {where}")
            yield from check_rights(probe, topology, role, participant_id)
            yield from _depths(probe, topology, role, participant_id)
    except BrokerError as e:
        advice = "do what the message says, then run fedmq doctor again"
        if "set_permissions" in str(e):  # the virtual host is closed to this user, who has no rights there at all
            address = addresses_for(url, settings.auth, tls).current
            advice = asked(address, role, topology.prefix, participant_id).command()
        yield Finding("wrong", f"login: {e}", advice, e)
    finally:
        transport.close()


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


def _depths(probe: Probe, topology: Topology, role: Role | None, participant_id: str) -> Iterator[Finding]:
    queues = (topology.participant(participant_id),) if role == "participant" else topology.shared_queues
    for queue in queues:
        waiting = probe.depth(queue.name)
        if waiting is None:  # a participant's own queue, before its first start
            continue
        if queue == topology.dead and waiting:
            what = f"{queue.name}: {waiting} message(s) that were refused as poison"
            yield Finding("warning", what, "fedmq status names the reasons; their headers say what and from where")
        else:
            yield Finding("ok", f"{queue.name}: {waiting} message(s) waiting")
