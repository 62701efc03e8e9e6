"""The driver (`session.Driver`): everything of an open connection that touches pika, and what pika needs to be told."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import re
import socket
import ssl
import termios
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import ContentFrameAssembler
from pika.exceptions import (
    AuthenticationError,
    BodyTooLongError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
)

from fedmq.broker_config.amqp.address import Addresses, BrokerAddress, certificate_refusal, connection_refusal
from fedmq.broker_config.amqp.properties import BoundedProperties
from fedmq.broker_config.amqp.publisher import AmqpPublisher
from fedmq.broker_config.amqp.session import OnBlocked, OnLost, OnOpen, OnRefused
from fedmq.broker_config.amqp.tls import NO_FILES, TlsFiles
from fedmq.broker_config.transport import Message
from fedmq.schemas.errors import BrokerError, BrokerRefused, BrokerUnavailable, ConfigError
from fedmq.schemas.local.event_log import EventLog

CONTENT_TYPE = "application/x-msgpack"
log = EventLog(__name__)
_RECEIVE_BYTES = 256 * 1024
_CERTIFICATE_ALERT = re.compile(r"ALERT_(\w*CERTIFICATE\w*|UNKNOWN_CA|HANDSHAKE_FAILURE)\b")
"""The broker's complaint about our certificate. pika keeps it in an error's text alone."""
_CLOSED_BY_BROKER = re.compile(r"ConnectionClosedByBroker: \((\d+)\) (.*)", re.DOTALL)


_drivers: weakref.WeakSet[PikaDriver] = weakref.WeakSet()


def _give_up_in_child() -> None:
    """Leave the connections to the process that made them. A worker that an app forks and that outlives us would keep
    them open, and the broker would wait for heartbeats before it gave our deliveries to anybody else."""
    for driver in list(_drivers):
        driver.give_up_in_child()


os.register_at_fork(after_in_child=_give_up_in_child)


class PikaDriver:
    """The driver of one transport's connections."""

    def __init__(self, addresses: Addresses, name: str, heartbeat_s: int, tls: TlsFiles = NO_FILES) -> None:
        _quieten_pika()
        pika.spec.props[pika.BasicProperties.INDEX] = BoundedProperties
        self.loop = IOLoop()
        self._addresses = addresses
        self._name = name
        self._heartbeat_s = heartbeat_s
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._connections: set[Any] = set()
        self._on_all_closed: Callable[[], None] | None = None
        _drivers.add(self)

    def give_up_in_child(self) -> None:
        """Close our copies of the sockets without a word to the broker, in a process that was forked."""
        for connection in self._connections:
            sock = getattr(getattr(connection, "_transport", None), "_sock", None)
            if isinstance(sock, socket.socket) and sock.fileno() >= 0:
                os.close(sock.detach())

    def connect(self, purpose: str, on_open: OnOpen, on_lost: OnLost, on_blocked: OnBlocked) -> Any:
        """Start a connection."""

        def opened(connection: Any) -> None:
            _read_in_large_pieces(connection)
            on_open(connection)

        def ended(connection: Any, error: Exception) -> None:
            self._connections.discard(connection)
            on_lost(error)
            if self._on_all_closed is not None and not self._connections:
                self._on_all_closed()

        parameters = self.parameters(purpose, self._addresses.current)
        connection = _Connection(parameters, opened, ended, ended, custom_ioloop=self.loop)
        connection.add_on_connection_blocked_callback(lambda _, frame: on_blocked(str(frame.method.reason)))
        connection.add_on_connection_unblocked_callback(lambda _, _frame: on_blocked(None))
        self._connections.add(connection)
        return connection

    def channel(self, connection: Any, on_open: OnOpen, on_refused: OnRefused) -> None:
        """Open a channel."""

        def opened(channel: Any) -> None:
            if isinstance(getattr(channel, "_content_assembler", None), ContentFrameAssembler):
                channel._content_assembler = _AssemblerInPlace()
            channel.add_on_close_callback(closed)
            on_open(channel)

        def closed(_channel: Any, reason: Exception) -> None:
            if isinstance(reason, ChannelClosedByBroker):
                on_refused(reason.reply_code, reason.reply_text)

        if connection.is_open:
            connection.channel(on_open_callback=opened)

    def confirm(self, channel: Any, publisher: AmqpPublisher, on_ready: Callable[[], None]) -> None:
        """Put a channel into confirm mode. Its confirms and returns go to the publisher while that uses this channel.

        Confirms of an abandoned channel (the publisher's rule 5, or a session that we closed) may still come in after
        the next channel is attached. The delivery tags of each channel begin at 1. Read as the new channel's, those
        confirms would confirm messages that the broker never had.
        """

        def confirmed(frame: Any) -> None:
            method = frame.method
            if publisher.uses(channel):
                publisher.confirmed(method.delivery_tag, method.multiple, isinstance(method, pika.spec.Basic.Ack))

        def returned(_channel: Any, method: Any, properties: Any, _body: bytes) -> None:
            if publisher.uses(channel):
                publisher.returned(
                    method.reply_code, method.reply_text, method.exchange, method.routing_key, properties.message_id
                )

        channel.add_on_return_callback(returned)
        channel.confirm_delivery(confirmed, callback=lambda _frame: on_ready())

    def properties(self, message: Message) -> pika.BasicProperties:
        """Return the properties of a message: persistent, with our user and fedmq's content type."""
        return pika.BasicProperties(
            content_type=CONTENT_TYPE,
            delivery_mode=pika.DeliveryMode.Persistent.value,
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            user_id=self._addresses.current.user,
            headers=dict(message.headers),
            expiration=None if message.expiration_s is None else str(int(message.expiration_s * 1000)),
        )

    def broker_id(self, connection: Any) -> str:
        """Return the cluster's name and the virtual host of an open connection."""
        cluster = (connection.server_properties or {}).get("cluster_name", "")
        return f"{cluster}/{connection.params.virtual_host}"

    def unwritten_bytes(self, connection: Any) -> int:
        """Return the bytes that wait to be written to the socket, and the written bytes that the broker's machine has
        not acknowledged: on a slow link megabytes wait in the kernel."""
        stream = getattr(connection, "_transport", None)
        return 0 if stream is None else int(stream.get_write_buffer_size()) + _unacknowledged_bytes(stream)

    def moved_bytes(self, connection: Any) -> int:
        """Count incomplete frames too, unlike pika: a frame of a large body takes long on a slow link."""
        received = int(connection.bytes_received) + len(getattr(connection, "_frame_buffer", b""))
        return received + int(connection.bytes_sent) - self.unwritten_bytes(connection)

    def when_all_closed(self, then: Callable[[], None]) -> None:
        """Call `then` when no connection is left, at once if there is none."""
        self._on_all_closed = then
        if not self._connections:
            then()

    def drop(self, connection: Any) -> None:
        """End a connection without a goodbye."""
        stream = getattr(connection, "_transport", None)
        if stream is not None:
            stream.abort()

    def abort(self) -> None:
        """Drop the sockets of a broker that does not answer our goodbye."""
        for connection in self._connections:
            self.drop(connection)

    def explain(self, error: Exception) -> BrokerError:
        """Return pika's error as ours."""
        return error if isinstance(error, BrokerError) else _classify(error, self._addresses.current)

    def parameters(self, purpose: str, address: BrokerAddress) -> pika.ConnectionParameters:
        """Return the parameters of a connection; `purpose` is for RabbitMQ's list of connections."""
        if address.by_certificate:
            credentials = pika.credentials.ExternalCredentials()
        else:
            credentials = pika.PlainCredentials(address.user, address.password)
        return pika.ConnectionParameters(
            host=address.host,
            port=address.port,
            virtual_host=address.vhost,
            credentials=credentials,
            heartbeat=self._heartbeat_s,
            # An alarm may last for hours. The messages' deadlines and the heartbeats are the limits that matter.
            blocked_connection_timeout=None,
            ssl_options=pika.SSLOptions(self._fresh_context(address), address.host) if address.tls else None,
            client_properties={"connection_name": f"{self._name} {purpose}"},
            connection_attempts=1,
            socket_timeout=10,
            stack_timeout=15,
        )

    def _fresh_context(self, address: BrokerAddress) -> ssl.SSLContext:
        """Return the context of the files as they are now, because certificates are renewed while we run. If they
        cannot be used any more, the last ones that could stay in use."""
        try:
            if address.by_certificate and (user := self._tls.user()) != address.user:
                raise ConfigError(f"the certificate names {user!r} now, expected {address.user!r}")
            self._context = self._tls.context()
        except ConfigError as error:
            if self._context is None:
                raise
            log.error("certificate_not_read", detail=f"{error}; the last one stays in use")
        return self._context


