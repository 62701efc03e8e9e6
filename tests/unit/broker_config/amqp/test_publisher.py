"""The publisher against a channel that only records its calls."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import pika
import pytest

from fedmq.broker_config.amqp.address import Addresses
from fedmq.broker_config.amqp.driver import PikaDriver
from fedmq.broker_config.amqp.publisher import NEW_CHANNEL_S, SLOWEST_LINK_BYTES_PER_S, AmqpPublisher, Outgoing, Window
from fedmq.broker_config.transport import Message
from fedmq.schemas.errors import (
    BrokerRefused,
    PublishError,
    PublishRejected,
    PublishTimeout,
    TransportClosed,
    Unroutable,
)


class Channel:
    """A channel that is open until it is closed. `sent` has the message ids in order."""

    def __init__(self) -> None:
        self.is_open = True
        self.sent: list[str] = []

    def basic_publish(self, *, properties: str, mandatory: bool, **_: Any) -> None:
        assert mandatory
        if properties == "unwritable":
            raise TypeError("no such field type")
        self.sent.append(properties)


class Timers:
    """Timers of a test. `fire` calls back every timer that is still set with this delay."""

    def __init__(self) -> None:
        self.due: dict[object, tuple[float, Callable[[], None]]] = {}

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        handle = object()
        self.due[handle] = (delay, callback)
        return handle

    def remove_timeout(self, timeout_handle: object) -> None:
        self.due.pop(timeout_handle, None)

    def fire(self, delay: float) -> None:
        for handle, (found, callback) in list(self.due.items()):
            if found == delay and self.due.pop(handle, None):
                callback()


class ConfirmingChannel(Channel):
    """A channel that keeps the callbacks that the driver registers."""

    on_return: Callable[..., None]
    on_confirm: Callable[..., None]

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self.on_return = callback

    def confirm_delivery(self, on_confirm: Callable[..., None], callback: Callable[..., None]) -> None:
        self.on_confirm = on_confirm


class Frame(NamedTuple):
    method: Any


DEADLINE_S = 60.0
SILENCE_S = 5.0


class Bench:
    def __init__(self, messages: int = 3, size_bytes: int = 1000) -> None:
        self.timers = Timers()
        self.idle = 0
        self.publisher = AmqpPublisher(
            self.timers, lambda m: m.message_id, Window(messages, size_bytes, SILENCE_S), self._idle
        )
        self.unwritten = 0
        self.silences = 0
        self.publisher.on_silence = self._silence
        self.channel = Channel()
        self.futures: dict[str, Future[None]] = {}

    def _silence(self) -> None:
        self.silences += 1
        self.attach()

    def _idle(self) -> None:
        self.idle += 1

    def submit(self, *ids: str, body: bytes = b"x", exchange: str = "e") -> None:
        for message_id in ids:
            self.futures[message_id] = Future()
            message = Message(exchange, "k", body, message_id)
            self.publisher.submit(Outgoing(message, self.futures[message_id], DEADLINE_S))

    def attach(self) -> None:
        self.channel = Channel()
        self.publisher.attach(self.channel, lambda: self.unwritten)

    def closed_by_broker(self, code: int = 404) -> None:
        self.channel.is_open = False
        self.publisher.channel_closed(code, "words")

    def error(self, message_id: str) -> BaseException | None:
        return self.futures[message_id].exception(0)


def test_no_more_than_the_window_is_out_and_a_confirm_sends_the_next() -> None:
    bench = Bench(messages=2)
    bench.attach()
    bench.submit("1", "2", "3")
    assert bench.channel.sent == ["1", "2"]
    bench.publisher.confirmed(1, False, True)
    assert bench.channel.sent == ["1", "2", "3"]
    assert bench.futures["1"].done()
    assert not bench.futures["2"].done()


def test_the_window_is_also_one_of_bytes_and_one_message_always_fits() -> None:
    bench = Bench(messages=9, size_bytes=10)
    bench.attach()
    bench.submit("huge", body=b"x" * 50)
    bench.submit("2", "3", body=b"x" * 5)
    assert bench.channel.sent == ["huge"]
    bench.publisher.confirmed(1, False, True)
    assert bench.channel.sent == ["huge", "2", "3"]


def test_one_confirm_may_answer_many() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1", "2", "3")
    bench.publisher.confirmed(2, True, True)
    assert [bench.futures[name].done() for name in "123"] == [True, True, False]


def test_after_a_nack_what_is_out_is_waited_for_and_a_new_channel_taken() -> None:
    """RabbitMQ 3.10 may refuse everything for a queue on a channel that first used it during its leader's election."""
    bench = Bench()
    bench.attach()
    refusing = bench.channel
    bench.submit("1", "2")
    bench.publisher.confirmed(1, False, False)
    bench.submit("3")
    assert (refusing.sent, bench.silences) == (["1", "2"], 0)
    bench.publisher.confirmed(2, False, True)
    assert (refusing.sent, bench.silences) == (["1", "2"], 1)
    assert bench.channel.sent == ["3"]
    assert bench.futures["2"].done()


