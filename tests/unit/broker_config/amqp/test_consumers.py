"""Consumers start again after a loss, and once."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from fedmq.broker_config.amqp.consumer import Consumer
from fedmq.broker_config.amqp.consumers import Consumers
from fedmq.schemas.local.backoff import Backoff


class Broker:
    """Driver and session in one: it notes what is asked for, and answers when the test says so."""

    def __init__(self) -> None:
        self.loop: Any = SimpleNamespace(call_later=lambda _s, callback: self.later.append(callback))
        self.later: list[Any] = []
        self.declared: list[Any] = []
        self.opened: list[Any] = []
        self.channels: list[Channel] = []
        self.consuming = None
        self.consumers = Consumers(self, Backoff(1.0, 2.0), random.Random(0), lambda _state: None)  # type: ignore[arg-type]
        self.consumer = Consumer("q", lambda _d: None, 8, on_lost=self.consumers.lost, on_failed=lambda _d: None)
        self.consumers.attach(self)  # type: ignore[arg-type]
        self.consumers.add(self.consumer)

    def declare(self, then: Any) -> None:
        self.declared.append(then)

    def channel(self, _connection: Any, on_open: Any, _on_refused: Any) -> None:
        self.opened.append(on_open)

    def answer(self, _connection: Any, _on_silence: Any) -> Any:
        return SimpleNamespace(wait=lambda _what: None, stop=lambda: None)

    def go_on(self) -> None:
        """Let the time of all delays pass, answer all declarations, and open all channels."""
        for waiting in (self.later, self.declared):
            while waiting:
                waiting.pop(0)()
        while self.opened:
            self.channels.append(Channel())
            self.opened.pop(0)(self.channels[-1])

    @property
    def open_channels(self) -> int:
        return sum(channel.is_open for channel in self.channels)


class Channel:
    """A channel on which the broker confirms the consumer at once."""

    def __init__(self) -> None:
        self.is_open = True
        self.cancel: Any = None

    def add_on_cancel_callback(self, callback: Any) -> None:
        self.cancel = callback

    def basic_qos(self, **_values: int) -> None: ...

    def basic_consume(self, _queue: str, _on_message: Any, callback: Any) -> None:
        callback(None)

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def broker() -> Broker:
    one = Broker()
    one.go_on()
    assert len(one.channels) == 1
    return one


def test_a_consumer_that_the_broker_dropped_without_a_word_starts_again_when_two_looks_miss_it(broker: Broker) -> None:
    broker.consumers.counted("q", 0)
    assert broker.later == []  # that look may be older than the consumer
    broker.consumers.counted("q", 0)
    broker.go_on()
    assert (len(broker.channels), broker.open_channels) == (2, 1)


@pytest.mark.parametrize("counts", [(1, 1, 1), (0, 1, 0), (0,)])
def test_a_consumer_that_a_look_finds_goes_on(broker: Broker, counts: tuple[int, ...]) -> None:
    for count in counts:
        broker.consumers.counted("q", count)
    assert broker.later == []


def test_two_looks_at_two_consumers_do_not_count_as_two(broker: Broker) -> None:
    broker.consumers.counted("q", 0)
    broker.channels[0].cancel(None)
    broker.go_on()
    broker.consumers.counted("q", 0)
    assert broker.later == []


def test_queues_that_nobody_here_consumes_may_have_no_consumer(broker: Broker) -> None:
    broker.consumers.remove("q")
    for queue in ("q", "dead") * 2:
        broker.consumers.counted(queue, 0)
    assert broker.later == []


def test_a_consumer_that_is_lost_twice_at_once_starts_again_once(broker: Broker) -> None:
    broker.channels[0].cancel(None)
    broker.consumers.lost(broker.consumer, "the same queue's 404")
    broker.go_on()
    assert (len(broker.channels), broker.open_channels) == (2, 1)


@pytest.mark.parametrize("declared", [False, True])
def test_a_consumer_that_is_stopped_while_it_waits_does_not_come_back(broker: Broker, declared: bool) -> None:
    broker.channels[0].cancel(None)
    if declared:
        broker.later.pop(0)()
    broker.consumers.remove("q")
    broker.go_on()
    assert broker.open_channels == 0
