"""A broker with several addresses, as a cluster has: here two proxies before one node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.node.node import PrivateNode
from fedmq.schemas.errors import BrokerUnavailable
from tests.chaos.proxy import Proxy
from tests.integration.broker.traffic import WAIT_S, Corner, News

pytestmark = pytest.mark.broker


@pytest.fixture
def proxies(rabbitmq_node: PrivateNode) -> Iterator[tuple[Proxy, Proxy]]:
    pair = Proxy(rabbitmq_node.port), Proxy(rabbitmq_node.port)
    yield pair
    for one in pair:
        one.close()


@pytest.fixture
def urls(rabbitmq_node: PrivateNode, proxies: tuple[Proxy, Proxy]) -> str:
    return ",".join(rabbitmq_node.url_for(port=proxy.port) for proxy in proxies)


def test_the_first_address_that_answers_is_taken(proxies: tuple[Proxy, Proxy], urls: str, prefix: str) -> None:
    proxies[0].set_up(False)
    news = News()
    transport = Corner(prefix).open(urls, news)
    assert str(proxies[1].port) in news.wait_for_state("connected").detail
    transport.close()


def test_after_a_loss_the_next_address_is_tried_and_nothing_is_lost(
    proxies: tuple[Proxy, Proxy], urls: str, prefix: str
) -> None:
    corner, news = Corner(prefix), News()
    transport = corner.open(urls, news)
    transport.consume(corner.queue.name, news.on_delivery, prefetch=100)
    expected = set()
    for at, (down, up) in enumerate((proxies, proxies[::-1]), start=1):
        assert str(down.port) in news.wait_for_state("connected", times=at).detail
        up.set_up(True)
        down.set_up(False)
        message_ids = {f"{at}-{n}" for n in range(20)}
        futures = [transport.publish(corner.message(one), timeout_s=60.0) for one in sorted(message_ids)]
        assert str(up.port) in news.wait_for_state("connected", times=at + 1).detail
        assert [future.exception(WAIT_S) for future in futures] == [None] * 20
        expected |= message_ids
        news.wait_for(lambda found, all_of=set(expected): found.ids == all_of)  # type: ignore[misc]
    transport.close()


def test_where_no_address_answers_all_are_named(proxies: tuple[Proxy, Proxy], urls: str, prefix: str) -> None:
    for proxy in proxies:
        proxy.set_up(False)
    transport = AmqpTransport(urls, name="nobody")
    with pytest.raises(BrokerUnavailable) as raised:
        transport.open((), (), timeout_s=0.5)
    assert all(f"127.0.0.1:{proxy.port}" in str(raised.value) for proxy in proxies)
