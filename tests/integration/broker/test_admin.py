"""The broker's administration: one suite for rabbitmqctl and for the management API, on one node with TLS."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.credentials import ExternalCredentials

from fedmq.broker_config.admin.admin import DEVICE_LIMITS, BrokerAdmin
from fedmq.broker_config.admin.documents import User
from fedmq.broker_config.admin.management import ManagementAdmin
from fedmq.broker_config.admin.rabbitmqctl import RabbitmqctlAdmin
from fedmq.broker_config.node.ctl import Ctl
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.processes import free_port
from fedmq.broker_config.node.tls import NodeTls
from fedmq.broker_config.rights import Rights, device_rights
from fedmq.schemas.errors import BrokerError, BrokerRefused, BrokerUnavailable
from tests.integration.broker.traffic import WAIT_S
from tests.support.asking import ask_until
from tests.support.certificates import Authority
from tests.support.full import in_full
from tests.support.rabbitmq import require_server

pytestmark = pytest.mark.broker

PASSWORD = "of/an:administrator@#"
QUOTED = "of%2Fan%3Aadministrator%40%23"
ALL = Rights(".*", ".*", ".*")


class Site:
    """A node, whoever may log in to it, and both ways to administer it."""

    def __init__(self, node: PrivateNode, authority: Authority, port: int) -> None:
        self.node, self.authority, self.port = node, authority, port
        ctl = Ctl.of_node(node.data_dir)
        self.backends: dict[str, BrokerAdmin] = {
            "rabbitmqctl": RabbitmqctlAdmin(ctl),
            "management": ManagementAdmin(
                f"https://admin:{QUOTED}@127.0.0.1:{port}", ca_file=str(authority.file), timeout_s=WAIT_S
            ),
        }
        self.backends["rabbitmqctl"].add_user("admin", ALL, PASSWORD)
        node.ctl("set_user_tags", "admin", "administrator")

    def login(self, user: str) -> pika.BlockingConnection:
        pem = self.authority.certify(user)
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.load_cert_chain(pem.certificate, pem.key)
        return pika.BlockingConnection(
            pika.ConnectionParameters(
                "127.0.0.1",
                self.node.port,
                credentials=ExternalCredentials(),
                ssl_options=pika.SSLOptions(context, "127.0.0.1"),
                socket_timeout=WAIT_S,
                blocked_connection_timeout=WAIT_S,
            )
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_server()
    authority, port = Authority(tmp_path_factory.mktemp("authority")), free_port()
    own = authority.certify("server", server=True)
    web = {
        "management.ssl.ip": "127.0.0.1",
        "management.ssl.port": str(port),
        "management.ssl.cacertfile": str(authority.file),
        "management.ssl.certfile": str(own.certificate),
        "management.ssl.keyfile": str(own.key),
    }
    node = PrivateNode(
        tmp_path_factory.mktemp("administered"),
        tls=NodeTls(authority.file, own.certificate, own.key),
        plugins=["rabbitmq_management"],
        overrides=web,
    )
    try:
        node.start(timeout_s=120)
        yield Site(node, authority, port)
    finally:
        node.stop()


EACH = [
    pytest.param("rabbitmqctl", marks=in_full("the other tests have it, and test_fleet_broker.py its commands")),
    "management",
]


@pytest.fixture(params=["rabbitmqctl", "management"])
def admin(request: pytest.FixtureRequest, site: Site) -> BrokerAdmin:
    return site.backends[request.param]


def closed(connection: pika.BlockingConnection) -> bool:
    """True once the broker has closed the connection. It waits for the client's answer, so the client has to listen."""
    try:
        connection.process_data_events(time_limit=0.1)
    except pika.exceptions.AMQPError:
        return True
    return False


def nacked(channel: BlockingChannel, queue: str) -> bool:
    try:
        channel.basic_publish("", queue, b"12345")
    except pika.exceptions.NackError:
        return True
    return False


@pytest.mark.parametrize("admin", EACH, indirect=True)
def test_a_device_comes_in_works_and_goes(
    admin: BrokerAdmin, site: Site, prefix: str, record_property: Callable[[str, object], None]
) -> None:
    device = f"{prefix}.sensor-1"
    own, uploads = f"{prefix}.participant.{device}", f"{prefix}.up.{device}"
    for _ in range(2):  # a command that was killed starts over
        admin.add_user(device, device_rights(prefix, device), limits=DEVICE_LIMITS)
        admin.declare_exchange(uploads)
    assert {device, "admin"} <= set(admin.users())
    connection = site.login(device)
    channel = connection.channel()
    channel.exchange_declare(uploads, passive=True)
    channel.queue_declare(own)
    payload = f"{prefix}.payload.{device}.{'a' * 32}"
    channel.queue_declare(payload)
    channel.queue_bind(payload, uploads, payload)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="403"):
        channel.queue_declare(f"{prefix}.participant.another")
    assert len(admin.connections_of(device)) == 1
    assert not admin.connections_of(f"{prefix}.nobody")
    assert {own, payload} <= set(admin.queues())
    admin.delete_user(device)
    since_s = time.monotonic()
    ask_until(lambda: closed(connection), what="RabbitMQ closes a deleted user's connections")
    record_property("a deleted user's connection was closed after", f"{time.monotonic() - since_s:.1f} s")
    ask_until(lambda: not admin.connections_of(device), what="the list of connections knows it")
    for _ in range(2):
        admin.delete_user(device)
        admin.delete_queues([own, payload])
        admin.delete_exchange(uploads)
    assert device not in admin.users()
    assert not {own, payload} & set(admin.queues())
    with pytest.raises(pika.exceptions.AMQPError, match="403"):
        site.login(device)
    assert uploads not in site.node.ctl("list_exchanges", "name").split()


