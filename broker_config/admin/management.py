"""A broker's administration by RabbitMQ's management API, from another machine than the broker's.

The URL holds the administrator's password: take it from an environment variable or a file that only its owner reads.
It is in no repr and no error.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import json
import ssl
from collections.abc import Collection
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from fedmq.broker_config.admin.admin import ByDocuments
from fedmq.broker_config.admin.documents import Document
from fedmq.broker_config.amqp.tls import trusting
from fedmq.schemas.errors import BrokerError, BrokerRefused, BrokerUnavailable, ConfigError, shown

TIMEOUT_S = 60.0
MOST_BYTES = 16 * 1024**2
"""Size of the largest answer that is read. The names of 10,000 queues have about 1 MiB."""
_MAX_WORDS = 500
_EXPECTED = "expected https://USER:PASSWORD@HOST:15671 (http:// to this machine alone; special characters %-encoded)"


class ManagementAdmin(ByDocuments):
    """The administration of the broker whose management API is at a URL."""

    def __init__(self, url: str, vhost: str = "/", *, ca_file: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing is asked yet. Raises ConfigError for a URL that is none, without its text, and for a ca_file that
        cannot be read."""
        parts, port = _parsed(url)
        self._host, self._port, self._tls = parts.hostname or "", port, parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        self._authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._timeout_s = timeout_s
        self._open: http.client.HTTPConnection | None = None
        self.vhost = vhost
        try:
            self._context = trusting(ca_file) if self._tls else None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the management API's ca_file {ca_file} cannot be read: {error}") from None

    def __repr__(self) -> str:
        return f"ManagementAdmin({self._host}:{self._port}, vhost={self.vhost!r})"

    def users(self) -> Collection[str]:
        return _names(self._ask("GET", "users?columns=name"), "users")

    def delete_user(self, name: str) -> None:
        self._ask("DELETE", f"users/{_part(name)}")

    def delete_exchange(self, name: str) -> None:
        self._ask("DELETE", f"exchanges/{_part(self.vhost)}/{_part(name)}")

    def queues(self) -> Collection[str]:
        return _names(self._ask("GET", f"queues/{_part(self.vhost)}?columns=name&disable_stats=true"), "queues")

    def delete_queues(self, names: Collection[str]) -> None:
        for name in sorted(names):
            self._ask("DELETE", f"queues/{_part(self.vhost)}/{_part(name)}")

    def connections_of(self, user: str) -> Collection[str]:
        return _names(self._ask("GET", f"connections/username/{_part(user)}?columns=name"), "connections")

    def _import(self, document: Document, secrets: Collection[str] = ()) -> None:
        self._ask("POST", "definitions", document, secrets)

    # -- HTTP --------------------------------------------------------------------------------------------------

    def _ask(self, method: str, what: str, body: object = None, secrets: Collection[str] = ()) -> Any:
        """Return the answer's JSON; None if there is no such thing. One connection serves many calls.

        Only a request that can be made again without harm is made here, so a connection that the broker closed
        meanwhile is replaced once.
        """
        kept = self._open is not None
        try:
            status, text = self._exchange(method, what, body)
        except (http.client.HTTPException, OSError) as error:
            self._close()
            if kept and not isinstance(error, TimeoutError):
                return self._ask(method, what, body, secrets)
            raise self._unreachable(error) from None
        if status == 404 and method != "POST":
            return None
        if status not in (200, 201, 204):
            raise self._refusal(status, text, secrets)
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise BrokerError(f"{self._place} answers with something else than JSON: is it RabbitMQ's?") from None

    def _exchange(self, method: str, what: str, body: object) -> tuple[int, bytes]:
        if self._open is None:
            if self._context is not None:
                self._open = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout_s, context=self._context
                )
            else:
                self._open = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body).encode()
        self._open.request(method, f"{self._path}/api/{what}", body=sent, headers=headers)
        answer = self._open.getresponse()
        text = answer.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            self._close()
            raise BrokerError(f"{self._place} answers with more than {MOST_BYTES} bytes to one request")
        if answer.will_close:
            self._close()
        return answer.status, text

    def _close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()
        self._open = None

    @property
    def _place(self) -> str:
        return f"the management API at {self._host}:{self._port}"

    def _unreachable(self, error: Exception) -> BrokerError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return BrokerRefused(
                f"{self._place} has a certificate that is not trusted ({error.verify_message}): give its authority's "
                "file, and the host by the name that is in the certificate"
            )
        return BrokerUnavailable(
            f"{self._place} does not answer ({type(error).__name__}: {shown(str(error))}): is the plugin "
            "rabbitmq_management enabled, and are scheme, host and port right?"
        )

    def _refusal(self, status: int, text: bytes, secrets: Collection[str]) -> BrokerError:
        if status == 401:
            return BrokerRefused(
                f"{self._place} refused the login: check user and password in its URL, and that the user has the tag "
                "administrator (rabbitmqctl set_user_tags)"
            )
        said = text.decode(errors="replace")
        for secret in secrets:
            said = said.replace(secret, "***")
        kind = BrokerUnavailable if status >= 500 else BrokerError
        advice = "; make it (rabbitmqctl add_vhost)" if "no_such_vhost" in said else ""
        return kind(
            f"{self._place} answered {status}, in virtual host {self.vhost!r}: {shown(said, _MAX_WORDS)}{advice}"
        )


def _parsed(url: str) -> tuple[Any, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"the management API's URL cannot be read: {_EXPECTED}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.username or parts.query:
        raise ConfigError(f"the management API's URL cannot be used: {_EXPECTED}")
    if parts.scheme == "http" and not _is_this_machine(parts.hostname):
        raise ConfigError(f"the management API's URL would send a password in the clear: {_EXPECTED}")
    return parts, port or (15671 if parts.scheme == "https" else 15672)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _part(name: str) -> str:
    return quote(name, safe="")


def _names(answer: Any, what: str) -> Collection[str]:
    if answer is None:
        return frozenset()
    try:
        return frozenset(str(row["name"]) for row in answer)
    except (TypeError, KeyError):
        raise BrokerError(f"the management API's list of {what} has rows without a name: is it RabbitMQ's?") from None
