"""A device joins by a token: it makes its key, asks the coordinator for a certificate, and keeps its bundle.

1. The key is on disk before anybody hears of it, and never leaves the device. A device that was killed asks again with
   the same key, and gets the same certificate.
2. The request is sent again until there is an answer. Without a coordinator the device waits.
3. Whoever has a copy of the token reads the same queue. An answer to another key tells that the token is used, and goes
   back to the queue for the device that it is for. A connection that was lost is made anew, to hear whether the token's
   user is gone.
4. The bundle is on disk before the coordinator hears that it is. The key's file goes last.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue

from fedmq.broker_config.faults import fault
from fedmq.broker_config.settings import BrokerSettings
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Message, Transport, TransportState
from fedmq.fleet import bundle, certificates
from fedmq.fleet.bundle import Bundle, TokenFile
from fedmq.fleet.device import check_bundle, files_of, make_private
from fedmq.fleet.folder import read_text, write_secret
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.errors import BrokerError, BrokerRefused, ConfigError, PeerError
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import (
    SCHEMA_VERSION,
    AnyMessage,
    Certificate,
    CertificateInstalled,
    CertificateRequest,
)

log = EventLog(__name__)

ASK_AGAIN_S = 10.0
"""Time between two requests while nobody answers."""
LAST_WORD_S = 10.0
"""Longest wait for the broker to take the news that the bundle is on disk."""


def bundle_path(token: Path) -> Path:
    """Return the place of the bundle that a token becomes."""
    return token.with_suffix(".bundle") if token.suffix == ".token" else token.with_name(token.name + ".bundle")


def join(path: Path, token: TokenFile, connect: Callable[[BrokerSettings, str], Transport]) -> Bundle:
    """Ask for a certificate until there is an answer, and write the bundle. `connect` makes a transport that is not
    open yet, from its settings and its name.

    Raises ConfigError if the coordinator refuses, BrokerRefused if the broker does, and FleetError.
    """
    target = bundle_path(path)
    files = files_of(target)
    make_private(files)
    write_secret(files / "ca.pem", token.ca)
    key_file = files / "joining.key"
    if not key_file.exists():
        write_secret(key_file, certificates.new_key())
        fault("joining-key")
    key = read_text(key_file)
    settings = bundle.broker_settings(token, token.user, password=token.password, ca_file=str(files / "ca.pem"))
    content = None
    while content is None:
        transport = connect(settings, f"joining {token.participant_id}")
        try:
            content = _asked(transport, token, key)
            if content is not None:
                bundle.write(target, content)
                fault("joining-bundle")
                _tell(transport, token, key)
        finally:
            transport.close()
    key_file.unlink(missing_ok=True)
    log.info("joined", participant=token.participant_id, bundle=target)
    return content


def _asked(transport: Transport, token: TokenFile, key: str) -> Bundle | None:
    """Ask until there is a certificate for our key. Return None if the connection was lost."""
    topology = Topology(token.prefix, participant_queues=token.participant_queues)
    queue = topology.participant(token.user)
    arrived: SimpleQueue[Delivery | None] = SimpleQueue()
    log.info("joining", participant=token.participant_id, user=token.user)

    def on_state(state: TransportState) -> None:
        if state.name == "disconnected":
            arrived.put(None)

    try:
        transport.open((), (queue,), on_state)
    except BrokerRefused as error:
        raise BrokerRefused(
            f"{token.participant_id} cannot join with this token. If the broker refuses the login, the token was used "
            "or its time is over: ask for another one (`fedmq fleet token`). If the broker asks for a certificate, it "
            f"does not let devices join now: start it with --joining (docs/operations.md). The reason: {error}"
        ) from error
    transport.consume(queue.name, arrived.put, 4)
    request = CertificateRequest(
        participant_id=token.participant_id, request=certificates.request(key, token.participant_id)
    )
    own = certificates.key_id(key)
    while True:
        _publish(transport, topology, request)
        fault("joining-asked")
        try:
            delivery = arrived.get(timeout=ASK_AGAIN_S)
        except Empty:
            log.info("joining_waits", participant=token.participant_id, detail="no coordinator has answered yet")
            continue
        if delivery is None:
            return None
        answer = _answer_in(delivery, token)
        if answer is not None and answer.key_id not in (own, None) and answer.verdict != "refused":
            raise ConfigError(  # the answer is not settled: it goes back to the queue, for the other device
                f"The coordinator refuses to let {token.participant_id} join: this token has been used by another key. "
                "A token lets one device in, once. If it was not yours, tell whoever gave you the token."
            )
        transport.ack(delivery)
        if answer is None or answer.key_id not in (own, None):
            continue
        if answer.verdict == "refused":
            raise ConfigError(f"The coordinator refuses to let {token.participant_id} join: {answer.detail}.")
        if answer.certificate is None:
            log.info("joining_waits", participant=token.participant_id, detail=answer.detail)
            _pause(arrived)
            continue
        content = Bundle(
            **{name: getattr(token, name) for name in bundle.Shared.model_fields},
            participant_id=token.participant_id,
            certificate=answer.certificate,
            key=key,
        )
        check_bundle(content)
        return content


def _pause(arrived: SimpleQueue[Delivery | None]) -> None:
    """Wait before the next request. An answer that comes meanwhile is read after it."""
    try:
        arrived.put(arrived.get(timeout=ASK_AGAIN_S))
    except Empty:
        return


def _answer_in(delivery: Delivery, token: TokenFile) -> Certificate | None:
    """Return the coordinator's answer; None for anything else, from anybody else."""
    if delivery.user_id != token.coordinator_user:
        log.warning("answer_ignored", user=delivery.user_id, detail="it is not from the coordinator")
        return None
    try:
        message = decode(delivery.body).message
    except PeerError as error:
        log.warning("answer_ignored", detail=error)
        return None
    return message if isinstance(message, Certificate) else None


def _tell(transport: Transport, token: TokenFile, key: str) -> None:
    """Tell the coordinator that the bundle is on disk. If the news is lost, the token's user lives on for a week."""
    news = CertificateInstalled(participant_id=token.participant_id, key_id=certificates.key_id(key))
    try:
        _publish(transport, Topology(token.prefix), news).result(LAST_WORD_S)
    except (BrokerError, TimeoutError) as error:
        log.warning("joined_untold", participant=token.participant_id, error=error)


def _publish(transport: Transport, topology: Topology, message: AnyMessage) -> Future[None]:
    return transport.publish(
        Message(
            exchange=topology.control.exchange,
            routing_key=topology.control.routing_key,
            body=encode(message),
            message_id=uuid.uuid4().hex,
            headers={"schema_version": SCHEMA_VERSION, "kind": message.kind},
        )
    )
