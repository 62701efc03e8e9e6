"""Training that takes longer than every timeout: the heartbeat, the consumer timeout, its lease."""

import contextlib

import pika
import pytest
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker

from tests.chaos.gate import Gate
from tests.support.full import FULL

pytestmark = pytest.mark.broker
HEARTBEAT_S = 2
PATIENCE_S = 60 if FULL else 2


@pytest.fixture
def impatient_node(rabbitmq_node):
    """A node that ends consumers without an ack for PATIENCE_S. By default RabbitMQ checks only once a minute."""
    before = rabbitmq_node.ctl("eval", "element(2, application:get_env(rabbit, consumer_timeout)).").strip()

    def set_to(consumer_timeout_ms, tick_ms):
        rabbitmq_node.ctl(
            "eval",
            f"application:set_env(rabbit, consumer_timeout, {consumer_timeout_ms}), "
            f"application:set_env(rabbit, channel_tick_interval, {tick_ms}).",
        )

    set_to(PATIENCE_S * 1000, 500)
    yield rabbitmq_node
    set_to(before, 60_000)


def await_the_end_of_a_silent_connection(url, proxy):
    connection = pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat={HEARTBEAT_S}"))
    assert proxy.blackhole("up") == 1
    with contextlib.suppress(AMQPConnectionError):
        while True:  # only the broker ends it
            connection.process_data_events(1)


def await_the_end_of_a_consumer_that_does_not_ack(url):
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_publish("", queue, b"held")
        channel.basic_consume(queue, lambda *_: None)
        with pytest.raises(ChannelClosedByBroker, match="timed out"):
            channel.start_consuming()


@pytest.mark.timeout(300)
def test_training_for_longer_than_heartbeat_and_consumer_timeout_costs_no_connection(
    impatient_node, federation, proxies
):
    gate = Gate(federation, "p0")
    coordinator, participant = federation.coordinator(), federation.participant("p0")
    gate.reached()
    silent, through_it = proxies()
    await_the_end_of_a_silent_connection(through_it["FEDMQ_BROKER_URL"], silent)
    await_the_end_of_a_consumer_that_does_not_ack(impatient_node.url)
    gate.open()
    assert (coordinator.ended(), participant.ended()) == (0, 0)
    federation.check()
    assert set(federation.trainings("p0").values()) == {1}
    for text in (coordinator.text, participant.text):
        assert "disconnected" not in text
        assert "consumer_lost" not in text


@pytest.mark.parametrize("welcome", [True, False] if FULL else [True])
def test_a_training_that_outlives_its_lease_loses_its_slot_and_counts_once_if_its_staleness_allows(federation, welcome):
    run = {"FEDMQ_RUN__LEASE_S": "2", "FEDMQ_RUN__CONCURRENCY": "1"}
    if not welcome:
        run["FEDMQ_RUN__MAX_STALENESS"] = "1"
    late = Gate(federation, "p0")
    coordinator, slow = federation.coordinator(**run), federation.participant("p0")
    late.reached()
    fast = federation.participant("p1")
    coordinator.wait_for("event=version_made version=2 ")
    other = Gate(federation, "p1").reached()
    late.open()
    if welcome:
        coordinator.wait_for("event=update_accepted participant=p0")
    else:
        slow.wait_for("event=task_withdrawn")
    other.open()
    assert [one.ended() for one in (coordinator, slow, fast)] == [0, 0, 0]
    rows = federation.check()
    with federation.ledger() as ledger:
        tasks = {task.task_id: task for task in ledger.accepted_tasks()}
        first = min(tasks.values(), key=lambda task: task.issued_s)
        ((slow_one,),) = ledger._rows("SELECT task_id FROM tasks WHERE seq = 1")
        closed = None if welcome else ledger.closed_task(slow_one)
    if closed is not None:
        assert closed.state == "withdrawn"
        assert first.participant_id == "p1"
        return
    assert (first.seq, first.participant_id) == (1, "p0")
    (row,) = [row for row in rows if row.task_id == first.task_id]
    assert row.staleness >= 2
    between = [task for task in tasks.values() if first.lease_until_s <= task.issued_s < row.run_s]
    assert len(between) >= 6, "the one slot was issued again, and both versions were made in it"
    assert set(federation.trainings("p0").values()) == {1}
