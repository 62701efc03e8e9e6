"""The size of each read from the socket, which decides the cost of large bodies."""

from __future__ import annotations

import pytest
from pika.adapters.utils import io_services_utils

from fedmq.broker_config.node.node import PrivateNode
from tests.integration.broker.traffic import WAIT_S, Corner, News


@pytest.mark.broker
def test_large_bodies_are_read_in_pieces_of_256_kib(
    rabbitmq_node: PrivateNode, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = io_services_utils._AsyncTransportBase
    real, asked = reader._sigint_safe_recv, set()

    def recv(sock, max_bytes):
        asked.add(max_bytes)
        return real(sock, max_bytes)

    corner, news = Corner(prefix), News()
    transport = corner.open(rabbitmq_node.url, news)
    monkeypatch.setattr(reader, "_sigint_safe_recv", staticmethod(recv))
    body = bytes(range(256)) * 4096
    transport.consume(corner.queue.name, news.on_delivery, prefetch=1)
    transport.publish(corner.message("1", body)).result(WAIT_S)
    news.wait_for(lambda found: len(found.deliveries) == 1)
    assert news.deliveries[0].body == body
    assert isinstance(news.deliveries[0].body, bytearray), "assembled in place"
    assert transport.ack(news.deliveries[0])
    transport.close()
    assert asked == {256 * 1024}
