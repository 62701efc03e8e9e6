"""Participants with users of their own: nobody can answer for another, whatever its messages claim."""

import threading
from functools import partial

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedTransport
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.schemas.messages import Decline, Hello
from tests.integration.coordinator.federation import DEADLINE_S, RUN_ID, TOPOLOGY, Participant, delta, update_for


class Fleet:
    """Members that a test revokes."""

    def __init__(self, *enrolled):
        self.standings = dict.fromkeys(enrolled, "enrolled")

    def standing(self, participant_id):
        return self.standings.get(participant_id, "unknown")

    def max_examples(self, participant_id):
        return None


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


def buried(federation, on_dead):
    """Return an open transport that hands over every dead letter."""
    undertaker = EmbeddedTransport(federation.broker, "undertaker")
    undertaker.open(TOPOLOGY.exchanges, TOPOLOGY.shared_queues)
    undertaker.consume(TOPOLOGY.dead.name, on_dead, 10)
    return undertaker


@pytest.mark.parametrize("name", LIES)
def test_nobody_can_answer_for_another(federation, name):
    lie, reason, queue = LIES[name]
    dead, arrived = [], threading.Event()

    def on_dead(delivery):
        dead.append(delivery)
        arrived.set()

    undertaker = buried(federation, on_dead)

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


class Liar(Participant):
    """A user that says no hello of its own."""

    def __init__(self, broker, user):
        self.transport = EmbeddedTransport(broker, f"liar-{user}", user)
        self.transport.open(TOPOLOGY.exchanges, TOPOLOGY.shared_queues)


def by_user(federation, **changed):
    """Return the settings of a coordinator that believes a participant's own user alone."""
    connect = partial(EmbeddedTransport, federation.broker, "coordinator", "coordinator")
    return {"identity": "user", "connect": connect} | changed


@pytest.mark.parametrize("user", ["mallory", None])
@pytest.mark.parametrize("lie", [noise, update, decline, hello], ids=lambda lie: lie.__name__)
def test_with_identity_by_user_each_lie_is_counted_and_changes_nothing(federation, lie, user):
    reason = "unknown_sender" if user is None else "malformed" if lie is noise else "wrong_sender"
    dead, arrived = [], threading.Event()

    def on_dead(delivery):
        dead.append(delivery)
        arrived.set()

    def honest(p, task):
        arrived.clear()
        lie(liar, task)
        assert arrived.wait(DEADLINE_S)
        p.train(task)

    undertaker = buried(federation, on_dead)
    liar = Liar(federation.broker, user)
    p0 = federation.join("p0", honest, user="p0")
    run = RunSettings(run_id=RUN_ID, concurrency=1, stop=StopSettings(max_updates=2))
    summary = federation.run(**by_user(federation, run=run))
    undertaker.close()
    liar.transport.close()
    assert (summary.accepted, summary.discarded) == (2, {reason: 2})
    assert len(p0.tasks) == 2, "its task was neither repeated nor closed"
    assert [(d.headers["reason"], d.user_id) for d in dead] == [(reason, "coordinator")] * 2
    p0.wait_until(lambda: len(p0.receipts) == 2)
    assert [receipt.verdict for receipt in p0.receipts] == ["accepted", "accepted"]


def test_who_is_not_enrolled_is_not_heard(federation):
    federation.join("p1", user="p1")
    p0 = federation.join("p0", user="p0")
    run = RunSettings(run_id=RUN_ID, concurrency=2, stop=StopSettings(max_updates=3))
    summary = federation.run(**by_user(federation, run=run, members=Fleet("p0")))
    assert (summary.accepted, summary.discarded) == (3, {"not_enrolled": 1})
    assert len(p0.tasks) == 3
    with federation.ledger() as ledger:
        assert [row.record.participant_id for row in ledger.participants()] == ["p0"]


def test_a_participant_that_is_revoked_in_training_loses_its_task_and_its_update_is_counted_as_revoked(federation):
    fleet, tasks, holds = Fleet("p0", "p1"), [], threading.Event()

    def slow(p, task):
        tasks.append(task)
        holds.set()

    def honest(p, task):
        assert holds.wait(DEADLINE_S)
        if len(p.tasks) == 1:
            fleet.standings["p1"] = "revoked"
            p1.wait_until(lambda: any(news.event == "task_withdrawn" for news in p1.notices))
            p1.hello()
            Participant.train(p1, tasks[0]).result(DEADLINE_S)
        p.train(task)

    p1 = federation.join("p1", slow, user="p1")
    p0 = federation.join("p0", honest, user="p0")
    run = RunSettings(run_id=RUN_ID, concurrency=2, min_participants=2, stop=StopSettings(max_updates=4))
    summary = federation.run(**by_user(federation, run=run, members=fleet))
    assert (summary.accepted, summary.discarded) == (4, {"revoked": 2})
    assert (len(p0.tasks), len(p1.tasks)) == (4, 1)
    with federation.ledger() as ledger:
        assert ledger.accepted_by_participant() == {"p0": 4}
        assert ledger.closed_task(tasks[0].task_id).state == "withdrawn"


def test_a_participant_that_was_revoked_before_the_start_gets_its_task_withdrawn_at_the_start(federation):
    fleet, taken = Fleet("p0", "p1"), threading.Event()
    p1 = federation.join("p1", lambda p, task: taken.set(), user="p1")
    run = RunSettings(run_id=RUN_ID, concurrency=1, stop=StopSettings(max_updates=2), participant_timeout_s=1000)
    service = federation.service(**by_user(federation, run=run, members=fleet))
    running = federation.start(service)
    assert taken.wait(DEADLINE_S)
    service.stop()
    running.result(DEADLINE_S)
    fleet.standings["p1"] = "revoked"
    p0 = federation.join("p0", user="p0")
    summary = federation.run(**by_user(federation, run=run, members=fleet))
    assert summary.accepted == 2
    assert (len(p0.tasks), len(p1.tasks)) == (2, 1)
    p1.wait_until(lambda: [news.event for news in p1.notices].count("task_withdrawn") == 1)
