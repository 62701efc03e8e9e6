import socket
import struct
import threading

import pytest

from fedmq.broker_config.amqp.address import BrokerAddress
from fedmq.broker_config.amqp.handshake import MIB, identify
from fedmq.schemas.errors import BrokerUnavailable


def field(name, kind, value):
    return bytes([len(name)]) + name + kind + value


def text(value):
    return struct.pack(">I", len(value)) + value


TABLE = (
    field(b"capabilities", b"F", text(field(b"basic.nack", b"t", b"\x01")))
    + field(b"product", b"S", text(b"RabbitMQ"))
    + field(b"flag", b"t", b"\x00")
    + field(b"version", b"S", text(b"4.1.2"))
)
START = struct.pack(">HHBB", 10, 10, 0, 9) + text(TABLE) + text(b"PLAIN") + text(b"en_US")


def frame(payload):
    return struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


@pytest.fixture
def answering():
    """A function: answering(bytes) returns the address of a server that sends these bytes to its first client."""
    servers = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.recv(8)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        servers.append((server, thread))
        return BrokerAddress.parse(f"amqp://127.0.0.1:{server.getsockname()[1]}")

    yield start
    for server, thread in servers:
        thread.join(10)
        server.close()


def test_a_broker_says_what_and_which_version_it_is(answering):
    identity = identify(answering(frame(START)))
    assert (identity.product, identity.version, identity.max_message_bytes) == ("RabbitMQ", "4.1.2", 16 * MIB)


def test_older_versions_take_larger_messages(answering):
    assert identify(answering(frame(START.replace(b"4.1.2", b"3.9.9")))).max_message_bytes == 128 * MIB


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x01\x00\x00", frame(START)[:40], frame(b"\x00" * 12)],
)
def test_whoever_is_no_broker_is_named_as_such(answering, answer):
    with pytest.raises(BrokerUnavailable, match="does not answer as a broker"):
        identify(answering(answer))