def test_a_queue_that_refuses_on_a_new_channel_too_costs_no_other_for_a_while() -> None:
    bench = Bench()
    bench.attach()
    for number, message_id in enumerate("123"):
        bench.submit(message_id)
        bench.publisher.confirmed(max(1, number), False, False)
    assert bench.silences == 1
    bench.timers.fire(NEW_CHANNEL_S)
    bench.submit("4")
    bench.publisher.confirmed(3, False, False)
    assert bench.silences == 2
    assert all(isinstance(bench.error(one), PublishRejected) for one in "1234")


def test_a_nack_fails_its_message_alone() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1", "2")
    bench.publisher.confirmed(1, False, False)
    bench.publisher.confirmed(2, False, True)
    assert isinstance(bench.error("1"), PublishRejected)
    assert bench.error("2") is None


def test_a_returned_message_is_unroutable_once_its_confirm_comes() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1", "2")
    bench.publisher.returned(312, "NO_ROUTE", "e", "k", "2")
    bench.publisher.confirmed(2, True, True)
    assert bench.error("1") is None
    assert isinstance(bench.error("2"), Unroutable)


def test_after_a_lost_connection_the_unconfirmed_go_first_in_their_order() -> None:
    bench = Bench(messages=2)
    bench.attach()
    bench.submit("1", "2", "3", "4")
    bench.publisher.confirmed(1, False, True)
    bench.publisher.detach()
    bench.attach()
    assert bench.channel.sent == ["2", "3"]
    bench.publisher.confirmed(2, True, True)
    assert bench.channel.sent == ["2", "3", "4"]


def test_a_message_alone_on_a_closed_channel_is_guilty() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1")
    bench.closed_by_broker(403)
    assert isinstance(bench.error("1"), BrokerRefused)
    bench.attach()
    assert bench.channel.sent == []


def test_of_several_suspects_each_goes_out_alone_until_the_guilty_one_is_found() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1", "bad", "3", "4")
    bench.closed_by_broker()
    bench.attach()
    assert bench.channel.sent == ["1"]
    bench.publisher.confirmed(1, False, True)
    assert bench.channel.sent == ["1", "bad"]
    bench.closed_by_broker()
    assert isinstance(bench.error("bad"), Unroutable)
    bench.attach()
    assert bench.channel.sent == ["3"]
    bench.publisher.confirmed(1, False, True)
    bench.submit("5", "6", "7")
    assert bench.channel.sent == ["3", "4", "5", "6"], "the window is open again"


def test_a_deadline_ends_waiting_without_a_connection() -> None:
    bench = Bench()
    bench.submit("1")
    bench.timers.fire(DEADLINE_S)
    assert isinstance(bench.error("1"), PublishTimeout)
    assert "no connection" in str(bench.error("1"))
    bench.attach()
    assert bench.channel.sent == []


def test_while_the_broker_is_blocked_nothing_is_sent_and_deadlines_hold() -> None:
    bench = Bench()
    bench.attach()
    bench.publisher.block()
    bench.submit("1")
    bench.timers.fire(DEADLINE_S)
    assert "holds publishers back" in str(bench.error("1"))
    bench.submit("2")
    assert bench.channel.sent == []
    bench.publisher.unblock()
    assert bench.channel.sent == ["2"]


