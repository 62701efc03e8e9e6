"""A broker that does not answer, although its connection lives."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedmq.broker_config.amqp.answers import ANSWER_S, MOST_ANSWER_S, MOVING_BYTES, Answer
from fedmq.broker_config.amqp.consumer import Consumer
from fedmq.broker_config.amqp.consumers import Consumers
from fedmq.broker_config.amqp.publisher import AmqpPublisher
from fedmq.broker_config.amqp.session import Driver, Refused, Session
from fedmq.broker_config.chores import Chore, Chores, Finish
from fedmq.broker_config.topology import Exchange, Queue
from fedmq.broker_config.transport import TransportState
from fedmq.schemas.errors import BrokerUnavailable
from fedmq.schemas.local.backoff import Backoff

ANSWERED = SimpleNamespace(method=SimpleNamespace(message_count=0))
QUEUE = Queue("q", "classic", "x", "q")
EXCHANGE = Exchange("x")


class Clock:
    """Timers whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self._count += 1
        handle = (self.now_s + delay, self._count, callback)
        heapq.heappush(self._due, handle)
        return handle

    def remove_timeout(self, timeout_handle: Any) -> None:
        if timeout_handle in self._due:
            self._due.remove(timeout_handle)
            heapq.heapify(self._due)

    def pass_time(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, callback = heapq.heappop(self._due)
            callback()
        self.now_s = until_s


class Broker:
    """A broker that answers all questions at once except the `mute` ones: (method, queue's name), "channel" or
    "confirm"."""

    def __init__(self) -> None:
        self.loop = Clock()
        self.mute: set[Any] = set()
        self.moved = 0
        self.refused: set[tuple[str, str]] = set()
        """Questions that are refused each time; those of `refusals` only the next time."""
        self.refusals: dict[tuple[str, str], int] = {}
        self.dropped: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.arguments: list[dict[str, Any]] = []
        """The further arguments of each question."""
        self.unanswered: list[Callable[[Any], None]] = []
        """Callbacks of the mute questions, for late answers."""
        self.closers: list[Callable[[int, str], None]] = []
        """Callbacks by which the broker closes each channel."""
        self.on_blocked: Callable[[str | None], None] = lambda _reason: None

    def connect(self, purpose: str, on_open: Any, on_lost: Any, on_blocked: Any) -> Any:
        connection = SimpleNamespace(purpose=purpose, is_closing=False, is_closed=False, close=lambda: None)
        self.on_blocked = on_blocked
        self.loop.call_later(0.0, lambda: on_open(connection))
        return connection

    def channel(self, connection: Any, on_open: Any, on_refused: Any) -> None:
        self.closers.append(on_refused)
        if ("channel", connection.purpose) not in self.mute:
            on_open(Channel(self, on_refused))

    def confirm(self, channel: Any, publisher: Any, on_ready: Any) -> None:
        if "confirm" not in self.mute:
            on_ready()

    def drop(self, connection: Any) -> None:
        self.dropped.append(connection.purpose)

    def unwritten_bytes(self, connection: Any) -> int:
        return 0

    def moved_bytes(self, connection: Any) -> int:
        return self.moved


class Channel:
    is_open = True

    def __init__(self, broker: Broker, on_refused: Any) -> None:
        self._broker = broker
        self._on_refused = on_refused

    def __getattr__(self, method: str) -> Any:
        def ask(name: str = "", *_: Any, callback: Any = None, **more: Any) -> None:
            asked = (method, name or more.get("queue", "") or more.get("exchange", ""))
            self._broker.asked.append(asked)
            self._broker.arguments.append(more)
            if self._broker.refusals.pop(asked, 0) or asked in self._broker.refused:
                self._on_refused(404, "NOT_FOUND - no queue")
            elif asked in self._broker.mute:
                self._broker.unanswered.append(callback)
            elif callback is not None:
                callback(ANSWERED)

        return ask


class Bench:
    """A session with the consumers and chores of a client."""

    def __init__(self, broker: Broker, exchange: Exchange = EXCHANGE, queue: Queue = QUEUE) -> None:
        self.broker = broker
        self.refused: list[str] = []
        self.again: list[Callable[[], None]] = []
        self.lost: list[Exception] = []
        self.states: list[TransportState] = []
        driver = cast(Driver, broker)
        publisher = cast(AmqpPublisher, SimpleNamespace(attach=lambda *_: None, channel_closed=lambda *_: None))
        self.consumers = Consumers(driver, Backoff(0.1, 0.1), random.Random(0), self.states.append)
        self.chores = Chores(broker.loop, {}, self.begin_chore)
        self.ready = False

        def ready(session: Session) -> None:
            self.ready = True
            self.consumers.attach(session)
            self.chores.attach()

        self.session = Session(
            driver, publisher, (exchange,), {"q": queue}, broker="HOST", on_ready=ready,
            on_declaration_refused=lambda _, refused: self.note(refused),
            on_lost=lambda _, error: self.lost.append(error), on_blocked=lambda _: None,
        )  # fmt: skip

    def note(self, refused: Refused) -> None:
        self.refused.append(refused.what)
        self.again.append(refused.again)

    def begin_chore(self, chore: Chore, finish: Finish) -> Callable[[], None]:
        return self.session.begin_chore(chore, finish, lambda _code, _text: None)

    def wait(self, seconds: float = ANSWER_S) -> None:
        self.broker.loop.pass_time(seconds)


@pytest.fixture
def broker() -> Broker:
    return Broker()


def test_an_answer_that_comes_stops_the_wait(broker: Broker) -> None:
    heard: list[str] = []
    answer = Answer(broker.loop, lambda: 0, heard.append)
    answer.wait("the one")
    broker.loop.pass_time(ANSWER_S - 1)
    answer.wait("the other")
    broker.loop.pass_time(ANSWER_S - 1)
    assert heard == []
    broker.loop.pass_time(1)
    assert heard == [f"has not answered the other for {ANSWER_S:g} s"]
    answer.wait("the third")
    answer.stop()
    broker.loop.pass_time(2 * ANSWER_S)
    assert len(heard) == 1


def test_an_answer_may_be_behind_what_a_slow_link_carries_but_not_for_ever(broker: Broker) -> None:
    heard: list[str] = []
    moved = 0

    def moving() -> int:
        nonlocal moved
        moved += MOVING_BYTES
        return moved

    Answer(broker.loop, moving, heard.append).wait("it")
    broker.loop.pass_time(MOST_ANSWER_S - 1)
    assert heard == []
    broker.loop.pass_time(1)
    assert len(heard) == 1


def test_heartbeats_are_no_movement(broker: Broker) -> None:
    heard: list[str] = []
    moved = 0

    def beating() -> int:
        nonlocal moved
        moved += MOVING_BYTES - 1
        return moved

    Answer(broker.loop, beating, heard.append).wait("it")
    broker.loop.pass_time(ANSWER_S)
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("mute", "what"),
    [
        (("channel", "consume"), "the opening of a channel"),
        (("exchange_declare", "x"), "the declaration of exchange 'x'"),
        (("queue_declare", "q"), "the declaration of queue 'q'"),
        (("queue_bind", "q"), "the declaration of the binding of queue 'q' to exchange 'x'"),
        (("channel", "publish"), "the opening of a channel to publish on"),
        ("confirm", "the opening of a channel to publish on"),
    ],
)
def test_a_session_that_is_not_answered_is_given_up(broker: Broker, mute: Any, what: str) -> None:
    broker.mute.add(mute)
    bench = Bench(broker)
    bench.wait(ANSWER_S - 1)
    assert (bench.lost, bench.ready) == ([], False)
    bench.wait(1)
    assert [type(error) for error in bench.lost] == [BrokerUnavailable]
    assert f"RabbitMQ at HOST has not answered {what} for 60 s" in str(bench.lost[0])
    assert "consume" in broker.dropped, "a goodbye would not be answered either"