def test_many_devices_come_in_with_one_call(admin: BrokerAdmin, prefix: str, site: Site) -> None:
    users = [User(f"{prefix}-{number}", device_rights(prefix, f"{prefix}-{number}")) for number in range(50)]
    admin.add_devices(users, [f"{prefix}.up.{user.name}" for user in users])
    assert {user.name for user in users} <= set(admin.users())
    assert site.node.ctl("list_exchanges", "name").count(f"{prefix}.up.") == 50
    admin.add_devices([], [])


def test_a_password_is_as_given_and_a_user_without_one_has_none(admin: BrokerAdmin, site: Site, prefix: str) -> None:
    secret = "join €/\"'$(x)`"
    admin.add_user(f"{prefix}-join", ALL, password=secret)
    site.node.rabbitmqctl.run("authenticate_user", f"{prefix}-join", stdin=f"{secret}\n")
    admin.add_user(f"{prefix}-join", ALL)
    for password in (secret, ""):
        with pytest.raises(BrokerError, match="authenticate_user"):
            site.node.rabbitmqctl.run("authenticate_user", f"{prefix}-join", stdin=f"{password}\n")


def test_limits_hold_and_win_over_a_devices_own_arguments(admin: BrokerAdmin, site: Site, prefix: str) -> None:
    user = f"{prefix}-limited"
    admin.add_user(user, ALL, limits={"max-connections": 2, "max-channels": 3})
    first, second = site.login(user), site.login(user)
    with pytest.raises(pika.exceptions.AMQPError, match="530"):
        site.login(user)
    channels = [first.channel() for _ in range(3)]
    with pytest.raises(pika.exceptions.AMQPError, match="530"):
        second.channel()
    channel = channels[0]
    admin.set_operator_policy(prefix, rf"^{prefix}\.payload\.", {"max-length-bytes": 5, "expires": 60_000})
    channel.confirm_delivery()
    queue = f"{prefix}.payload.x"
    channel.queue_declare(queue, arguments={"x-overflow": "reject-publish", "x-max-length-bytes": 10**9})
    assert any(nacked(channel, queue) for _ in range(20)), "the queue is full after 5 bytes, not after a gigabyte"
    admin.set_vhost_limits({"max-queues": len(admin.queues())})
    try:
        with pytest.raises(pika.exceptions.AMQPError, match="406"):
            channel.queue_declare(f"{prefix}.one-too-many")
    finally:
        admin.set_vhost_limits({"max-queues": 5000})
    admin.delete_queues([queue])
    first.close()


def test_what_the_broker_refuses_is_told_without_the_secrets(admin: BrokerAdmin, site: Site, prefix: str) -> None:
    secret = "a-token-of-a-device"
    elsewhere = type(admin).__new__(type(admin))
    elsewhere.__dict__ |= admin.__dict__ | {"vhost": f"{prefix}-nowhere"}
    with pytest.raises(BrokerError, match="nowhere") as caught:
        elsewhere.add_user(f"{prefix}-lost", ALL, password=secret)
    assert secret not in str(caught.value)
    for log in (site.node.data_dir / "log").iterdir():
        text = log.read_text(errors="replace")
        assert secret not in text
        assert PASSWORD not in text


def test_a_wrong_password_and_a_strange_certificate_are_refused_in_words(site: Site, tmp_path: Path) -> None:
    place = f"127.0.0.1:{site.port}"
    wrong = ManagementAdmin(f"https://admin:a-wrong-one@{place}", ca_file=str(site.authority.file))
    with pytest.raises(BrokerRefused, match="check user and password") as caught:
        wrong.users()
    assert "a-wrong-one" not in f"{caught.value}{wrong!r}"
    stranger = Authority(tmp_path)
    with pytest.raises(BrokerRefused, match="not trusted"):
        ManagementAdmin(f"https://admin:{QUOTED}@{place}", ca_file=str(stranger.file)).users()
    with pytest.raises(BrokerUnavailable, match="rabbitmq_management"):
        ManagementAdmin(f"http://admin:{QUOTED}@127.0.0.1:{free_port()}").users()
