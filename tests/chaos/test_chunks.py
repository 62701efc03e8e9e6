"""kill -9 of every process while tasks and updates travel in chunks: the same promises hold."""

import pytest

from fedmq.broker_config.node.node import PrivateNode
from tests.chaos.harness import Federation, died_at
from tests.support.full import FULL, in_full
from tests.support.rabbitmq import require_server

pytestmark = pytest.mark.broker

IN_CHUNKS = {"FEDMQ_BROKER__MAX_MESSAGE_BYTES": "65536", "FEDMQ_BROKER__CHUNK_BYTES": "4096"}
SIZE = 40_000
"""Number of values in the model: 160 kB, which are 40 chunks."""
PARTICIPANT = ("chunks-on-disk:2", "chunks-confirmed:3", "update-uploaded:1", "update-confirmed:1")
COORDINATOR = ("chunk-arrived:20", "payload-whole:1", "before-payload-deleted:1", "before-acks:2")


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    one = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=3, size=SIZE)
    one.environ = IN_CHUNKS
    yield one
    one.close()


def test_participant_and_coordinator_killed_at_every_step_of_a_chunked_round(federation):
    coordinator = federation.coordinator()
    for place in PARTICIPANT:
        assert died_at(federation.participant("p0", fault=place), place.partition(":")[0])
    again, other = federation.participant("p0"), federation.participant("p1")
    again.wait_for("event=receipt|event=task_received")
    coordinator.kill()
    for place in COORDINATOR:
        assert died_at(federation.coordinator(fault=place), place.partition(":")[0])
    assert federation.coordinator().ended() == 0
    assert [again.ended(), other.ended()] == [0, 0]
    federation.check(versions=3)
    done = [count for line, count in federation.trainings("p0").items() if line.startswith("done")]
    assert set(done) == {1}, "no finished training was thrown away"


def test_an_upload_goes_on_at_the_confirmed_chunk_after_kill_9(federation):
    coordinator = federation.coordinator()
    assert died_at(federation.participant("p0", fault="chunks-confirmed:3"), "chunks-confirmed")
    again = federation.participant("p0")
    again.wait_for(r"event=upload participant=p0 .* chunks_confirmed=24")
    again.wait_for(r"event=uploaded participant=p0 .* chunks=40 published=16\b")
    assert (coordinator.ended(), again.ended()) == (0, 0)
    federation.check(versions=3)


if FULL:

    @pytest.mark.parametrize(
        "place", [f"{point.partition(':')[0]}:{nth}" for point in COORDINATOR for nth in (1, 2, 5)]
    )
    def test_a_coordinator_killed_at_one_point_of_an_intake_loses_nothing(federation, place):
        participants = [federation.participant(name) for name in ("p0", "p1")]
        assert died_at(federation.coordinator(fault=place), place.partition(":")[0])
        assert federation.coordinator().ended() == 0
        assert [one.ended() for one in participants] == [0, 0]
        federation.check(versions=3)


@in_full("integration/chunks/test_chunked_faults.py has a broker that lost an upload")
def test_a_broker_killed_in_mid_upload_loses_nothing(tmp_path, prefix):
    require_server()
    with PrivateNode(tmp_path / "node") as node:
        federation = Federation(tmp_path, node.url, prefix, max_versions=3, size=20 * SIZE)
        federation.environ = IN_CHUNKS | {"FEDMQ_BROKER__CHUNK_BYTES": "16384"}
        try:
            coordinator = federation.coordinator()
            coordinator.wait_for("event=run_created")
            node.flush_new_queues()
            participants = [federation.participant(name) for name in ("p0", "p1")]
            coordinator.wait_for("event=payload_begun", times=2)
            node.kill()
            for one in (coordinator, *participants):
                one.wait_for("event=broker_disconnected")
            node.start()
            assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
            federation.check(versions=3)
        finally:
            federation.close()