def test_a_session_that_is_answered_is_left_alone(broker: Broker) -> None:
    bench = Bench(broker)
    bench.wait(10 * MOST_ANSWER_S)
    assert (bench.lost, bench.ready) == ([], True)


def test_a_queue_that_is_deleted_between_its_declaration_and_its_binding_is_declared_again(broker: Broker) -> None:
    broker.refusals[("queue_bind", "q")] = 1
    bench = Bench(broker)
    bench.wait(1)
    assert (bench.refused, bench.ready) == ([], True)
    assert broker.asked.count(("queue_declare", "q")) == 2


@pytest.mark.parametrize(("method", "tries"), [("queue_bind", 3), ("queue_declare", 1)])
def test_a_queue_that_is_not_to_be_had_is_told(broker: Broker, method: str, tries: int) -> None:
    broker.refused.add((method, "q"))
    bench = Bench(broker)
    bench.wait(1)
    assert (len(bench.refused), bench.ready) == (1, False)
    assert broker.asked.count(("queue_declare", "q")) == tries


def test_an_alarm_is_no_silence(broker: Broker) -> None:
    broker.mute.add("confirm")
    bench = Bench(broker)
    bench.wait(1)
    broker.on_blocked("memory")
    bench.wait(10 * ANSWER_S)
    assert bench.lost == []
    broker.on_blocked(None)
    bench.wait(ANSWER_S)
    assert len(bench.lost) == 1


