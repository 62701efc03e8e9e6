"""The transport over RabbitMQ, by pika."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Literal

import pika
from pika.exceptions import (
    AMQPError,
)

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.amqp.client import AmqpClient
from fedmq.broker_config.amqp.driver import PikaDriver
from fedmq.broker_config.amqp.publisher import Window
from fedmq.broker_config.amqp.tls import NO_FILES, TlsFiles
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES
from fedmq.schemas.errors import ConfigError
from fedmq.schemas.local.backoff import Backoff

Auth = Literal["password", "external"]


class AmqpTransport(AmqpClient):
    """A transport over RabbitMQ (`broker_config.transport` has the rules). It is opened once and closed once."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        heartbeat_s: int = 30,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        auth: Auth = "password",
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        backoff: Backoff | None = None,
        window: Window | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`url` is one URL, or one for each node of a cluster with commas between. The first node that answers is used,
        and after a loss the next one. RabbitMQ shows `name` for our connections. `auth` and the files are as in
        BrokerSettings.

        Raises ConfigError for a URL or a TLS file that cannot be used.
        """
        tls = TlsFiles(ca_file, cert_file, key_file)
        addresses = addresses_for(url, auth, tls)
        super().__init__(
            PikaDriver(addresses, name, heartbeat_s, tls),
            addresses,
            name=name,
            max_message_bytes=max_message_bytes,
            backoff=backoff or Backoff(),
            window=window or Window(),
            rng=rng or random.Random(),  # noqa: S311  jitter, not a secret
        )


def addresses_for(url: str, auth: Auth = "password", tls: TlsFiles = NO_FILES) -> Addresses:
    """Return the addresses in a URL, or in several with commas between. With auth = "external" the user is the one that
    our certificate names.

    Raises ConfigError if URL, `auth` and files do not fit each other, or a file cannot be used.
    """
    addresses = Addresses(url, tls.user() if auth == "external" else None)
    for address in addresses:
        if tls and not address.tls:
            raise ConfigError("a TLS file is given but the broker's URL begins with amqp://: use amqps://")
    if tls:
        tls.context()
    return addresses


def remove(
    url: str,
    *,
    exchanges: Iterable[str],
    queues: Iterable[str],
    auth: Auth = "password",
    tls: TlsFiles = NO_FILES,
) -> None:
    """Delete the queues, with their messages, and the exchanges of a federation that is over. A missing one is no
    error.

    Raises BrokerError if the broker does not answer or does not permit it.
    """
    addresses = addresses_for(url, auth, tls)
    driver = PikaDriver(addresses, "fedmq", 30, tls)
    try:
        with pika.BlockingConnection([driver.parameters("removal", address) for address in addresses]) as connection:
            channel = connection.channel()
            for queue in queues:
                channel.queue_delete(queue)
            for exchange in exchanges:
                channel.exchange_delete(exchange)
    except (AMQPError, OSError) as error:
        raise driver.explain(error) from error
    finally:
        driver.loop.close()
