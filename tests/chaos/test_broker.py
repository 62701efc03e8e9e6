"""kill -9, a restart and a pause of the broker in the middle of a run: everybody comes back, nothing is lost."""

import os
import signal

import pytest

from fedmq.broker_config.node.node import PrivateNode
from tests.chaos.harness import Federation
from tests.support.full import FULL, in_full
from tests.support.rabbitmq import require_server

pytestmark = pytest.mark.broker
CONNECTED = "event=connected "
DISCONNECTED = "event=broker_disconnected"
"""Pattern of the participant's and the coordinator's log lines about it."""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node that only these tests kill."""
    require_server()
    with PrivateNode(tmp_path_factory.mktemp("chaos")) as one:
        yield one


@pytest.fixture
def federation(tmp_path, node, prefix):
    one = Federation(tmp_path, node.url, prefix, max_versions=20)
    node.flush_new_queues()
    yield one
    one.close()


@pytest.mark.parametrize("killed_at", [(2,), (2, 6)] if FULL else [(2,)])
def test_a_broker_killed_in_mid_run_loses_nothing(federation, node, killed_at):
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator = federation.coordinator()
    for at, version in enumerate(killed_at, start=1):
        for one in (coordinator, *participants):  # one alone could make versions while the other still waits
            one.wait_for(CONNECTED, times=at)
        coordinator.wait_for(f"event=version_made version={version} ")
        pid = node.pid
        node.kill()
        assert node.pid is None
        for one in (coordinator, *participants):
            one.wait_for(DISCONNECTED, times=at)
        node.start()
        assert node.pid not in (None, pid)
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    federation.check(versions=20)


@in_full("test_links.py has peers that miss heartbeats")
def test_a_broker_that_stands_still_for_longer_than_the_heartbeat_loses_nothing(federation, node):
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator = federation.coordinator()
    coordinator.wait_for("event=version_made version=2 ")
    os.kill(node.pid, signal.SIGSTOP)
    try:
        for one in (coordinator, *participants):
            one.wait_for(DISCONNECTED)
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    federation.check(versions=20)