def test_a_queue_that_hangs_costs_what_was_asked_of_it_alone(broker: Broker) -> None:
    bench = Bench(broker)
    broker.mute |= {("queue_delete", "stuck"), ("queue_bind", "half")}
    half = Queue("half", "classic", "x", "half")
    first, second, third = (
        Chore("stuck", None, 3600.0), Chore("half", half, 3600.0), Chore("well", None, 3600.0)
    )  # fmt: skip
    for chore in (first, second, third):
        bench.chores.submit(chore)
    bench.wait(ANSWER_S)
    assert "has not answered the deletion of queue 'stuck'" in str(first.done.exception(0))
    assert isinstance(first.done.exception(0), BrokerUnavailable)
    bench.wait(ANSWER_S)
    assert "has not answered the declaration of queue 'half'" in str(second.done.exception(0))
    assert third.done.result(0) == 0
    assert bench.lost == []
    bench.wait(10 * ANSWER_S)
    assert bench.chores.idle


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_ones(broker: Broker) -> None:
    bench = Bench(broker)
    bench.wait(1)
    broker.mute |= {("queue_delete", "one"), ("queue_delete", "two")}
    one, two = Chore("one", None, 5.0), Chore("two", None, 50.0)
    bench.chores.submit(one)
    bench.chores.submit(two)
    bench.wait(5)
    assert "could not delete queue 'one' within 5 s" in str(one.done.exception(0))
    late, own = broker.unanswered
    late(ANSWERED)
    assert not two.done.done()
    own(ANSWERED)
    assert two.done.result(0) == 0


def test_a_consumer_that_is_not_answered_begins_again(broker: Broker) -> None:
    bench = Bench(broker)
    bench.wait(1)
    broker.mute.add(("basic_consume", "q"))
    consumer = Consumer("q", lambda _: None, 1, on_lost=bench.consumers.lost, on_failed=lambda _: None)
    bench.consumers.add(consumer)
    bench.wait(ANSWER_S)
    assert [state.name for state in bench.states] == ["consumer_lost"]
    assert "has not answered the consumer of queue 'q'" in bench.states[0].detail
    broker.mute.clear()
    bench.wait(1)
    assert broker.asked.count(("basic_consume", "q")) == 2
    bench.wait(10 * MOST_ANSWER_S)
    assert (len(bench.states), bench.lost) == (1, [])


