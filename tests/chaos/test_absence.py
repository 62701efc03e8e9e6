"""Participants that come back after a week, with another clock, or with a disk that refuses writes for a while."""

import dataclasses

import pytest

from fedmq.broker_config.amqp.transport import remove
from fedmq.participant.spool.spool import Spool
from tests.chaos.gate import Gate
from tests.chaos.harness import Federation, died_at, seeds_of
from tests.support.full import in_full

pytestmark = pytest.mark.broker
DAY_S = 24 * 3600.0
SIZE = 2**15
MODEL_KB = 4 * SIZE // 1024


def restamp(federation, participant, wall_s=0.0, boot_s=0.0, **changed):
    """Change the arrival time of the participant's spooled task, on either clock."""
    spool = Spool(federation.folder / "spool", participant)
    try:
        body, then = spool.read_task()
        then = dataclasses.replace(then, wall_s=then.wall_s + wall_s, boot_s=then.boot_s + boot_s, **changed)
        spool.write_task(body, then)
    finally:
        spool.close()


def test_a_week_away_loses_no_finished_training_and_drops_a_task_whose_slot_was_given_away(federation):
    coordinator = federation.coordinator()
    finished = federation.participant("p0", fault="update-on-disk")
    assert died_at(finished, "update-on-disk")
    begun = federation.participant("p2", fault="task-on-disk")
    assert died_at(begun, "task-on-disk")
    others = [federation.participant("p1")]
    coordinator.wait_for("event=version_made version=2 ")
    held = Gate(federation, "p1").reached()
    # After so long the broker has dropped the messages that waited for them, and then their queues.
    queues = [federation.topology.participant(name).name for name in ("p0", "p2")]
    remove(federation.url, exchanges=(), queues=queues)
    restamp(federation, "p2", wall_s=-7 * DAY_S, boot_s=-7 * DAY_S)
    others += [federation.participant(name) for name in ("p0", "p2")]
    others[2].wait_for("event=declined .*reason=lease_over .*6048[0-9][0-9] s on disk")
    coordinator.wait_for("event=update_accepted participant=p0")
    held.open()
    assert [one.ended() for one in (coordinator, *others)] == [0, 0, 0, 0]
    rows = federation.check()
    trainings = federation.trainings("p0")
    assert next(iter(trainings)).split()[1] in seeds_of(rows, "p0")
    assert set(trainings.values()) == {1}
    assert next(row for row in rows if row.participant_id == "p0").staleness >= 2
    assert any(row.participant_id == "p2" for row in rows)


@in_full("unit/participant/spool/test_spool.py has clocks that jump, and tasks of another boot")
def test_a_wall_clock_that_was_changed_does_not_make_a_task_old(federation):
    coordinator = federation.coordinator()
    assert died_at(federation.participant("p0", fault="task-on-disk"), "task-on-disk")
    year_s = 365 * DAY_S
    for change in ({"wall_s": -year_s}, {"wall_s": year_s}, {"wall_s": 2 * year_s, "boot_id": "another boot"}):
        restamp(federation, "p0", **change)
        resumed = federation.participant("p0", fault="mid-training")
        assert died_at(resumed, "mid-training")
        assert "event=task_resumed" in resumed.text
    last = federation.participant("p0")
    assert coordinator.ended() == 0, coordinator.text
    assert last.ended() == 0
    trainings = federation.trainings("p0")
    (seed,) = (line.split()[1] for line, count in trainings.items() if count == 4)
    assert trainings[f"done {seed}"] == 1
    assert seed in seeds_of(federation.check(), "p0")


@pytest.fixture
def federation_of_large_models(tmp_path, rabbitmq_node, prefix):
    one = Federation(tmp_path, rabbitmq_node.url, prefix, max_versions=2, size=SIZE)
    yield one
    one.close()


def test_a_disk_that_is_full_declines_tasks_keeps_updates_in_memory_and_goes_on_when_there_is_room(
    federation_of_large_models, disk
):
    federation = federation_of_large_models
    coordinator = federation.coordinator()
    settings = {"FEDMQ_PARTICIPANT__SPOOL_DIR": str(disk.folder), "FEDMQ_PARTICIPANT__RETRY_AFTER_S": "0.5"}
    participant = federation.participant("p0", **settings)
    participant.wait_for("event=declined .*reason=not_idle .*No space left on device")
    disk.resize(64 + MODEL_KB)
    participant.wait_for("event=update_not_written .*cannot write .*outbox.*No space left on device.*retry_s=")
    assert not federation.witness.updates
    disk.resize(10 * MODEL_KB)
    assert (coordinator.ended(), participant.ended()) == (0, 0)
    assert len(federation.check(versions=2)) == 6
    assert set(federation.trainings("p0").values()) == {1}


def test_a_disk_that_turns_read_only_keeps_the_update_in_memory_until_it_is_written(federation, disk):
    disk.resize(1024)
    gate = Gate(federation, "p0")
    coordinator = federation.coordinator()
    at_disk = {"FEDMQ_PARTICIPANT__SPOOL_DIR": str(disk.folder)}
    participant = federation.participant("p0", **at_disk)
    gate.reached()
    disk.make_read_only(disk.folder / "p0")
    with pytest.raises(OSError, match="Read-only"):
        (disk.folder / "p0" / "probe").touch()
    gate.open()
    participant.wait_for("event=update_not_written .*cannot (write|remove) .*Read-only file system.*retry_s=")
    refused = federation.participant("p9", FEDMQ_PARTICIPANT__SPOOL_DIR=str(disk.folder / "p0"))
    assert refused.ended() == 1
    assert "Read-only file system" in refused.text
    assert not federation.witness.updates
    disk.make_writable()
    assert (coordinator.ended(), participant.ended()) == (0, 0)
    federation.check()
    assert set(federation.trainings("p0").values()) == {1}
