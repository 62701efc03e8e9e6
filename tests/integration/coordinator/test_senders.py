"""Participants with users of their own: nobody can answer for another, whatever its messages claim."""

import threading

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedTransport
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.schemas.messages import Decline, Hello
from tests.integration.coordinator.federation import DEADLINE_S, RUN_ID, TOPOLOGY, delta, update_for


def noise(p, task):
    p.send(b"noise", task.task_id)


def update(p, task):
    p.send_update(update_for(task, base_version=99), delta(task.task_id))


def decline(p, task):
    p.send_control(Decline(task_id=task.task_id, run_id=RUN_ID, participant_id=task.participant_id, reason="busy"))


def hello(p, task):
    """The hello is of a new session without the task, which would be repeated, or lapse."""
    p.send_control(Hello(participant_id=task.participant_id, session_id="mine", num_examples=1))


LIES = {
    "noise": (noise, "malformed", TOPOLOGY.updates),
    "update": (update, "unknown_participant", TOPOLOGY.updates),
    "decline": (decline, "unknown_participant", TOPOLOGY.control),
    "hello": (hello, "unknown_participant", TOPOLOGY.control),
}


@pytest.mark.parametrize("name", LIES)
def test_nobody_can_answer_for_another(federation, name):
    lie, reason, queue = LIES[name]
    dead, arrived = [], threading.Event()

    def on_dead(delivery):
        dead.append(delivery)
        arrived.set()

    undertaker = EmbeddedTransport(federation.broker, "undertaker")
    undertaker.open(TOPOLOGY.exchanges, TOPOLOGY.shared_queues)
    undertaker.consume(TOPOLOGY.dead.name, on_dead, 10)

    def honest(p, task):
        lie(mallory, task)
        assert arrived.wait(DEADLINE_S)
        p.train(task)

    mallory = federation.join("p1", lambda p, task: None, user="p1")
    p0 = federation.join("p0", honest, user="p0")
    run = RunSettings(run_id=RUN_ID, concurrency=2, min_participants=2, stop=StopSettings(max_updates=1))
    summary = federation.run(run=run)
    undertaker.close()
    assert summary.accepted == 1
    assert len(p0.tasks) == 1
    assert [(d.headers["reason"], d.headers["from_queue"], d.user_id) for d in dead] == [(reason, queue.name, "guest")]
    assert summary.discarded == ({reason: 1} if queue == TOPOLOGY.updates else {})
    p0.wait_until(lambda: bool(p0.receipts))
    assert [receipt.verdict for receipt in p0.receipts] == ["accepted"]
    with federation.ledger() as ledger:
        assert ledger.accepted_by_participant() == {"p0": 1}
