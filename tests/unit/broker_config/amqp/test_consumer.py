"""One consumer against channels that only record their calls."""

from types import SimpleNamespace
from typing import Any

from fedmq.broker_config.amqp.consumer import Consumer


class Channel:
    def __init__(self) -> None:
        self.is_open = True
        self.acked: list[int] = []

    def add_on_cancel_callback(self, callback: Any) -> None:
        self.on_cancel = callback

    def basic_qos(self, prefetch_count: int) -> None:
        self.prefetch = prefetch_count

    def basic_consume(self, queue: str, on_message: Any, callback: Any) -> None:
        self.on_message = on_message

    def basic_ack(self, tag: int) -> None:
        self.acked.append(tag)

    def close(self) -> None:
        self.is_open = False

    def brings(self, tag: int) -> None:
        properties = SimpleNamespace(headers=None, message_id="m", correlation_id=None, user_id=None)
        self.on_message(self, SimpleNamespace(delivery_tag=tag, redelivered=False), properties, b"body")


def consumer(taken: list[Any]) -> Consumer:
    return Consumer("q", taken.append, 4, on_lost=lambda *_: None, on_failed=lambda *_: None)


def test_a_consumer_that_is_started_twice_gives_the_first_channel_s_messages_back() -> None:
    taken: list[Any] = []
    one, first, second = consumer(taken), Channel(), Channel()
    one.start(first)
    first.brings(1)
    one.start(second)
    assert not first.is_open, "or its messages would wait for an ack until the connection ends"
    second.brings(1)
    hold, tag = taken[0].token
    assert not hold.claim(tag), "the delivery of the first channel comes again"
    hold, tag = taken[1].token
    assert hold.claim(tag)


def test_a_delivery_of_a_lost_channel_is_nobody_s_to_settle() -> None:
    taken: list[Any] = []
    one, channel = consumer(taken), Channel()
    one.start(channel)
    channel.brings(1)
    one.detach()
    hold, tag = taken[0].token
    assert not hold.claim(tag)
    channel.brings(2)
    assert len(taken) == 1
