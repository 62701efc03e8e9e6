"""kill -9 while tasks refer to models in a stream: the same promises hold."""

from __future__ import annotations

import signal

import pytest

from fedmq.broker_config.node.node import PrivateNode
from tests.chaos.harness import Federation, died_at
from tests.support.full import in_full
from tests.support.rabbitmq import require_server

pytestmark = pytest.mark.broker

BY_REFERENCE = {
    "FEDMQ_BROKER__CHUNK_BYTES": "4096",
    "FEDMQ_DOWNLINK__REFERENCE_BYTES": "4096",
    "FEDMQ_RUN__CONCURRENCY": "4",
}
"""The first version of each start of the coordinator has four tasks, as far as it knows."""
SIZE = 40_000
"""Number of values in the model: 160 kB, which are 40 chunks."""


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    one = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=4, size=SIZE)
    one.environ = BY_REFERENCE
    yield one
    one.close()


def test_coordinator_and_participant_killed_between_publication_and_training(federation):
    for place in ("before-model-published:1", "model-published:1"):
        helper = federation.participant("p1")
        assert died_at(federation.coordinator(fault=place), place.partition(":")[0])
        helper.kill()
    coordinator = federation.coordinator()
    for place in ("chunks-on-disk:2", "task-on-disk:1", "before-task-ack:1"):
        assert died_at(federation.participant("p0", fault=place), place.partition(":")[0])
    again, other = federation.participant("p0"), federation.participant("p1")
    again.wait_for("event=trained")
    coordinator.kill()
    assert died_at(federation.coordinator(fault="after-task-publish:2"), "after-task-publish")
    assert federation.coordinator().ended() == 0
    assert [again.ended(), other.ended()] == [0, 0]
    federation.check(versions=4)
    with federation.ledger() as ledger:
        assert ledger.bytes_of_models().tasks > 0


def test_a_download_from_the_stream_goes_on_after_kill_9(federation):
    coordinator = federation.coordinator()
    assert died_at(federation.participant("p0", fault="chunks-on-disk:2"), "chunks-on-disk")
    again = federation.participant("p0")
    again.wait_for(r"event=download .* chunks=40 missing=24\b")
    assert (coordinator.ended(), again.ended()) == (0, 0)
    federation.check(versions=4)


@in_full("integration/chunks/test_references.py has a stream that was deleted, and a broker that says nack")
def test_a_broker_killed_between_publication_and_download_loses_nothing(tmp_path, prefix):
    require_server()
    with PrivateNode(tmp_path / "node") as node:
        federation = Federation(tmp_path, node.url, prefix, max_versions=4, size=20 * SIZE)
        federation.environ = BY_REFERENCE | {"FEDMQ_BROKER__CHUNK_BYTES": "16384"}
        try:
            coordinator = federation.coordinator()
            coordinator.wait_for("event=run_created")
            node.flush_new_queues()
            reader = federation.participant("p0", fault="chunks-on-disk:3:stop")
            reader.wait_for("fault point chunks-on-disk")
            node.kill()
            coordinator.wait_for("event=broker_disconnected")
            node.start()
            reader.send(signal.SIGCONT)
            assert [one.ended() for one in (coordinator, reader)] == [0, 0]
            federation.check(versions=4)
        finally:
            federation.close()