class _Connection(pika.SelectConnection):  # type: ignore[misc]
    """A connection that can be given up while it opens. pika 1.4 then hands over a class in place of an error, and
    stumbles over it."""

    def _on_connection_workflow_done(self, conn_or_exc: Any) -> None:
        super()._on_connection_workflow_done(conn_or_exc() if isinstance(conn_or_exc, type) else conn_or_exc)


def _read_in_large_pieces(connection: Any) -> None:
    """Read more than pika's 4 KiB at a time, which more than double the CPU time of large bodies.

    There is no public setting, so the attribute is set on our own connections' streams alone. A pika without it is only
    slower.
    """
    stream = getattr(connection, "_transport", None)
    if stream is not None and hasattr(stream, "_MAX_RECV_BYTES"):
        stream._MAX_RECV_BYTES = _RECEIVE_BYTES


def _unacknowledged_bytes(stream: Any) -> int:
    """Return the unacknowledged bytes of a pika stream's socket; 0 if the system does not tell."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(stream._sock.fileno(), termios.TIOCOUTQ, count)
    except (AttributeError, OSError, ValueError):  # another pika, a system without this call, a closed socket
        return 0
    return count[0]


class _AssemblerInPlace(ContentFrameAssembler):  # type: ignore[misc]
    """An assembler that writes each piece of a body to its place when it comes in. pika's own keeps all pieces and
    joins them at the end, so a large body needs twice its size in RAM.

    There is no public setting for this either. A pika without such an assembler keeps its own.
    """

    _body_fragments: list[Any]
    _seen_so_far: int
    _header_frame: Any
    _method_frame: Any

    def _handle_body_frame(self, body_frame: Any) -> Any:
        piece, size = body_frame.fragment, self._header_frame.body_size
        if not self._body_fragments:
            if len(piece) == size:  # most messages: nothing to assemble
                return super()._handle_body_frame(body_frame)
            self._body_fragments = [bytearray(size)]
        end = self._seen_so_far + len(piece)
        if end > size:
            raise BodyTooLongError(end, size)
        self._body_fragments[0][self._seen_so_far : end] = piece
        self._seen_so_far = end
        return self._finish() if end == size else None

    def _finish(self) -> Any:
        if len(self._body_fragments) == 1:
            whole = (self._method_frame, self._header_frame, self._body_fragments[0])
            self._reset()
            return whole
        return super()._finish()


def _quieten_pika() -> None:
    """Silence pika, which logs every lost connection as several errors with tracebacks. We report each once, with its
    cause.

    A level that somebody has set stays.
    """
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all errors that pika has wrapped in it."""
    yield error
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), *error.args]
    for cause in inner:
        if isinstance(cause, BaseException):
            yield from _causes(cause)


