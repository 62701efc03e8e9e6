"""Chores by themselves, with timers whose clock a test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedmq.broker_config.chores import Chore, Chores, Finish
from fedmq.broker_config.timers import ClockTimers
from fedmq.broker_config.topology import Queue
from fedmq.schemas.errors import BrokerUnavailable, TransportClosed

QUEUE = Queue("q", "classic", "x", "q")


class Bench:
    """Chores under test. `begun` has each chore that was begun, with the function that finishes it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers = ClockTimers(lambda: self.now_s)
        self.queues: dict[str, Queue] = {}
        self.begun: list[tuple[Chore, Finish]] = []
        self.given_up: list[str] = []
        self.idle_calls = 0
        self.at_once: int | None = None
        self.chores = Chores(self.timers, self.queues, self.begin, self.idle)

    def begin(self, chore: Chore, finish: Finish) -> Callable[[], None]:
        self.begun.append((chore, finish))
        if self.at_once is not None:
            finish(self.at_once)
        return lambda: self.given_up.append(chore.name)

    def idle(self) -> None:
        self.idle_calls += 1

    def submit(self, name: str, queue: Queue | None = None, timeout_s: float = 30.0) -> Chore:
        chore = Chore(name, queue, timeout_s)
        self.chores.submit(chore)
        return chore

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.timers.do_due()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_chores_wait_for_a_connection_and_are_done_in_their_order(bench: Bench) -> None:
    first, second = bench.submit("q", QUEUE), bench.submit("r")
    assert bench.begun == []
    bench.chores.attach()
    assert [chore for chore, _ in bench.begun] == [first]
    bench.begun[0][1](3)
    assert (first.done.result(0), bench.queues) == (3, {"q": QUEUE})
    bench.begun[1][1](0)
    assert (second.done.result(0), bench.chores.idle, bench.idle_calls) == (0, True, 1)


def test_a_chore_that_a_lost_connection_cut_short_is_begun_again(bench: Bench) -> None:
    bench.chores.attach()
    chore = bench.submit("q", QUEUE)
    bench.chores.detach()
    assert (bench.given_up, chore.done.done()) == (["q"], False)
    bench.chores.attach()
    assert [found for found, _ in bench.begun] == [chore, chore]


def test_a_declaration_that_is_answered_too_late_is_declared_after_a_reconnect_all_the_same(bench: Bench) -> None:
    bench.chores.attach()
    late, other = bench.submit("q", QUEUE, timeout_s=5.0), bench.submit("r")
    bench.pass_time(5.0)
    with pytest.raises(BrokerUnavailable, match="could not declare queue 'q' within 5 s"):
        late.done.result(0)
    bench.begun[0][1](0)
    assert (bench.queues, other.done.done()) == ({"q": QUEUE}, False)


def test_a_queue_that_is_to_be_deleted_is_not_declared_again(bench: Bench) -> None:
    bench.queues["q"] = QUEUE
    bench.submit("q")
    assert bench.queues == {}


def test_chores_that_are_done_at_once_do_not_pile_up(bench: Bench) -> None:
    """A chore must not begin the next one on its own stack."""
    bench.at_once = 0
    chores = [bench.submit(f"q{number}") for number in range(2000)]
    bench.chores.attach()
    assert all(chore.done.result(0) == 0 for chore in chores)


def test_nothing_is_left_when_all_fail(bench: Bench) -> None:
    bench.chores.attach()
    chores = [bench.submit("q"), bench.submit("r")]
    bench.chores.fail_all(TransportClosed("closed"))
    assert [type(chore.done.exception(0)) for chore in chores] == [TransportClosed] * 2
    assert (bench.given_up, bench.timers.next_due_s()) == (["q"], None)


def test_timers_call_back_in_the_order_of_their_times_unless_they_are_removed() -> None:
    now_s, called = 0.0, list[str]()
    timers = ClockTimers(lambda: now_s)
    timers.call_later(2.0, lambda: called.append("second"))
    timers.call_later(1.0, lambda: called.append("first"))
    timers.remove_timeout(timers.call_later(0.5, lambda: called.append("removed")))
    assert timers.next_due_s() == 1.0
    now_s = 2.0
    timers.do_due()
    assert (called, timers.next_due_s()) == (["first", "second"], None)
