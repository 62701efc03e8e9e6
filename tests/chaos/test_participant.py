"""kill -9 of a participant at every step from task to receipt: one update a task counts, and finished work is kept."""

import pytest

from tests.chaos.harness import Federation, died_at, seeds_of
from tests.chaos.proxy import Proxy
from tests.support.full import in_full

pytestmark = pytest.mark.broker

UNFINISHED = ("task-on-disk", "before-task-ack", "mid-training", "trained")
"""Fault points before the update is on disk. A kill there makes its training begin again."""
FINISHED = (
    "update-on-disk", "task-cleared", "update-sent", "update-confirmed", "before-remembered", "before-update-cleared",
    "update-cleared",
)  # fmt: skip
PLACES = [f"{point}:{nth}" for point in UNFINISHED + FINISHED for nth in (1, 3)]


def test_a_participant_killed_at_every_point_in_turn_counts_once_and_keeps_what_it_finished(federation):
    coordinator = federation.coordinator()
    for point in UNFINISHED + FINISHED:
        assert died_at(federation.participant("p0", fault=point), point)
    last = federation.participant("p0")
    assert (coordinator.ended(), last.ended()) == (0, 0)
    rows = federation.check()
    trainings = federation.trainings("p0")
    # A kill at "trained" comes after the training and before the disk, and perhaps one at "before-task-ack": the
    # trainer has its own process, which may reach its end before it notices. Every other training was done once.
    *others, again = sorted(count for line, count in trainings.items() if line.startswith("done"))
    assert set(others) == {1}
    assert again in (2, 3)
    begun, done = (sum(n for line, n in trainings.items() if line.startswith(word)) for word in ("begun", "done"))
    assert done - len(rows) == again - 1, "done again after trained"
    # Begun again after mid-training and trained, and perhaps at before-task-ack: the task is on disk by then.
    assert begun - len(rows) in (2, 3)
    assert {line.split()[1] for line in trainings} == seeds_of(rows, "p0")


@in_full("the test before has a kill at each of these points")
@pytest.mark.parametrize("place", PLACES)
def test_a_participant_killed_at_one_point_counts_once(federation, place):
    coordinator = federation.coordinator()
    point = place.partition(":")[0]
    assert died_at(federation.participant("p0", fault=place), point)
    again, other = federation.participant("p0"), federation.participant("p1")
    assert (coordinator.ended(), again.ended(), other.ended()) == (0, 0, 0)
    federation.check()
    done = [count for line, count in federation.trainings("p0").items() if line.startswith("done")]
    assert max(done) == (2 if point == "trained" else 1)


def test_an_update_that_was_published_and_never_confirmed_is_sent_again_and_counted_once(federation, rabbitmq_node):
    coordinator = federation.coordinator()
    coordinator.wait_for("event=run_created")
    proxy = Proxy(rabbitmq_node.port)
    try:
        cut_off = federation.participant("p0", FEDMQ_BROKER_URL=rabbitmq_node.url_for(port=proxy.port))
        federation.witness.wait_until(lambda: federation.witness.updates)
        proxy.blackhole("down", new=False)
        cut_off.wait_for("event=update_sent", times=len(federation.witness.updates))
        assert cut_off.kill() < 0
    finally:
        proxy.close()
    again = federation.participant("p0")
    assert (coordinator.ended(), again.ended()) == (0, 0)
    federation.check()


def test_two_processes_with_one_id_and_two_spools_count_each_task_once(federation: Federation):
    """This is a cloned device. The broker gives its tasks to either process, and both would send the same update."""
    coordinator = federation.coordinator()
    clones = [
        federation.participant("p0", FEDMQ_PARTICIPANT__SPOOL_DIR=str(federation.folder / spool)) for spool in "ab"
    ]
    assert coordinator.ended() == 0
    federation.check()
    assert all("event=started" in clone.text for clone in clones)