def test_messages_that_timed_out_unconfirmed_keep_their_place_in_the_window() -> None:
    bench = Bench(messages=2)
    bench.attach()
    bench.submit("1", "2", "3")
    bench.timers.fire(DEADLINE_S)
    bench.submit("4")
    assert bench.channel.sent == ["1", "2"], "a silent broker must not make us buffer more than a window"
    bench.publisher.confirmed(1, False, True)
    assert bench.channel.sent == ["1", "2", "4"]


def test_what_timed_out_is_not_sent_again() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1")
    bench.timers.fire(DEADLINE_S)
    bench.publisher.detach()
    bench.attach()
    assert bench.channel.sent == []
    assert bench.publisher.idle


def test_a_silent_broker_gets_everything_again_on_a_new_channel_then_after_twice_as_long() -> None:
    bench = Bench(messages=2)
    bench.attach()
    bench.submit("1", "2", "3")
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 1
    assert bench.channel.sent == ["1", "2"]
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 1
    bench.timers.fire(2 * SILENCE_S)
    assert bench.silences == 2
    bench.publisher.confirmed(2, True, True)
    assert bench.channel.sent == ["1", "2", "3"]
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 3, "a confirm made it patient for the first time only again"


def test_a_large_message_is_given_the_time_that_a_slow_link_behind_a_proxy_takes() -> None:
    bench = Bench(size_bytes=2**20)
    bench.attach()
    bench.submit("1", body=bytes(3 * SLOWEST_LINK_BYTES_PER_S))
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 0
    bench.timers.fire(SILENCE_S + 3)
    assert bench.silences == 1


def test_messages_that_timed_out_give_their_place_back_when_the_broker_is_silent() -> None:
    bench = Bench(messages=1)
    bench.attach()
    bench.submit("1")
    bench.timers.fire(DEADLINE_S)
    bench.submit("2")
    assert bench.channel.sent == ["1"]
    bench.timers.fire(SILENCE_S)
    assert bench.channel.sent == ["2"]


def test_confirms_of_later_messages_do_not_hide_that_the_oldest_has_none():
    """One queue has no leader; others confirm."""
    bench = Bench()
    bench.attach()
    bench.submit("lost", "a")
    bench.publisher.confirmed(2, False, True)
    bench.submit("b")
    bench.publisher.confirmed(3, False, True)
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 1
    assert bench.channel.sent == ["lost"]
    bench.submit("c")
    bench.publisher.confirmed(2, False, True)
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 1, "patience has doubled, whatever other queues confirm"
    bench.publisher.confirmed(1, False, True)
    assert [bench.futures[name].result(0) for name in ("lost", "a", "b", "c")] == [None] * 4


@pytest.mark.parametrize("cause", ["network", "alarm"])
def test_a_slow_network_or_an_alarm_is_not_silence(cause: str) -> None:
    bench = Bench()
    bench.unwritten = 1 if cause == "network" else 0
    bench.attach()
    bench.submit("1")
    if cause == "alarm":
        bench.publisher.block()
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 0
    bench.unwritten = 0
    bench.publisher.unblock()
    bench.timers.fire(SILENCE_S)  # it began when bytes were left to write
    bench.timers.fire(SILENCE_S)
    assert bench.silences == 1


def test_without_anything_out_nothing_is_watched() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1")
    bench.publisher.confirmed(1, False, True)
    assert bench.timers.due == {}


def test_a_message_that_cannot_be_written_fails_and_takes_no_delivery_tag() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("unwritable", "2")
    assert isinstance(bench.error("unwritable"), PublishError)
    bench.publisher.confirmed(1, False, True)
    assert bench.error("2") is None


