"""Every kind of bad update, sent over RabbitMQ to a coordinator in a process of its own."""

import json
import signal
import threading
from collections import Counter

import numpy as np
import pytest

from fedmq.broker_config.amqp.transport import AmqpTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.messages import Hello, Receipt, Task, Update, update_id
from fedmq.schemas.parameters import Parameters
from tests.integration.front.test_commands import APP, CONFIG

WAIT_S = 60.0
ONES = np.ones(1000, np.float32)
FEDERATION = """
[run]
run_id = "r1"
concurrency = 2
max_staleness = 2
decline_backoff_s = 0
[run.stop]
max_versions = 100000
[strategy]
name = "fedasync"
[broker]
max_message_bytes = 65536
"""


class Intruder:
    """A participant by hand. It says hello, keeps its tasks and receipts, and sends the bodies that the test makes."""

    def __init__(self, url, prefix):
        self._topology = Topology(prefix)
        self._changed = threading.Condition()
        self._dead = []
        self.tasks, self.receipts = [], []
        own = self._topology.participant("intruder")
        self._transport = AmqpTransport(url, name="intruder")
        queues = (*self._topology.shared_queues, own)
        self._transport.open(self._topology.exchanges, queues, timeout_s=WAIT_S)
        self._transport.consume(own.name, self._on_delivery, 8)
        hello = Hello(participant_id="intruder", session_id="s1", num_examples=10)
        self._publish(self._topology.control, encode(hello))

    def send(self, body, task=None):
        self._publish(self._topology.updates, body, None if task is None else task.task_id)

    def task(self, number):
        """Return the `number`-th task, counted from 1, once it is there."""
        self._wait_for(lambda: len(self.tasks) >= number)
        return self.tasks[number - 1]

    def receipt(self, task):
        """Return (verdict, reason) of the task's own update, once its receipt is there."""
        own = update_id(task.run_id, task.task_id, task.participant_id)
        self._wait_for(lambda: any(r.update_id == own for r in self.receipts))
        found = next(r for r in self.receipts if r.update_id == own)
        return found.verdict, found.reason

    def dead(self, count):
        """Return how often each reason is on the dead-letter queue, once it holds `count` messages."""
        self._transport.consume(self._topology.dead.name, self._on_dead, 100)
        self._wait_for(lambda: len(self._dead) >= count)
        return Counter(self._dead)

    def close(self):
        self._transport.close()

    def _publish(self, queue, body, task_id=None):
        message = Message(queue.exchange, queue.routing_key, body, message_id="m", correlation_id=task_id)
        self._transport.publish(message).result(WAIT_S)

    def _on_delivery(self, delivery):
        message = decode(delivery.body).message
        self._transport.ack(delivery)
        with self._changed:
            if isinstance(message, Task):
                self.tasks.append(message)
            elif isinstance(message, Receipt):
                self.receipts.append(message)
            self._changed.notify_all()

    def _on_dead(self, delivery):
        with self._changed:
            self._dead.append(delivery.headers["reason"])
            self._changed.notify_all()

    def _wait_for(self, condition):
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), f"{self.tasks} {self.receipts} {self._dead}"


@pytest.fixture
def intruder(amqp_url, prefix):
    one = Intruder(amqp_url, prefix)
    yield one
    one.close()


def update(task, values=ONES, **changed):
    fields = {
        "task_id": task.task_id, "run_id": task.run_id, "participant_id": task.participant_id,
        "base_version": task.base_version, "payload": task.reply, "num_examples": 10, "num_steps": 1, "train_s": 0.1,
    } | changed  # fmt: skip
    own = update_id(fields["run_id"], fields["task_id"], fields["participant_id"])
    return encode(Update(**({"update_id": own} | fields)), Parameters({"w": values}))


@pytest.mark.broker
def test_whatever_is_sent_is_counted_by_reason_and_the_run_goes_on(terminal, tmp_path, amqp_url, prefix, intruder):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "federation.toml").write_text(FEDERATION)
    url = {"FEDMQ_BROKER_URL": amqp_url, "FEDMQ_BROKER__PREFIX": prefix}
    coordinator = terminal("coordinator", *CONFIG, **url)
    coordinator.wait_for("event=run_created")
    first = intruder.task(1)
    intruder.send(b"noise")
    intruder.send(bytes(65537))
    intruder.send(update(first, task_id="00000000-1"))
    intruder.send(update(first, participant_id="nobody"))
    intruder.send(update(first, run_id="r2"))
    intruder.send(update(first), first)
    intruder.send(update(first), first)
    assert intruder.receipt(first) == ("accepted", "")
    second = intruder.task(2)
    intruder.send(update(second, np.full(1000, np.nan, np.float32)), second)
    assert intruder.receipt(second) == ("discarded", "not_finite")
    third = intruder.task(3)
    intruder.send(update(third, np.ones(999, np.float32)), third)
    assert intruder.receipt(third) == ("discarded", "wrong_shape")
    stale = intruder.task(4)
    participant = terminal("participant", *CONFIG, "--id", "sensor-1", **url)
    coordinator.wait_for(f"event=version_made version={stale.base_version + 3} ")
    intruder.send(update(stale), stale)
    assert intruder.receipt(stale) == ("discarded", "too_stale")
    coordinator.wait_for(f"event=version_made version={stale.base_version + 10} ")
    for one in (participant, coordinator):
        one.send(signal.SIGTERM)
        assert one.ended() == 0, one.text
    status = terminal("status", *CONFIG, "--json")
    assert status.ended() == 0
    poison = ("malformed", "oversized", "unknown_task", "unknown_participant", "wrong_run", "not_finite", "wrong_shape")
    counted = json.loads(status.text)["discarded"]
    assert counted == dict.fromkeys((*poison, "duplicate", "too_stale"), 1)
    assert intruder.dead(len(poison)) == Counter(poison)
