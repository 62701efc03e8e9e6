"""Wrong credentials, hosts, permissions and arguments are reported at once, with advice, without the password."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pika
import pytest
from pika.adapters.utils import io_services_utils
from pika.exceptions import ChannelClosedByBroker

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.broker_config.node.processes import free_port
from fedmq.schemas.errors import BrokerError, BrokerRefused, BrokerUnavailable, TopologyConflict
from fedmq.schemas.local.backoff import Backoff
from tests.integration.broker.traffic import WAIT_S, Corner, News

pytestmark = pytest.mark.broker
SECRET = "sesame-9Xq"


@pytest.fixture(autouse=True)
def _nothing_logs_the_password(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text


def refusal(url: str, corner: Corner, timeout_s: float = WAIT_S) -> BrokerError:
    transport = AmqpTransport(url, name="refused", backoff=Backoff(0.05, 0.1))
    with pytest.raises(BrokerError) as raised:
        transport.open((corner.exchange,), (corner.queue,), timeout_s=timeout_s)
    assert SECRET not in str(raised.value)
    return raised.value


def test_a_wrong_password_is_refused_at_once(rabbitmq_node: PrivateNode, prefix: str) -> None:
    error = refusal(rabbitmq_node.url_for(password=SECRET), Corner(prefix))
    assert isinstance(error, BrokerRefused)
    assert "check the user 'fedmq' and the password" in str(error)


def test_a_wrong_virtual_host_is_refused_at_once(rabbitmq_node: PrivateNode, prefix: str) -> None:
    error = refusal(rabbitmq_node.url_for(vhost="elsewhere"), Corner(prefix))
    assert isinstance(error, BrokerRefused)
    assert "virtual host 'elsewhere'" in str(error)
    assert "add_vhost" in str(error)


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("fedmq.broker_config.")]


def test_a_broker_that_hangs_up_at_once_is_one_that_does_not_answer(
    rabbitmq_node: PrivateNode, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker whose queue of connections is full does so: then pika raises ValueError on the I/O thread."""
    first_look = io_services_utils._AsyncStreamConnector.__init__
    hung_up = []

    def look(self: Any, nbio: Any, protocol_factory: Any, sock: Any, **others: Any) -> None:
        if not hung_up:
            sock.close()
            hung_up.append(sock := socket.socket())  # without a peer
        first_look(self, nbio, protocol_factory, sock, **others)

    monkeypatch.setattr(io_services_utils._AsyncStreamConnector, "__init__", look)
    transport = AmqpTransport(rabbitmq_node.url, name="late", backoff=Backoff(0.05, 0.1))
    transport.open((), (), timeout_s=WAIT_S)
    transport.close()
    hung_up[0].close()
    records = ours(caplog)
    assert "is not answering (transport endpoint is not connected); trying again in " in records[0].message
    assert not any(record.exc_info for record in records)


def test_a_broker_that_is_not_there_is_tried_again_with_a_line_each(
    rabbitmq_node: PrivateNode, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    error = refusal(rabbitmq_node.url_for(password=SECRET, port=port), Corner(prefix), timeout_s=0.5)
    assert isinstance(error, BrokerUnavailable)
    assert "connection refused" in str(error)
    line = f"RabbitMQ at 127.0.0.1:{port} is not answering (connection refused); trying again in "
    records = ours(caplog)
    assert len(records) > 1
    assert all(record.message.startswith(f'event=not_connected detail="{line}') for record in records)


def test_another_queue_of_the_same_name_is_a_conflict_that_names_it(rabbitmq_node: PrivateNode, prefix: str) -> None:
    corner = Corner(prefix, max_length=5)
    corner.open(rabbitmq_node.url).close()
    error = refusal(rabbitmq_node.url, Corner(prefix, max_length=6))
    assert isinstance(error, TopologyConflict)
    assert corner.queue.name in str(error)
    assert "inequivalent arg 'x-max-length'" in str(error), "the broker's own words"


@pytest.fixture
def reader(rabbitmq_node: PrivateNode, prefix: str) -> Iterator[str]:
    """URL of a user who may read everything, but declare and write only below its own name."""
    rabbitmq_node.ctl("add_user", prefix, SECRET)
    own = f"^{prefix}\\.own.*"
    rabbitmq_node.ctl("set_permissions", "-p", "/", prefix, own, own, ".*")
    yield rabbitmq_node.url_for(user=prefix, password=SECRET)
    rabbitmq_node.ctl("delete_user", prefix)


def test_missing_permissions_are_told_for_declaring_and_for_publishing(
    rabbitmq_node: PrivateNode, prefix: str, reader: str
) -> None:
    corner = Corner(prefix)
    error = refusal(reader, corner)
    assert isinstance(error, BrokerRefused)
    assert corner.exchange.name in str(error)
    assert "set_permissions" in str(error)

    corner.open(rabbitmq_node.url).close()
    own = Corner(f"{prefix}.own")
    news = News()
    transport = own.open(reader, news)
    innocents = [transport.publish(own.message(f"before {n}")) for n in range(5)]
    guilty = transport.publish(corner.message("guilty"))
    innocents += [transport.publish(own.message(f"after {n}")) for n in range(5)]
    assert isinstance(guilty.exception(WAIT_S), BrokerRefused)
    assert [future.exception(WAIT_S) for future in innocents] == [None] * 10
    transport.consume(own.queue.name, news.on_delivery, 50)
    news.wait_for(lambda found: len(found.ids) == 10)
    assert news.count("disconnected") == 0, "one bad publish costs a channel, not the connection"
    transport.close()


def test_the_broker_vouches_for_the_user_that_a_message_names(
    rabbitmq_node: PrivateNode, prefix: str, reader: str
) -> None:
    """coordinator.decisions.participants.identity relies on it."""
    own, news = Corner(f"{prefix}.own"), News()
    transport = own.open(reader)
    transport.publish(own.message("1")).result(WAIT_S)
    transport.consume(own.queue.name, news.on_delivery, 1)
    news.wait_for(lambda found: len(found.ids) == 1)
    assert news.deliveries[0].user_id == prefix
    transport.close()
    with pika.BlockingConnection(pika.URLParameters(reader)) as connection:
        channel = connection.channel()
        forged = pika.BasicProperties(user_id="fedmq")
        channel.basic_publish(own.exchange.name, own.queue.routing_key, b"", forged)
        with pytest.raises(ChannelClosedByBroker, match="user_id property set to 'fedmq'"):
            channel.queue_delete(own.queue.name)


def test_a_message_for_an_exchange_that_is_not_there_fails_alone(rabbitmq_node: PrivateNode, prefix: str) -> None:
    corner = Corner(prefix)
    transport = corner.open(rabbitmq_node.url)
    bad = replace(corner.message("bad"), exchange=f"{prefix}.nowhere")
    futures = [transport.publish(m) for m in (corner.message("1"), bad, corner.message("2"))]
    errors = [future.exception(WAIT_S) for future in futures]
    assert [type(error).__name__ for error in errors] == ["NoneType", "Unroutable", "NoneType"]
    assert f"no exchange '{prefix}.nowhere'" in str(errors[1])
    transport.close()
