"""The opening of an AMQP 0-9-1 connection by hand, without pika, for two questions to a broker.

- `identify`: who are you? A server introduces itself first (connection.start), before any login.
- `try_login`: would you take a login now? A port that answers is not enough, because RabbitMQ listens before its
  virtual hosts and users are there.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.broker_config.amqp.tls import NO_FILES, TlsFiles
from fedmq.schemas.errors import BrokerUnavailable

TIMEOUT_S = 5.0
MIB = 1024**2
_MAX_FRAME_BYTES = 1_000_000
_METHOD_FRAME = 1
_CONNECTION = 10
_START, _START_OK, _TUNE, _TUNE_OK, _OPEN, _OPEN_OK = 10, 11, 30, 31, 40, 41
_NOT_AMQP = (OSError, ValueError, struct.error, IndexError)


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """A broker's own statement about itself; what it does not state is empty."""

    product: str
    version: str

    @property
    def max_message_bytes(self) -> int | None:
        """The default `max_message_size` of this version; None if the version is not known."""
        major = self.version.partition(".")[0]
        if self.product != "RabbitMQ" or not major.isdecimal():
            return None
        return 16 * MIB if int(major) >= 4 else 128 * MIB


def identify(address: BrokerAddress, tls: TlsFiles = NO_FILES) -> BrokerIdentity:
    """Ask a broker who it is.

    Raises BrokerUnavailable if nobody answers, or somebody who does not speak AMQP, and ConfigError for files that
    cannot be used.
    """
    try:
        with _connected(address, tls) as sock:
            found = _texts(_start(sock), 2)  # behind two version bytes
    except _NOT_AMQP as e:
        raise BrokerUnavailable(
            f"{address} does not answer as a broker ({e}): is it running, are host and port right, does a firewall "
            "stand between? (fedmq broker starts one on this machine)"
        ) from e
    return BrokerIdentity(found.get("product", ""), found.get("version", ""))


def try_login(address: BrokerAddress, tls: TlsFiles = NO_FILES) -> bool:
    """True if the broker lets this user into this virtual host now, by its password or by its certificate. No behaviour
    of the broker raises."""
    try:
        with _connected(address, tls) as sock:
            _start(sock)
            mechanism, response = b"PLAIN", f"\0{address.user}\0{address.password}".encode()
            if address.by_certificate:
                mechanism, response = b"EXTERNAL", b""
            # client-properties (an empty table), mechanism, response, locale
            sock.sendall(
                _frame(_START_OK, struct.pack(">I", 0) + _short(mechanism) + _long(response) + _short(b"en_US"))
            )
            tuning = _receive(sock, _TUNE)
            sock.sendall(_frame(_TUNE_OK, tuning) + _frame(_OPEN, _short(address.vhost.encode()) + b"\0\0"))
            _receive(sock, _OPEN_OK)
    except _NOT_AMQP:
        return False
    return True


@contextlib.contextmanager
def _connected(address: BrokerAddress, tls: TlsFiles) -> Iterator[socket.socket]:
    with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as plain:
        if not address.tls:
            yield plain
            return
        with tls.context().wrap_socket(plain, server_hostname=address.host) as secure:
            yield secure


def _start(sock: socket.socket) -> bytes:
    """Say hello; return the arguments of connection.start."""
    sock.sendall(b"AMQP\x00\x00\x09\x01")
    return _receive(sock, _START)


def _receive(sock: socket.socket, expected: int) -> bytes:
    """Return the arguments of the connection class's method `expected`. Raises ValueError for anything else."""
    kind, _, size = struct.unpack(">BHI", _exactly(sock, 7))
    if kind != _METHOD_FRAME or size > _MAX_FRAME_BYTES:
        raise ValueError("the answer is not AMQP 0-9-1")
    payload = _exactly(sock, size + 1)[:-1]
    if struct.unpack_from(">HH", payload) != (_CONNECTION, expected):
        raise ValueError(f"the answer is not the expected method {expected} of a connection")
    return payload[4:]


def _exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = sock.recv(size - len(found))
        if not piece:
            raise ConnectionError("it closed the connection")
        found += piece
    return found


def _frame(method: int, arguments: bytes) -> bytes:
    payload = struct.pack(">HH", _CONNECTION, method) + arguments
    return struct.pack(">BHI", _METHOD_FRAME, 0, len(payload)) + payload + b"\xce"


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _texts(payload: bytes, at: int) -> dict[str, str]:
    """Return the long strings of a field table, up to the first field of a type that does not occur there."""
    (size,) = struct.unpack_from(">I", payload, at)
    at += 4
    end = at + size
    found = {}
    while at < end:
        length = payload[at]
        name = payload[at + 1 : at + 1 + length].decode()
        kind = chr(payload[at + 1 + length])
        at += 2 + length
        if kind in "SF":
            (length,) = struct.unpack_from(">I", payload, at)
            if kind == "S":
                found[name] = payload[at + 4 : at + 4 + length].decode(errors="replace")
            at += 4 + length
        elif kind == "t":
            at += 1
        else:
            break
    return found
