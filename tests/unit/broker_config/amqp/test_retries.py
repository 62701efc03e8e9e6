"""The tries of a transport to connect again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from fedmq.broker_config.amqp import retries as module
from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.amqp.retries import Retries
from fedmq.schemas.errors import BrokerError, BrokerRefused, BrokerUnavailable
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


NO = BrokerRefused("revoked, or the broker has lost its users")


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[str, str]]:
    """A function: at(retries, 60.0, NO) loses a session at this time, and returns the level and the line of the log."""

    def lose(retries: Retries, now_s: float, why: BrokerError) -> tuple[str, str]:
        monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
        caplog.clear()
        retries.lost(why)
        (record,) = caplog.records
        return record.levelname, record.message

    return lose


def test_a_broker_that_refuses_for_ten_minutes_is_told_as_one_that_means_it(at: Callable[..., tuple[str, str]]) -> None:
    retries, timers, _ = make()
    for now_s in (0.0, 200.0, 400.0, 500.0, 599.0):
        level, line = at(retries, now_s, NO)
        assert (level, line.split(" ")[0]) == ("WARNING", "event=not_connected")
    assert at(retries, 600.0, BrokerUnavailable("away"))[1].startswith("event=not_connected")
    for now_s, said in ((600.0, "refused 6 times in 10 min"), (1200.0, "refused 7 times in 20 min")):
        level, line = at(retries, now_s, NO)
        assert (level, line.split(" ")[0]) == ("ERROR", "event=refused")
        assert "revoked, or the broker has lost its users" in line
        assert said in line
        assert "nothing on this disk is lost; trying again in 8.0 s" in line
    assert len(timers.waiting) == 8, "it goes on trying"


def test_a_few_refusals_far_apart_mean_nothing(at: Callable[..., tuple[str, str]]) -> None:
    retries, _, _ = make()
    assert [at(retries, n * 1000.0, NO)[0] for n in range(5)] == ["WARNING"] * 4 + ["ERROR"]


def test_a_session_ends_the_count_of_refusals(at: Callable[..., tuple[str, str]]) -> None:
    retries, _, _ = make()
    for n in range(6):
        at(retries, n * 200.0, NO)
    retries.ready()
    assert at(retries, 1201.0, NO)[0] == "WARNING"
