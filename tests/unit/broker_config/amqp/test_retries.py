"""The tries of a transport to connect again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.amqp.retries import Retries
from fedmq.schemas.errors import BrokerUnavailable
from fedmq.schemas.local.backoff import Backoff

GONE = BrokerUnavailable("gone")


class Most(random.Random):
    """A random generator that draws the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Timers:
    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self.waiting.append((delay, callback))
        return self.waiting[-1]

    def remove_timeout(self, timeout_handle: Any) -> None:
        self.waiting.remove(timeout_handle)

    @property
    def delays_s(self) -> list[float]:
        return [delay_s for delay_s, _ in self.waiting]

    def fire(self) -> None:
        self.waiting.pop(0)[1]()


def make(addresses: str = "amqp://a/") -> tuple[Retries, Timers, list[str]]:
    timers, nodes, tried = Timers(), Addresses(addresses), list[str]()
    retries = Retries(timers, nodes, Backoff(1.0, 8.0), Most(), lambda: tried.append(nodes.current.host))
    return retries, timers, tried


def test_waits_double_up_to_their_cap_while_nothing_works() -> None:
    retries, timers, tried = make()
    waited: list[float] = []
    for _ in range(5):
        retries.lost(GONE)
        waited += timers.delays_s
        timers.fire()
    assert waited == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert tried == ["a"] * 5


def test_a_short_session_halves_the_steps() -> None:
    retries, timers, _ = make()
    for _ in range(4):
        retries.lost(GONE)
        timers.fire()
    retries.ready()
    retries.lost(GONE)
    assert timers.delays_s == [4.0]


def test_nodes_take_turns() -> None:
    retries, timers, tried = make("amqp://a/,amqp://b/")
    for _ in range(3):
        retries.lost(GONE)
        timers.fire()
    assert tried == ["b", "a", "b"]


def test_in_a_hurry_the_wait_that_is_under_way_begins_afresh() -> None:
    retries, timers, tried = make()
    for _ in range(4):
        retries.lost(GONE)
        timers.fire()
    retries.lost(GONE)
    assert timers.delays_s == [8.0]
    retries.hurry()
    assert timers.delays_s == [1.0]
    timers.fire()
    assert tried == ["a"] * 5
    retries.hurry()
    assert timers.waiting == [], "a try that is under way is not made twice"
