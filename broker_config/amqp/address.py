"""AMQP URLs, and the meaning of a broker's refusals. The password is in no repr and no message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from fedmq.schemas.errors import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    ConfigError,
    PublishError,
    TopologyConflict,
    Unroutable,
)
from fedmq.schemas.redaction import keep_secret

_EXPECTED = "expected amqp://USER:PASSWORD@HOST:PORT/VHOST (amqps:// for TLS; special characters %-encoded, / is %2F)"
_RIGHTS = (
    "the three expressions of its role, and no more, which `fedmq doctor --role participant` (or `--role coordinator`) "
    "shows"
)
_CERTIFIED = "expected amqps://HOST:PORT/VHOST"
_BETWEEN_URLS = re.compile(r",\s*(?=amqps?://)")
_WRONG_VHOST = re.compile(r"vhost .* not found|access to vhost .* refused for user [^:]*$")
"""RabbitMQ's words (3.10 and 4.0) for a virtual host that is not there, or not for this user. It refuses with the same
code what is over a limit of connections or channels, and that ends by itself."""
_OVER_A_LIMIT = re.compile(r"limit .*\(\d+\) is reached")
_MISSING = re.compile(r"no (queue|exchange) '")
ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 405, 406, 530
"""AMQP 0-9-1 reply codes."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's address, and the user to log in as."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: bool
    by_certificate: bool = False
    """True if the user is the one that our certificate names, and there is no password."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, url: str, certified_user: str | None = None) -> BrokerAddress:
        """Read an amqp:// or amqps:// URL. Port, user, password and virtual host default as in RabbitMQ.

        `certified_user` is the user that our certificate names, if we log in by it. The URL is then amqps://, with this
        user or none, and without a password.

        Raises ConfigError for anything else, without the URL's text, because there may be a password in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            # urllib quotes the text after the colon: the end of a password, if an @ or / in it was not encoded.
            why = "the port is not a number" if "port" in str(error).lower() else "it cannot be split into its parts"
            raise ConfigError(f"the broker's URL cannot be read, {why}: {_EXPECTED}") from None
        if parts.scheme not in ("amqp", "amqps"):
            scheme = f"its scheme is {parts.scheme!r}" if "://" in url else "it has no scheme"
            raise ConfigError(f"the broker's URL cannot be read, {scheme}: {_EXPECTED}")
        if "," in (parts.hostname or ""):
            raise ConfigError(f"the broker's URL names several hosts: write a whole URL for each, {_EXPECTED}")
        if not parts.hostname:
            raise ConfigError(f"the broker's URL names no host: {_EXPECTED}")
        if parts.query or parts.fragment:
            raise ConfigError(f"the broker's URL goes on after the virtual host with ? or #: {_EXPECTED}")
        if "/" in (path := parts.path.removeprefix("/")):
            raise ConfigError(f"the broker's URL has more than one / after the host: {_EXPECTED}")
        tls = parts.scheme == "amqps"
        keep_secret(unquote(parts.password or ""))
        user, password = unquote(parts.username or ""), parts.password
        if certified_user is not None:
            _check_certified(certified_user, user, password, tls=tls)
            user, password = certified_user, ""
        return cls(
            host=parts.hostname,
            port=port or (5671 if tls else 5672),
            user=user or "guest",
            password=unquote(password if password is not None else "guest"),
            vhost=unquote(path) or "/",
            tls=tls,
            by_certificate=certified_user is not None,
        )


def _check_certified(certified: str, user: str, password: str | None, *, tls: bool) -> None:
    if not tls:
        raise ConfigError(f'auth = "external" takes TLS, and the broker\'s URL begins with amqp://: {_CERTIFIED}')
    if user and user != certified:
        raise ConfigError(
            f"the broker's URL names user {user!r}, and the certificate that we log in by names {certified!r}: leave "
            f"the user out, {_CERTIFIED}"
        )
    if password is not None:
        raise ConfigError(
            f'the broker\'s URL has a password, and auth = "external" uses none: leave it out, {_CERTIFIED}'
        )


class Addresses:
    """The nodes of one broker, of which one is in use. `next` goes round."""

    def __init__(self, urls: str, certified_user: str | None = None) -> None:
        """Read one URL, or several with commas between them. Each is written in full, because each may have its own
        password. `certified_user` is as for `BrokerAddress.parse`.

        Raises ConfigError as `BrokerAddress.parse` does, or if the URLs do not belong together.
        """
        self._all = tuple(BrokerAddress.parse(url.strip(), certified_user) for url in _BETWEEN_URLS.split(urls))
        self._at = 0
        if len(set(self._all)) < len(self._all):
            raise ConfigError(f"the broker's URLs name {self} with one address twice: leave the second one out")
        if len(vhosts := {address.vhost for address in self._all}) > 1:
            found = " and ".join(repr(vhost) for vhost in sorted(vhosts))
            raise ConfigError(f"the broker's URLs name virtual hosts {found}: expected one, that of the federation")

    @property
    def current(self) -> BrokerAddress:
        return self._all[self._at]

    def next(self) -> None:
        """Go on to the next address, after the last one to the first."""
        self._at = (self._at + 1) % len(self._all)

    def __iter__(self) -> Iterator[BrokerAddress]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        return ", ".join(str(address) for address in self._all)


