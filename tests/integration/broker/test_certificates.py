"""A private node that serves TLS alone: a fleet's certificate is the login, and nothing else is let in."""

from __future__ import annotations

import gc
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest
from pika.credentials import ExternalCredentials, PlainCredentials

from fedmq.broker_config.node.ctl import Ctl
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.tls import NodeTls
from fedmq.schemas.errors import ConfigError
from tests.integration.broker.traffic import WAIT_S
from tests.support.certificates import Authority, Pem
from tests.support.full import in_full
from tests.support.rabbitmq import require_server

pytestmark = [
    pytest.mark.broker,
    # pika leaves the socket of a refused login to the garbage collector.
    pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning"),
]

PASSWORD = "a password that the broker knows"
REFUSALS = (pika.exceptions.AMQPError, OSError)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collect pika's sockets here, and not in the middle of another file's test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certain(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """A node of certificates, with the user `sensor-1`, who has a password too."""
    require_server()
    own = authority.certify("server", server=True)
    with PrivateNode(tmp_path_factory.mktemp("certain"), tls=NodeTls(authority.file, own.certificate, own.key)) as node:
        Ctl.of_node(node.data_dir).run("add_user", "sensor-1", stdin=f"{PASSWORD}\n")
        node.ctl("set_permissions", "sensor-1", ".*", ".*", ".*")
        yield node


def login(
    node: PrivateNode, authority: Authority, certificate: Pem | None, credentials: ExternalCredentials | None = None
) -> pika.BlockingConnection:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            "127.0.0.1",
            node.port,
            credentials=credentials or ExternalCredentials(),
            ssl_options=pika.SSLOptions(context, "127.0.0.1"),
            socket_timeout=WAIT_S,
            blocked_connection_timeout=WAIT_S,
        )
    )


def test_a_certificate_is_the_login_of_its_common_name(certain: PrivateNode, authority: Authority) -> None:
    connection = login(certain, authority, authority.certify("sensor-1"))
    connection.channel().queue_declare("", exclusive=True)
    assert certain.ctl("list_connections", "user").split()[1:] == ["sensor-1"]
    connection.close()


def test_a_certificate_of_a_name_without_a_user_is_refused(certain: PrivateNode, authority: Authority) -> None:
    with pytest.raises(pika.exceptions.AMQPError, match="403"):
        login(certain, authority, authority.certify("sensor-2"))


def test_a_right_password_is_refused_with_and_without_a_certificate(certain: PrivateNode, authority: Authority) -> None:
    assert "Success" in certain.rabbitmqctl.run("authenticate_user", "sensor-1", stdin=f"{PASSWORD}\n")
    with pytest.raises(pika.exceptions.AMQPError, match="PLAIN"):
        login(certain, authority, authority.certify("sensor-1"), PlainCredentials("sensor-1", PASSWORD))
    with pytest.raises(REFUSALS):
        login(certain, authority, None, PlainCredentials("sensor-1", PASSWORD))


def test_a_client_without_a_certificate_or_with_anothers_is_not_heard(
    certain: PrivateNode, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "another")
    for certificate in (None, stranger.certify("sensor-1")):
        with pytest.raises(REFUSALS) as caught:
            login(certain, authority, certificate)
        assert "403" not in str(caught.value), "TLS refuses it, before any login"


def test_the_node_has_no_port_without_tls_and_no_user_of_its_own(certain: PrivateNode) -> None:
    with socket.create_connection(("127.0.0.1", certain.port), timeout=WAIT_S) as plain:
        plain.sendall(b"AMQP\x00\x00\x09\x01")
        assert not plain.recv(1000).startswith(b"\x01"), "no AMQP frame answers"
    listeners = certain.ctl("eval", "[P || {listener, _, P, _, _, _, _} <- rabbit_networking:active_listeners()].")
    assert listeners.strip() == "[clustering,'amqp/ssl']"
    assert {line.split()[0] for line in certain.ctl("list_users").splitlines() if line} <= {"user", "sensor-1"}
    assert certain.url == f"amqps://127.0.0.1:{certain.port}/%2F"


def test_a_folder_with_an_administrators_password_is_not_taken_for_a_node_of_certificates(
    authority: Authority, tmp_path: Path
) -> None:
    require_server()
    (tmp_path / "rabbitmq.conf").write_text("heartbeat = 60\n")
    own = authority.certify("server", server=True)
    node = PrivateNode(tmp_path, tls=NodeTls(authority.file, own.certificate, own.key))
    with pytest.raises(ConfigError, match="administrator's password"):
        node.start()


@in_full("integration/fleet/test_enrolment.py has a device that joins")
def test_a_password_lets_in_a_device_that_joins_if_the_node_is_told_so(authority: Authority, tmp_path: Path) -> None:
    require_server()
    own = authority.certify("server", server=True)
    with PrivateNode(tmp_path, tls=NodeTls(authority.file, own.certificate, own.key, passwords=True)) as node:
        node.rabbitmqctl.run("add_user", "join-1", stdin=f"{PASSWORD}\n")
        node.ctl("set_permissions", "join-1", ".*", ".*", ".*")
        login(node, authority, None, PlainCredentials("join-1", PASSWORD)).close()
        login(node, authority, authority.certify("join-1")).close()
        with pytest.raises(pika.exceptions.AMQPError, match="403"):
            login(node, authority, None, PlainCredentials("join-1", "another password"))
