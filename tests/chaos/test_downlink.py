"""kill -9 of both sides around the hidden state: it stays one state, and every update counts once."""

import re
import sqlite3
from contextlib import closing

import pytest

from tests.chaos.harness import Federation, died_at, seeds_of
from tests.support.full import FULL, in_full

pytestmark = pytest.mark.broker

POINTS_OF_PARTICIPANT = ("before-model-kept", "model-kept", "task-on-disk", "before-task-ack")
POINTS_OF_COORDINATOR = ("after-checkpoint", "after-ledger", "before-task-publish")
VERSIONS = 16
"""More than the steps that are kept."""
NEWER = re.compile(r"has steps from the hidden state of version (\d+), and here is that of version (\d+)$")


@pytest.fixture
def federation(tmp_path, rabbitmq_node, prefix):
    more = '[downlink]\ncodec = "hidden"\n'
    one = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=VERSIONS, size=2000, more=more)
    yield one
    one.close()


def lost_states(federation):
    """Return the reasons of tasks that a participant could not put together. A busy one declines for other reasons, and
    one may have a newer state than the hello said that a new coordinator found in its queue."""
    with closing(sqlite3.connect(federation.run_dir / "ledger.sqlite")) as ledger:
        found = ledger.execute("SELECT detail FROM tasks WHERE state = 'declined'").fetchall()
    differs = [detail for (detail,) in found if detail.startswith("model_differs")]
    return [detail for detail in differs if not ((said := NEWER.search(detail)) and int(said[1]) < int(said[2]))]


@in_full("integration/coordinator/test_downlink.py restarts both sides and loses their disks")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_participant_killed_around_its_hidden_state_goes_on_from_it_and_counts_once(federation, nth):
    coordinator = federation.coordinator()
    for point in POINTS_OF_PARTICIPANT:
        assert died_at(federation.participant("p0", fault=f"{point}:{nth}"), point)
    last = federation.participant("p0")
    assert (coordinator.ended(), last.ended()) == (0, 0)
    rows = federation.check(VERSIONS)
    assert {line.split()[1] for line in federation.trainings("p0")} == seeds_of(rows, "p0")
    assert lost_states(federation) == [], "no state was lost"


@pytest.mark.parametrize("nth", (1, 3, 5) if FULL else (3,))
def test_coordinators_killed_between_versions_and_a_standby_go_on_with_one_hidden_state(federation, nth):
    people = [federation.participant(name) for name in ("p0", "p1")]
    for point in POINTS_OF_COORDINATOR:
        assert died_at(federation.coordinator(fault=f"{point}:{nth}"), point)
    active = federation.coordinator(fault=f"after-checkpoint:{nth}")
    active.wait_for("event=active")
    standby = federation.coordinator()
    assert died_at(active, "after-checkpoint")
    assert [one.ended() for one in (standby, *people)] == [0, 0, 0]
    federation.check(VERSIONS)
    assert lost_states(federation) == [], "participants have no state that was not committed"
