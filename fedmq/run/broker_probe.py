"""Ask a broker who it is, without logging in: AMQP 0-9-1 servers introduce themselves first (connection.start)."""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.schemas.errors import BrokerUnavailable

TIMEOUT_S = 5.0
MIB = 1024**2
_MAX_FRAME_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """What it says of itself; empty where it does not say."""

    product: str
    version: str

    @property
    def max_message_bytes(self) -> int | None:
        """The default `max_message_size` of this version; None where the version is not known."""
        major = self.version.partition(".")[0]
        if self.product != "RabbitMQ" or not major.isdecimal():
            return None
        return 16 * MIB if int(major) >= 4 else 128 * MIB


def identify(address: BrokerAddress, ca_file: str | None = None) -> BrokerIdentity:
    """Raises BrokerUnavailable where nobody answers, or somebody who does not speak AMQP."""
    try:
        with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as plain:
            if not address.tls:
                return _introduced(plain)
            context = ssl.create_default_context(cafile=ca_file)
            with context.wrap_socket(plain, server_hostname=address.host) as secure:
                return _introduced(secure)
    except (OSError, ValueError, struct.error, IndexError) as e:
        raise BrokerUnavailable(
            f"{address} does not answer as a broker ({e}): is it running, are host and port right, does a firewall "
            "stand between? (fedmq broker starts one on this machine)"
        ) from e


def _introduced(sock: socket.socket) -> BrokerIdentity:
    sock.sendall(b"AMQP\x00\x00\x09\x01")
    with sock.makefile("rb") as stream:
        kind, _, size = struct.unpack(">BHI", stream.read(7))
        if kind != 1 or size > _MAX_FRAME_BYTES:
            raise ValueError("the answer is not AMQP 0-9-1")
        payload = stream.read(size)
    if struct.unpack_from(">HH", payload) != (10, 10):
        raise ValueError("the answer is not connection.start")
    found = _texts(payload, 6)  # behind class, method and two version bytes
    return BrokerIdentity(found.get("product", ""), found.get("version", ""))


def _texts(payload: bytes, at: int) -> dict[str, str]:
    """The long strings of a field table, up to the first field of a type that does not occur there."""
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
