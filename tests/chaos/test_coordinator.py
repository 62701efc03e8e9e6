"""kill -9 of the coordinator at every step of the commit protocol: nothing is lost, nothing is counted twice."""

import signal

import pytest

from tests.chaos.harness import died_at
from tests.support.full import FULL, in_full

pytestmark = pytest.mark.broker

POINTS = (
    "before-checkpoint", "after-checkpoint", "before-ledger", "after-ledger", "before-acks", "between-acks",
    "after-acks", "before-task-publish", "after-task-publish",
)  # fmt: skip
"""Fault points in the order in which a commit passes them."""
PLACES = [f"{point}:{nth}" for point in POINTS for nth in (1, 2, 5)] if FULL else []


def test_a_coordinator_killed_at_every_point_in_turn_loses_nothing(federation):
    """One run has nine deaths. Each coordinator works a little before it dies."""
    participants = [federation.participant(name) for name in ("p0", "p1")]
    for point in POINTS:
        assert died_at(federation.coordinator(fault=f"{point}:2"), point)
    with federation.ledger() as ledger:
        assert ledger.run().finished is None
    assert federation.coordinator().ended() == 0
    assert [one.ended() for one in participants] == [0, 0]
    federation.check()


@pytest.mark.parametrize("place", [*PLACES, "before-farewell:1"])
def test_a_coordinator_killed_at_one_point_loses_nothing(federation, place):
    participants = [federation.participant(name) for name in ("p0", "p1")]
    assert died_at(federation.coordinator(fault=place), place.partition(":")[0])
    assert federation.coordinator().ended() == 0
    assert [one.ended() for one in participants] == [0, 0]
    federation.check()


@in_full("test_links.py has peers that miss heartbeats")
def test_a_coordinator_that_stands_still_for_longer_than_the_heartbeat_commits_nothing_twice(federation):
    """This is a suspended machine. The broker takes its deliveries back, but it still has them when it goes on."""
    participants = [federation.participant(name) for name in ("p0", "p1")]
    coordinator = federation.coordinator()
    coordinator.wait_for("event=version_made version=2 ")
    coordinator.send(signal.SIGSTOP)
    try:
        federation.witness.wait_for_depth(federation.topology.updates, 1)
    finally:
        coordinator.send(signal.SIGCONT)
    coordinator.wait_for("event=broker_disconnected")
    assert [one.ended() for one in (coordinator, *participants)] == [0, 0, 0]
    federation.check()
