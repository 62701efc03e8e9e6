"""The token, its renewal, and the steps that follow if it does not come."""

from concurrent.futures import Future

import pytest

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.service.leading.leadership import ANSWER_S, ASK_AGAIN_S, BACK_S, RENEW_S, SOON, Leadership
from fedmq.schemas.errors import PublishTimeout

QUEUE = Topology().leader


def token(queue=QUEUE.name):
    return Delivery(queue, b"", "token", None, None, {}, False, 0, object())


class Broker:
    """A stand-in for the broker: it takes and confirms each token, and hands out none by itself."""

    def __init__(self):
        self.now = 100.0
        self.prefetch = None
        self.asked = 0
        self.given_back = []
        self.connected = True
        self.confirms = True

    def consume(self, queue, on_delivery, prefetch):
        assert queue == QUEUE.name
        self.prefetch = prefetch

    def publish(self, message, timeout_s):
        assert (message.exchange, message.routing_key) == (QUEUE.exchange, QUEUE.routing_key)
        self.asked += 1
        future = Future()
        if self.confirms:
            future.set_result(None)
        return future

    def nack(self, delivery):
        self.given_back.append(delivery)
        return self.connected


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def leadership(broker):
    one = Leadership(broker, QUEUE, lambda _: None, lambda: broker.now)
    one.begin()
    return one


def after(broker, leadership, seconds):
    assert leadership.wait_s() == seconds
    broker.now += seconds / 2
    asked = broker.asked, len(broker.given_back)
    leadership.pass_time()  # too early
    assert (broker.asked, len(broker.given_back)) == asked
    broker.now += seconds / 2
    leadership.pass_time()


def test_it_asks_at_once_and_is_active_with_the_token(broker, leadership):
    assert (broker.prefetch, broker.asked, leadership.active) == (1, 1, False)
    assert leadership.owns(token())
    assert not leadership.owns(token("fedmq.updates"))
    leadership.on_token(token())
    assert (leadership.active, leadership.in_vain) == (True, 0)


def test_the_token_is_given_back_long_before_the_consumer_timeout_and_comes_again(broker, leadership):
    for number in range(1, 4):
        leadership.on_token(token())
        after(broker, leadership, RENEW_S)
        assert (leadership.active, len(broker.given_back)) == (True, number)
    assert RENEW_S + BACK_S <= 30
    assert broker.asked == 1


def test_a_token_that_does_not_come_back_leaves_it_open_who_is_active(broker, leadership):
    leadership.on_token(token())
    after(broker, leadership, RENEW_S)
    after(broker, leadership, BACK_S)
    assert (leadership.active, leadership.in_vain, broker.asked) == (False, 0, 2)
    leadership.on_token(token())
    assert leadership.active


def test_a_lost_connection_leaves_it_open_and_the_token_of_it_is_not_held_any_more(broker, leadership):
    leadership.on_token(token())
    leadership.doubt()
    assert not leadership.active
    after(broker, leadership, ANSWER_S)
    assert (broker.asked, broker.given_back) == (2, [])


def test_a_lost_consumer_is_noticed_by_the_token_that_cannot_be_given_back(broker, leadership):
    leadership.on_token(token())
    leadership.renew()  # some other consumer was lost
    assert leadership.active
    leadership.on_token(token())
    broker.connected = False
    leadership.renew()
    assert not leadership.active


def test_tokens_that_the_broker_took_and_did_not_give_us_are_counted_and_asked_for_less_often(broker, leadership):
    for number in range(1, SOON + 1):
        after(broker, leadership, ANSWER_S)
        assert (leadership.in_vain, broker.asked) == (number, number + 1)
    after(broker, leadership, ASK_AGAIN_S)
    leadership.on_token(token())
    assert leadership.in_vain == 0


def test_what_the_broker_did_not_take_says_nothing(broker, leadership):
    broker.confirms = False
    after(broker, leadership, ANSWER_S)
    after(broker, leadership, ANSWER_S)
    assert leadership.in_vain == 1  # the first one was confirmed
    leadership._asked.set_exception(PublishTimeout("x"))
    after(broker, leadership, ANSWER_S)
    assert leadership.in_vain == 1
