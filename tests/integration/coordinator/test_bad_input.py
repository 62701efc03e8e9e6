"""The loop goes on whatever arrives: bad input is discarded with its reason, counted, and dead-lettered if poison."""

import threading

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedTransport
from fedmq.coordinator.settings import RunSettings, StopSettings
from fedmq.schemas.codec import encode
from fedmq.schemas.messages import Decline, Notice
from fedmq.schemas.parameters import Parameters
from fedmq.views.status import read_status
from tests.integration.coordinator.federation import DEADLINE_S, RUN_ID, TOPOLOGY, delta, same_bits, update_for


def from_the_future(p, task):
    body = encode(update_for(task), delta(task.task_id))
    assert body.count(b"\xa5fedmq\x01") == 1
    p.send(body.replace(b"\xa5fedmq\x01", b"\xa5fedmq\x63"), task.task_id)


def truncated(p, task):
    p.send(encode(update_for(task), delta(task.task_id))[:-1], task.task_id)


def with_payload(payload):
    return lambda p, task: p.send_update(update_for(task), Parameters(payload))


def with_fields(**changed):
    return lambda p, task: p.send_update(update_for(task, **changed), delta(task.task_id))


POISON = {
    "noise": ("malformed", lambda p, task: p.send(b"noise", task.task_id)),
    "nothing": ("malformed", lambda p, task: p.send(b"")),
    "truncated": ("malformed", truncated),
    "another kind": (
        "malformed",
        lambda p, task: p.send(encode(Notice(run_id=RUN_ID, participant_id=p.name, event="say_hello")), task.task_id),
    ),
    "future version": ("unsupported_version", from_the_future),
    "oversized": ("oversized", lambda p, task: p.send(bytes(2**20 + 1), task.task_id)),
    "a header of empty maps": (
        "oversized",
        lambda p, task: p.send(
            b"\x93\x83\xa5fedmq\x01\xa4kind\xa6update\xa4body\x99" + (b"\xdc\x00\x40" + b"\x80" * 64) * 9, task.task_id
        ),
    ),
    "nan": ("not_finite", with_payload({"000/w": np.array([0, 0, np.nan, 0, 0], np.float32)})),
    "wrong shape": ("wrong_shape", with_payload({"000/w": np.zeros(6, np.float32)})),
    "wrong dtype": ("wrong_shape", with_payload({"000/w": np.zeros(5)})),
    "wrong name": ("wrong_shape", with_payload({"000/v": np.zeros(5, np.float32)})),
    "wrong run": ("wrong_run", with_fields(run_id="r2")),
    "unknown task": ("unknown_task", with_fields(task_id="00000000-1")),
    "unknown participant": ("unknown_participant", with_fields(participant_id="nobody")),
    "wrong base version": ("wrong_base_version", with_fields(base_version=99)),
    "wrong payload": ("wrong_payload", with_fields(payload="parameters")),
}


@pytest.fixture
def dead(federation):
    """A list that grows by each message on the dead-letter queue."""
    found, arrived = [], threading.Semaphore(0)

    def on_delivery(delivery):
        found.append(delivery)
        arrived.release()

    transport = EmbeddedTransport(federation.broker, "undertaker")
    transport.open(TOPOLOGY.exchanges, TOPOLOGY.shared_queues)
    transport.consume(TOPOLOGY.dead.name, on_delivery, 100)
    yield found, lambda: arrived.acquire(timeout=DEADLINE_S)
    transport.close()


@pytest.mark.parametrize("name", POISON)
def test_poison_is_discarded_counted_and_dead_lettered_and_the_run_goes_on(federation, dead, name):
    reason, send = POISON[name]
    sent = threading.Event()

    def bad(p, task):
        if not sent.is_set():
            send(p, task)
            sent.set()

    def good(p, task):
        assert sent.wait(DEADLINE_S)
        p.train(task)

    federation.join("p0", bad)
    federation.join("p1", good)
    summary = federation.run()
    assert (summary.finished, summary.version) == ("max_versions", 5)
    assert summary.discarded == read_status(federation.run_dir).discarded == {reason: 1}
    found, arrived = dead
    assert arrived()
    assert [(d.headers["reason"], d.headers["from_queue"]) for d in found] == [(reason, TOPOLOGY.updates.name)]
    assert found[0].headers["detail"]
    assert same_bits(federation.final(), federation.replayed())
    with federation.ledger() as ledger:
        assert set(ledger.accepted_by_participant()) == {"p1"}


