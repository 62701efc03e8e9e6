"""Check all that a run needs, and say what to do about each finding."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fedmq
from fedmq.app.model_process import ModelChild
from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.amqp.handshake import MIB, identify
from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.settings import BrokerSettings
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message, Transport
from fedmq.config import custom_strategy
from fedmq.config.file import FederationConfig
from fedmq.run.roles import amqp
from fedmq.schemas.errors import BrokerError, FedmqError, MissingExtra, Unroutable
from fedmq.schemas.limits import MAX_PAYLOAD_BYTES
from fedmq.schemas.local.extras import EXTRAS
from fedmq.schemas.messages import Reply

Level = Literal["ok", "warning", "wrong"]

PACKAGES = ("numpy", "pydantic", "pika", "msgpack")
OPTIONAL = (*EXTRAS, "tensorflow-cpu")
OPEN_TIMEOUT_S = 10.0
ENVELOPE_BYTES = 64 * 1024
"""Upper bound on the bytes that an envelope adds to its tensors."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `advice` says what to do if it is not ok."""

    level: Level
    what: str
    advice: str = ""
    error: FedmqError | None = None


def examine(
    config: FederationConfig, participant_id: str, connect: Callable[[FederationConfig], Transport] | None = None
) -> Iterator[Finding]:
    """Run all checks, cheap ones first, and yield each finding."""
    yield Finding("ok", f"configuration: run {config.run.run_id}, strategy {config.strategy.name}, app {config.app}")
    yield _packages()
    yield from _folders(config)
    reply: Reply | None = None
    try:
        reply = custom_strategy.build(config.strategy).reply
    except FedmqError as e:
        advice = "put strategy.options in the federation file right, or the strategy's file"
        yield Finding("wrong", f"strategy: {e}", advice, e)
    size = 0
    for finding, num_bytes in _app(config, participant_id, reply):
        size = max(size, num_bytes)
        yield finding
    yield from _broker(config, size, connect or (lambda config: amqp(config.broker, "doctor")))


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


def _folders(config: FederationConfig) -> Iterator[Finding]:
    for name, text in (("runs_dir", config.runs_dir), ("participant.spool_dir", config.participant.spool_dir)):
        existing = Path(text)
        while not existing.exists():
            existing = existing.parent
        try:
            with tempfile.TemporaryFile(dir=existing):
                yield Finding("ok", f"{name}: {text} can be written")
        except OSError as e:
            advice = f"let this user write there, or set {name} to another folder"
            yield Finding("wrong", f"{name}: {text} cannot be written ({e.strerror})", advice)


def _app(config: FederationConfig, participant_id: str, reply: Reply | None) -> Iterator[tuple[Finding, int]]:
    """Yield findings, each with the model's size in bytes; 0 if that is unknown.

    Training is tried unless `reply`, the form of the strategy's updates, is None: the strategy could not be built.
    """
    with tempfile.TemporaryDirectory(prefix="fedmq-doctor-") as folder:
        child = ModelChild(Path(config.app), Path(folder))
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
                tried = child.try_training(participant_id, config.training, reply)
                yield Finding("ok", f"training: one step as {participant_id} on {tried} examples worked"), size
        except MissingExtra as e:
            advice = "run that command in this environment, then fedmq doctor again"
            yield Finding("wrong", f"app: {e}", advice, e), 0
        except FedmqError as e:
            advice = "put the app file right; fedmq doctor --id NAME tries it as another participant"
            yield Finding("wrong", f"app: {e}", advice, e), 0
        finally:
            child.close()


def _broker(
    config: FederationConfig, model_bytes: int, connect: Callable[[FederationConfig], Transport]
) -> Iterator[Finding]:
    settings = config.broker
    identity = None
    silent: list[BrokerError] = []
    for address in Addresses(settings.url.get_secret_value()):
        try:
            identity = identify(address, TlsFiles.of(settings))
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
    transport = connect(config)
    try:
        transport.open(topology.exchanges, topology.shared_queues, timeout_s=OPEN_TIMEOUT_S)
        names = ", ".join(queue.name for queue in topology.shared_queues)
        yield Finding("ok", f"login, permissions and queues: {names} are there, with our arguments")
        yield from _publishing(transport, topology)
        yield from _depths(transport, topology)
    except BrokerError as e:
        yield Finding(
            "wrong", f"login, permissions and queues: {e}", "do what the message says, then run fedmq doctor again", e
        )
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


def _publishing(transport: Transport, topology: Topology) -> Iterator[Finding]:
    """Publish a message to nobody. If it comes back, we may publish there, and the broker checks its routing."""
    for exchange in topology.exchanges:
        future = transport.publish(Message(exchange.name, "doctor", b"", "doctor"), OPEN_TIMEOUT_S)
        try:
            future.result(OPEN_TIMEOUT_S + 1)
        except Unroutable:
            continue
        except (BrokerError, FutureTimeoutError) as e:
            advice = "give this user write permission on the federation's prefix (rabbitmqctl set_permissions)"
            error = e if isinstance(e, BrokerError) else None
            yield Finding("wrong", f"publishing to {exchange.name}: {e}", advice, error)
            return
    yield Finding("ok", "publishing: allowed on every exchange")


def _depths(transport: Transport, topology: Topology) -> Iterator[Finding]:
    for queue in topology.shared_queues:
        waiting = transport.depth(queue.name)
        if queue == topology.dead and waiting:
            what = f"{queue.name}: {waiting} message(s) that were refused as poison"
            yield Finding("warning", what, "fedmq status names the reasons; their headers say what and from where")
        else:
            yield Finding("ok", f"{queue.name}: {waiting} message(s) waiting")
