import pytest

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.schemas.errors import BrokerRefused
from tests.integration.broker.conftest import Tls
from tests.integration.broker.traffic import WAIT_S, Corner, News

pytestmark = pytest.mark.broker


def test_messages_go_both_ways_over_tls(node: PrivateNode, tls: Tls, prefix: str) -> None:
    corner, news = Corner(prefix), News()
    url = node.url_for(port=tls.port).replace("amqp://", "amqps://")
    transport = AmqpTransport(url, name="tls", ca_file=str(tls.certificate))
    transport.open((corner.exchange,), (corner.queue,), timeout_s=WAIT_S)
    body = bytes(range(256)) * 20_000
    transport.publish(corner.message("large", body)).result(WAIT_S)
    transport.consume(corner.queue.name, news.on_delivery, 1)
    news.wait_for(lambda found: len(found.deliveries) == 1)
    assert news.deliveries[0].body == body
    transport.close()


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(node: PrivateNode, tls: Tls) -> None:
    url = node.url_for(port=tls.port).replace("amqp://", "amqps://")
    with pytest.raises(BrokerRefused, match=r"is not trusted.*ca_file"):
        AmqpTransport(url, name="tls").open((), (), timeout_s=WAIT_S)


def test_tls_against_a_port_without_it_is_refused_at_once(node: PrivateNode, tls: Tls) -> None:
    url = node.url.replace("amqp://", "amqps://")
    with pytest.raises(BrokerRefused, match="no TLS"):
        AmqpTransport(url, name="tls", ca_file=str(tls.certificate)).open((), (), timeout_s=WAIT_S)