def _classify(error: Exception, address: BrokerAddress) -> BrokerError:
    """Return pika's error as ours."""
    causes = list(_causes(error))
    # During login pika keeps the broker's own words only in the repr of an error inside another error.
    closed: tuple[int, str] | None = None
    if isinstance(error, ConnectionClosedByBroker):
        closed = int(error.reply_code), str(error.reply_text)
    elif found := _CLOSED_BY_BROKER.search(str(error) if len(causes) == 1 else repr(causes)):
        closed = int(found[1]), found[2].strip("'\")]")
    if closed is not None:
        code, text = closed
        refusal = connection_refusal(address, code, text)
        return refusal or BrokerUnavailable(f"RabbitMQ at {address} closed the connection ({code} {text})")
    if alert := _CERTIFICATE_ALERT.search(repr(causes)):
        return certificate_refusal(address, alert[1])
    for cause in causes:
        if isinstance(cause, AuthenticationError) and address.by_certificate:
            return BrokerRefused(
                f"RabbitMQ at {address} takes no login by certificate: enable its plugin rabbitmq_auth_mechanism_ssl, "
                "and set auth_mechanisms.1 = EXTERNAL and ssl_cert_login_from = common_name in its rabbitmq.conf"
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerRefused(
                f"the certificate of RabbitMQ at {address} is not trusted ({cause.verify_message}): "
                "set [broker] ca_file to its certificate authority"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return BrokerRefused(
                f"there is no TLS at {address}: RabbitMQ's TLS port is 5671 by default; for plain AMQP write amqp://"
            )
        if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
            return BrokerUnavailable(
                f"RabbitMQ at {address} is not answering ({(cause.strerror or str(cause)).lower()})"
            )
    if any("Timeout" in type(cause).__name__ for cause in causes):
        return BrokerUnavailable(f"RabbitMQ at {address} is not answering ({type(causes[-1]).__name__})")
    return BrokerUnavailable(f"the connection to RabbitMQ at {address} is lost ({error})")