def test_a_channel_that_was_given_up_and_is_closed_late_takes_nothing_from_the_next_one(broker: Broker) -> None:
    """pika reports it for channels that we have closed ourselves too, if the broker's close crosses ours."""
    bench = Bench(broker)
    bench.wait(1)
    broker.mute.add(("basic_consume", "q"))
    consumer = Consumer("q", lambda _: None, 1, on_lost=bench.consumers.lost, on_failed=lambda _: None)
    bench.consumers.add(consumer)
    given_up = broker.closers[-1]
    bench.wait(ANSWER_S)
    given_up(541, "INTERNAL_ERROR")
    broker.mute.clear()
    bench.wait(1)
    assert broker.asked.count(("basic_consume", "q")) == 2
    given_up(541, "INTERNAL_ERROR")
    assert consumer.active
    assert [state.name for state in bench.states] == ["consumer_lost"], "the silence, and nothing else"
    broker.closers[-1](541, "INTERNAL_ERROR")
    assert [state.name for state in bench.states] == ["consumer_lost"] * 2, "the one in use"


def test_nor_does_a_channel_to_publish_on(broker: Broker) -> None:
    bench = Bench(broker)
    bench.wait(1)
    given_up, publisher = broker.closers[-1], bench.session._publisher
    publisher.on_silence()
    closed: list[int] = []
    publisher.channel_closed = lambda code, _text: closed.append(code)  # type: ignore[method-assign]
    opened = len(broker.closers)
    given_up(404, "NOT_FOUND")
    assert (closed, len(broker.closers)) == ([], opened)
    broker.closers[-1](404, "NOT_FOUND")
    assert (closed, len(broker.closers)) == ([404], opened + 1)


def test_a_consumer_that_is_gone_is_not_waited_for(broker: Broker) -> None:
    bench = Bench(broker)
    bench.wait(1)
    broker.mute.add(("basic_consume", "q"))
    consumer = Consumer("q", lambda _: None, 1, on_lost=bench.consumers.lost, on_failed=lambda _: None)
    bench.consumers.add(consumer)
    bench.consumers.remove("q")
    bench.wait(10 * ANSWER_S)
    assert bench.states == []


def test_what_is_passive_is_looked_at_and_never_bound(broker: Broker) -> None:
    bench = Bench(broker, Exchange("x", passive=True), replace(QUEUE, passive=True))
    bench.wait(0.0)
    assert bench.ready
    assert broker.asked == [("exchange_declare", "x"), ("queue_declare", "q"), ("close", "")]
    assert [arguments.get("passive") for arguments in broker.arguments] == [True, True, None]


def test_a_queue_of_the_default_exchange_is_not_bound(broker: Broker) -> None:
    bench = Bench(broker, Exchange("x"), replace(QUEUE, exchange="", routing_key="q"))
    bench.wait(0.0)
    assert bench.ready
    assert ("queue_bind", "q") not in broker.asked


def test_a_binding_to_an_exchange_that_is_gone_and_not_ours_holds_nothing_up(broker: Broker) -> None:
    broker.refused.add(("queue_bind", "q"))
    bench = Bench(broker, Exchange("other"), QUEUE)
    bench.wait(0.0)
    assert (bench.ready, bench.refused) == (True, [])
    assert broker.asked.count(("queue_bind", "q")) == 1


def test_a_refused_declaration_is_tried_again_over_the_same_connection(broker: Broker) -> None:
    broker.refusals[("queue_declare", "q")] = 1
    bench = Bench(broker)
    bench.wait(0.0)
    assert (bench.ready, bench.refused, bench.session.refusals) == (False, ["queue 'q'"], 1)
    bench.again[0]()
    bench.wait(0.0)
    assert (bench.ready, bench.session.refusals) == (True, 0)
    assert (bench.lost, broker.dropped) == ([], [])
