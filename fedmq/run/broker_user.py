"""The broker of a role: its connection, and the user that it must be there."""

from __future__ import annotations

from fedmq.broker_config.amqp.tls import TlsFiles
from fedmq.broker_config.security import IdentityKind
from fedmq.broker_config.settings import BrokerSettings
from fedmq.broker_config.transport import Transport
from fedmq.config.device import DeviceConfig
from fedmq.config.file import FederationConfig
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.local.event_log import EventLog

log = EventLog(__name__)


def check_user(config: FederationConfig | DeviceConfig, kind: IdentityKind, name: str, role: str) -> None:
    """Raise ConfigError unless the broker's user is the one that this process must be.

    A certificate says who we are whatever `identity` says, so its name counts in any case.
    """
    broker = config.broker
    if kind == "open" and broker.auth == "password":
        return
    from fedmq.broker_config.amqp.transport import addresses_for

    place = "the common name of broker.cert_file" if broker.auth == "external" else "the user in broker.url"
    for address in addresses_for(broker.url.get_secret_value(), broker.auth, TlsFiles.of(broker)):
        if address.user != name:
            raise ConfigError(
                f"{role} is {name!r} and its user on the broker is {address.user!r} ({place}): they must be the same, "
                f"because others believe a message from {name!r} only if the broker says that {name!r} sent it"
            )


def log_identity(kind: IdentityKind, name: str, coordinator_user: str, *, fleet: bool = False) -> None:
    """Write the first log line of a role: how sure it is of who sent a message. With a fleet, `open` is a warning."""
    if kind == "user":
        log.info("identity", identity=kind, user=name, coordinator_user=coordinator_user)
    elif fleet:
        detail = 'there is a fleet, but whoever may publish is believed: take identity = "open" out of [security]'
        log.warning("identity", identity=kind, detail=detail)
    else:
        detail = (
            'whoever may publish on the broker is believed; set [security] identity = "user" outside of one machine'
        )
        log.info("identity", identity=kind, detail=detail)


def amqp(settings: BrokerSettings, name: str) -> Transport:
    """Return the connection that the [broker] table asks for."""
    from fedmq.broker_config.amqp.transport import AmqpTransport

    return AmqpTransport(
        settings.url.get_secret_value(),
        name=name,
        heartbeat_s=settings.heartbeat_s,
        max_message_bytes=settings.max_message_bytes,
        auth=settings.auth,
        ca_file=settings.ca_file,
        cert_file=settings.cert_file,
        key_file=settings.key_file,
        backoff=Backoff(base_s=min(0.5, settings.reconnect_max_s), cap_s=settings.reconnect_max_s),
    )