def connection_refusal(address: BrokerAddress, code: int, text: str) -> BrokerError | None:
    """Return the meaning of a connection.close; None if the code says nothing about our login or our limits."""
    if code == ACCESS_REFUSED and address.by_certificate:
        return BrokerRefused(
            f"RabbitMQ at {address} refused the login of user {address.user!r} by its certificate ({text}): this user "
            "was revoked (`fedmq fleet list`), or the broker has lost its users (`fedmq fleet init` brings them back), "
            "or it is starting"
        )
    if code == ACCESS_REFUSED:
        advice = f"check the user {address.user!r} and the password in the broker's URL"
        if address.user == "guest" and address.host not in ("localhost", "127.0.0.1", "::1"):
            advice += "; RabbitMQ lets 'guest' in from its own machine only, so make a user (rabbitmqctl add_user)"
        return BrokerRefused(f"RabbitMQ at {address} refused the login of user {address.user!r} ({text}): {advice}")
    if code == NOT_ALLOWED and not _WRONG_VHOST.search(text):
        return BrokerUnavailable(
            f"RabbitMQ at {address} does not let user {address.user!r} have more now ({text}): it gets a place when "
            "another connection ends, or when an operator raises the limit (`rabbitmqctl set_user_limits`, "
            "`rabbitmqctl set_vhost_limits`)"
        )
    if code == NOT_ALLOWED:
        return BrokerRefused(
            f"RabbitMQ at {address} refused virtual host {address.vhost!r} to user {address.user!r} ({text}): "
            f"check the last part of the URL, or `rabbitmqctl add_vhost` and `rabbitmqctl set_permissions -p "
            f"{address.vhost} {address.user}` with {_RIGHTS}"
        )
    return None


def certificate_refusal(address: BrokerAddress, alert: str) -> BrokerRefused:
    """Return the meaning of a TLS alert about our certificate, such as "CERTIFICATE_REQUIRED"."""
    words = alert.lower().replace("_", " ")
    if alert in ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE"):
        advice = "it asks for a client's certificate: set [broker] cert_file and key_file"
    elif "EXPIRED" in alert:
        advice = "the certificate in [broker] cert_file is over, or a clock is wrong: renew it"
    else:
        advice = "the certificate in [broker] cert_file must be signed by an authority that the broker trusts"
    return BrokerRefused(f"RabbitMQ at {address} refused our certificate ({words}): {advice}")


def declaration_refusal(address: BrokerAddress, what: str, code: int, text: str) -> BrokerError:
    """Return the meaning of a channel.close in answer to a declaration. `waits_in_place` says which of them leave the
    connection as it is."""
    if code == ACCESS_REFUSED:
        return BrokerRefused(
            f"RabbitMQ at {address} does not let user {address.user!r} declare {what} ({text}): check that [broker] "
            f"prefix and the participant's id are those of this user; it needs {_RIGHTS} (`rabbitmqctl "
            f"set_permissions -p {address.vhost} {address.user}`)"
        )
    if code == PRECONDITION_FAILED and _OVER_A_LIMIT.search(text):
        return BrokerUnavailable(
            f"RabbitMQ at {address} has no room for {what} ({text}): it is made when another queue is deleted, or when "
            "an operator raises the limit (`rabbitmqctl set_vhost_limits`)"
        )
    if code in (RESOURCE_LOCKED, PRECONDITION_FAILED):
        return TopologyConflict(
            f"{what} does not fit what is on RabbitMQ at {address} ({text}): another version or another program made "
            f"it; delete it there once it is empty (`rabbitmqctl delete_queue` for a queue), or choose another prefix"
        )
    if code == NOT_FOUND and _MISSING.search(text):  # a passive declaration, or the binding to another's exchange
        return BrokerUnavailable(
            f"the coordinator has not made {what} on RabbitMQ at {address} yet ({text}): start the coordinator, or "
            "check that [broker] prefix and the virtual host are the coordinator's"
        )
    if code == NOT_FOUND:  # a declaration creates a missing queue, so this one exists, on a cluster node that is away
        return BrokerUnavailable(
            f"RabbitMQ at {address} cannot reach {what} ({text}): it comes back with its node. On a cluster, "
            '[broker] participant_queues = "quorum" keeps the participants\' queues on several nodes'
        )
    return BrokerUnavailable(f"RabbitMQ at {address} closed the channel while declaring {what} ({code} {text})")


def waits_in_place(error: BrokerError, code: int, text: str) -> bool:
    """True if another connection cannot help against a refused declaration: somebody else has to make, delete or allow
    something. So it is tried again over the same connection."""
    if isinstance(error, TopologyConflict):
        return True
    return bool(_MISSING.search(text) if code == NOT_FOUND else _OVER_A_LIMIT.search(text))


def publish_refusal(what: str, code: int, text: str) -> BrokerError:
    """Return the meaning of a channel.close in answer to one publish, for that message."""
    if code == NOT_FOUND:
        return Unroutable(f"{what}: there is no such exchange ({text})")
    if code == ACCESS_REFUSED:
        return BrokerRefused(f"{what}: this user may not write there ({text}); see `rabbitmqctl set_permissions`")
    return PublishError(f"{what}: the broker refused the message ({code} {text})")