def test_the_sender_of_an_update_that_could_not_be_decoded_gets_a_receipt(federation):
    p = federation.join("p0", lambda p, task: p.send(b"noise", task.task_id))
    service = federation.service()
    running = federation.start(service)
    p.wait_until(lambda: len(p.receipts) == 1)
    assert (p.receipts[0].verdict, p.receipts[0].reason) == ("discarded", "malformed")
    assert p.receipts[0].update_id == update_for(p.tasks[0]).update_id
    service.stop()
    running.result(DEADLINE_S)


def test_a_duplicate_is_discarded_with_the_first_ones_receipt_and_no_dead_letter(federation):
    federation.stop = StopSettings(max_updates=6)

    def twice(p, task):
        p.train(task)
        p.train(task)

    p = federation.join("p0", twice)
    summary = federation.run()
    assert summary.accepted == 6
    assert 5 <= summary.discarded["duplicate"] <= 6
    assert set(summary.discarded) <= {"duplicate", "run_finished"}
    p.wait_until(lambda: len(p.receipts) >= 11)
    assert {r.verdict for r in p.receipts} == {"accepted"}
    assert federation.depth(TOPOLOGY.dead) == 0
    assert same_bits(federation.final(), federation.replayed())


def test_a_stale_update_is_discarded_with_its_staleness_and_a_receipt(federation):
    fresh_enough = threading.Event()
    late: list[object] = []

    def slow(p, task):
        if len(p.tasks) == 1:
            late.append(task)
        else:
            p.train(task)

    def quick(p, task):
        p.train(task)
        if task.base_version == 2 and late:
            slow_one.train(late.pop())
            fresh_enough.set()

    slow_one = federation.join("p0", slow)
    federation.join("p1", quick)
    run = RunSettings(run_id=RUN_ID, concurrency=3, max_staleness=1, min_participants=2, stop=federation.stop)
    summary = federation.run(run=run)
    assert fresh_enough.is_set()
    assert summary.discarded["too_stale"] == 1  # others may come after the end
    assert federation.depth(TOPOLOGY.dead) == 0
    slow_one.wait_until(lambda: len(slow_one.receipts) >= 1)
    assert (slow_one.receipts[0].verdict, slow_one.receipts[0].reason) == ("discarded", "too_stale")


def test_bad_control_messages_are_dead_lettered_and_the_run_goes_on(federation, dead):
    p = federation.join("p0")
    p.send(b"noise", queue=TOPOLOGY.control)
    p.send_control(Notice(run_id=RUN_ID, participant_id="p0", event="say_hello"))
    p.send_control(Decline(task_id="x-1", run_id="r2", participant_id="stranger", reason="busy"))
    assert federation.run().version == 5
    found, arrived = dead
    assert arrived()
    assert arrived()
    assert {d.headers["from_queue"] for d in found} == {TOPOLOGY.control.name}


def test_a_declined_task_goes_to_somebody_else(federation):
    def declining(p, task):
        p.send_control(
            Decline(task_id=task.task_id, run_id=RUN_ID, participant_id=p.name, reason="busy", retry_after_s=1000)
        )

    federation.join("p0", declining)
    federation.join("p1")
    run = RunSettings(run_id=RUN_ID, concurrency=1, min_participants=2, stop=federation.stop, selection="least_used")
    assert federation.run(run=run).version == 5
    with federation.ledger() as ledger:
        p0 = next(row.record for row in ledger.participants() if row.record.participant_id == "p0")
        assert (p0.tasks_issued, p0.declined) == (1, 1)
