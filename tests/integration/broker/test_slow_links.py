"""Uploads through a slow proxy: each is sent once, and given up with its connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedmq.broker_config.node.node import PrivateNode
from fedmq.schemas.errors import PublishTimeout
from tests.chaos.proxy import Proxy
from tests.integration.broker.traffic import WAIT_S, Corner
from tests.support.asking import ask_until

pytestmark = pytest.mark.broker
BODY = bytes(8 * 2**20)


@pytest.fixture
def proxy(rabbitmq_node: PrivateNode) -> Iterator[Proxy]:
    one = Proxy(rabbitmq_node.port)
    one.throttle(len(BODY) / 3, "up")
    yield one
    one.close()


def test_an_upload_longer_than_its_timeout_is_confirmed_by_its_one_copy(
    rabbitmq_node: PrivateNode, prefix: str, proxy: Proxy
) -> None:
    corner = Corner(prefix)
    transport = corner.open(rabbitmq_node.url_for(port=proxy.port))
    message = corner.message("large", BODY)
    transport.publish(message, timeout_s=1.0).result(WAIT_S)
    assert transport.depth(corner.queue.name) == 1
    assert proxy.carried["up"] < 1.1 * len(BODY)
    transport.close()


def test_a_message_that_timed_out_on_a_link_that_stood_still_is_not_sent_twice_when_that_goes_on(
    rabbitmq_node: PrivateNode, prefix: str, proxy: Proxy
) -> None:
    corner = Corner(prefix)
    transport = corner.open(rabbitmq_node.url_for(port=proxy.port))
    proxy.throttle(1, "up")
    message = corner.message("large", BODY)
    for _ in range(2):
        with pytest.raises(PublishTimeout, match="sent, not confirmed"):
            transport.publish(message, timeout_s=0.2).result(WAIT_S)
    proxy.throttle(len(BODY), "up")
    transport.publish(message, timeout_s=WAIT_S).result(WAIT_S)
    assert transport.depth(corner.queue.name) == 1
    assert proxy.carried["up"] < 1.1 * len(BODY)
    transport.close()


def test_an_upload_ends_with_the_other_connection_of_its_session(
    rabbitmq_node: PrivateNode, prefix: str, proxy: Proxy
) -> None:
    corner = Corner(prefix)
    transport = corner.open(rabbitmq_node.url_for(port=proxy.port))
    sent = transport.publish(corner.message("large", BODY), timeout_s=WAIT_S)
    ask_until(lambda: proxy.carried["up"], lambda carried: carried > 100_000)
    assert proxy.sever(oldest=1) == 1
    sent.result(WAIT_S)
    assert transport.depth(corner.queue.name) == 1
    transport.close()
