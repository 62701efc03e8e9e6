"""Three nodes with quorum queues: the leader dies in the middle of an upload, and the run goes on without it."""

import re

import pytest

from tests.chaos.harness import Federation
from tests.chaos.proxy import Proxy
from tests.support.cluster import SIZE, PrivateCluster
from tests.support.full import in_full
from tests.support.rabbitmq import require_server

pytestmark = [
    pytest.mark.broker,
    pytest.mark.timeout(240),
    in_full("three nodes take a minute"),
]
NUMBERS = 2**18
UPDATE_BYTES = 4 * NUMBERS
QUORUM = {"FEDMQ_BROKER__PARTICIPANT_QUEUES": "quorum"}


@pytest.fixture
def cluster(tmp_path):
    require_server()
    with PrivateCluster(tmp_path / "cluster") as one:
        yield one


@pytest.fixture
def federation(tmp_path, cluster, prefix):
    one = Federation(tmp_path, cluster.url, prefix, size=NUMBERS)
    yield one
    one.close()


def test_a_cluster_that_loses_the_leader_in_the_middle_of_an_upload_loses_nothing(cluster, federation):
    queue = federation.topology.updates.name
    before = cluster.replicas(queue)
    assert len(before.members) == len(before.online) == SIZE
    leader = cluster.named(before.leader)
    others = [node for node in cluster.nodes if node is not leader]
    proxy = Proxy(leader.port)
    try:
        through_it = ",".join([leader.url_for(port=proxy.port), *(node.url for node in others)])
        uploader = federation.participant("p0", FEDMQ_BROKER_URL=through_it, **QUORUM)
        other = federation.participant("p1", FEDMQ_BROKER_URL=",".join(node.url for node in others), **QUORUM)
        everybody = ",".join(node.url for node in (leader, *others))
        coordinator = federation.coordinator(FEDMQ_BROKER_URL=everybody, **QUORUM)
        coordinator.wait_for("event=version_made version=1 ")
        for name in ("p0", "p1"):
            federation.hold(name)
        uploads = uploader.text.count("event=update_sent")
        proxy.throttle(UPDATE_BYTES / 10, "up")
        federation.release("p0")
        task_id = uploader.wait_for(r"event=update_sent participant=p0 task=(\S+)", times=uploads + 1)[1]
        carried = proxy.carried["up"]
        federation.witness.wait_until(lambda: proxy.carried["up"] > carried + UPDATE_BYTES / 4)
        leader.kill()
        assert f"event=receipt participant=p0 task={task_id} " not in uploader.text, "the upload was not over"
        uploader.wait_for("event=broker_disconnected")
        federation.release("p1")
        for one in (uploader, coordinator):
            assert str(leader.port) not in one.wait_for("event=connected broker=(.*) user=", times=2)[1]
        assert [one.ended() for one in (coordinator, uploader, other)] == [0, 0, 0]
        not_taken = r"event=update_not_taken .*detail=\"PublishRejected: message '(\w+)'"
        federation.check(refused=re.findall(not_taken, uploader.text + other.text))
        after = cluster.replicas(queue)
        assert after.leader in {node.name for node in others}
        assert after.online == before.online - {before.leader}
    finally:
        proxy.close()


def test_participants_whose_queue_is_on_a_node_that_is_away_wait_for_it(cluster, federation):
    """The participants' queues are classic ones, which is the default."""
    home, *others = cluster.nodes
    participant = federation.participant("p0", FEDMQ_BROKER_URL=f"{home.url},{others[0].url}")
    coordinator = federation.coordinator(FEDMQ_BROKER_URL=others[1].url)
    coordinator.wait_for("event=version_made version=2 ")
    home.kill()
    participant.wait_for("cannot reach queue '.*participant.p0'")
    home.start()
    assert [one.ended() for one in (coordinator, participant)] == [0, 0]
    federation.check()
