"""The opening of an AMQP 0-9-1 connection by hand, to ask a starting node: would you take a login now?

A port that answers is not enough: RabbitMQ listens before its virtual hosts and users are there.
"""

from __future__ import annotations

import socket
import struct

_TIMEOUT_S = 5.0
_METHOD = 1
_CONNECTION = 10
_START, _START_OK, _TUNE, _TUNE_OK, _OPEN, _OPEN_OK = 10, 11, 30, 31, 40, 41


def try_login(port: int, user: str, password: str, *, host: str = "127.0.0.1", vhost: str = "/") -> bool:
    """Whether the broker lets this user into this virtual host now. Never raises for what the broker does."""
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as sock:
            sock.sendall(b"AMQP\x00\x00\x09\x01")
            if _receive(sock)[0] != _START:
                return False
            response = f"\0{user}\0{password}".encode()
            # client-properties (an empty table), mechanism, response, locale
            sock.sendall(
                _frame(_START_OK, struct.pack(">I", 0) + _short(b"PLAIN") + _long(response) + _short(b"en_US"))
            )
            method, tuning = _receive(sock)
            if method != _TUNE:
                return False
            sock.sendall(_frame(_TUNE_OK, tuning) + _frame(_OPEN, _short(vhost.encode()) + b"\0\0"))
            return _receive(sock)[0] == _OPEN_OK
    except OSError:
        return False


def _receive(sock: socket.socket) -> tuple[int, bytes]:
    kind, _, size = struct.unpack(">BHI", _exactly(sock, 7))
    payload = _exactly(sock, size + 1)[:-1]
    class_id, method = struct.unpack_from(">HH", payload)
    return (method if (kind, class_id) == (_METHOD, _CONNECTION) else -1), payload[4:]


def _exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = sock.recv(size - len(found))
        if not piece:
            raise ConnectionError("closed by the broker")
        found += piece
    return found


def _frame(method: int, arguments: bytes) -> bytes:
    payload = struct.pack(">HH", _CONNECTION, method) + arguments
    return struct.pack(">BHI", _METHOD, 0, len(payload)) + payload + b"\xce"


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text