def test_closing_fails_what_has_no_answer_and_says_when_idle() -> None:
    bench = Bench(messages=1)
    bench.attach()
    bench.submit("1", "2")
    bench.publisher.fail_all(TransportClosed("closed"))
    assert isinstance(bench.error("1"), TransportClosed)
    assert isinstance(bench.error("2"), TransportClosed)
    assert bench.idle == 1
    assert bench.timers.due == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cancelled_future_is_not_sent_once_handed_over(when: str) -> None:
    bench = Bench()
    future: Future[None] = Future()
    if when == "before":
        future.cancel()
    bench.publisher.submit(Outgoing(Message("e", "k", b"", "1"), future, 5.0))
    assert future.cancel() is (when == "before")
    bench.attach()
    assert bench.channel.sent == ([] if when == "before" else ["1"])


def test_a_late_confirm_of_a_channel_that_was_given_up_confirms_nothing_on_the_next_one():
    """A slow broker answers on the old channel when the same messages are out again under the same tags."""
    driver = PikaDriver(Addresses("amqp://fedmq:x@127.0.0.1:1/"), "t", 30)
    bench = Bench()
    old, new = ConfirmingChannel(), ConfirmingChannel()
    for channel in (old, new):
        driver.confirm(channel, bench.publisher, lambda: None)
    bench.publisher.attach(old, lambda: 0)
    bench.submit("a", "b")
    bench.publisher.on_silence = lambda: bench.publisher.attach(new, lambda: 0)
    bench.timers.fire(SILENCE_S)
    assert (old.sent, new.sent) == (["a", "b"], ["a", "b"])
    old.on_confirm(Frame(pika.spec.Basic.Ack(delivery_tag=7, multiple=True)))
    old.on_return(old, pika.spec.Basic.Return(312, "NO_ROUTE", "e", "k"), pika.BasicProperties(message_id="b"), b"")
    assert not bench.futures["a"].done()
    new.on_confirm(Frame(pika.spec.Basic.Ack(delivery_tag=2, multiple=True)))
    assert [bench.futures[name].result(0) for name in ("a", "b")] == [None, None]
    driver.loop.close()


def test_a_message_whose_bytes_keep_going_out_has_its_time_again_and_times_out_when_they_stand_still() -> None:
    bench = Bench()
    bench.attach()
    bench.unwritten = 900
    bench.submit("1", body=b"x" * 1000)
    for left in (600, 1):
        bench.unwritten = left
        bench.timers.fire(DEADLINE_S)
        assert not bench.futures["1"].done()
    bench.timers.fire(DEADLINE_S)
    assert isinstance(bench.error("1"), PublishTimeout)


def test_what_was_sent_behind_a_message_is_not_left_of_it() -> None:
    bench = Bench(size_bytes=5000)
    bench.attach()
    bench.submit("1", body=b"x" * 1000)
    bench.submit("2", body=b"y" * 3000)
    bench.unwritten = 2000
    bench.timers.fire(DEADLINE_S)  # the first message was written when its time began
    assert isinstance(bench.error("1"), PublishTimeout)
    bench.unwritten = 3500
    bench.submit("3", body=b"z" * 500)
    bench.unwritten = 3400
    bench.timers.fire(DEADLINE_S)
    assert not bench.futures["3"].done()


def test_a_message_that_waits_behind_an_upload_has_its_time_again_while_that_goes_on() -> None:
    bench = Bench(messages=1)
    bench.attach()
    bench.unwritten = 800
    bench.submit("1", "2", body=b"x" * 800)
    bench.unwritten = 400
    bench.timers.fire(DEADLINE_S)
    assert not bench.futures["2"].done()
    bench.timers.fire(DEADLINE_S)
    assert "(still waiting)" in str(bench.error("2"))


def test_a_message_that_timed_out_and_comes_again_is_not_sent_again_while_its_first_copy_is_out() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1")
    first = bench.futures["1"]
    bench.timers.fire(DEADLINE_S)
    assert isinstance(first.exception(0), PublishTimeout)
    bench.submit("1")
    assert bench.channel.sent == ["1"]
    bench.publisher.confirmed(1, False, True)
    assert bench.error("1") is None
    assert bench.timers.due == {}


def test_another_body_with_the_same_id_is_another_message() -> None:
    bench = Bench()
    bench.attach()
    bench.submit("1", body=b"a")
    bench.timers.fire(DEADLINE_S)
    bench.submit("1", body=b"b")
    assert bench.channel.sent == ["1", "1"]
