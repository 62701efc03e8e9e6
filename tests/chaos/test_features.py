"""Each feature that changes what travels, under the same faults: one run with kill -9 of both sides, a standby's
takeover and a folder from a backup. All that is promised of any run must hold of each, and the bytes must be counted.
"""

import shutil

import pytest

from fedmq.schemas.messages import update_id
from tests.chaos.harness import Federation, died_at
from tests.support.features import COLUMNS, FEATURES, LARGE, OWN_CODEC, SMALL
from tests.support.full import FULL

pytestmark = pytest.mark.broker

LEASE = {"FEDMQ_RUN__LEASE_S": "600"}
"""A slot that waited for a lease would outlast the test."""
IN_CHUNKS = {"FEDMQ_BROKER__MAX_MESSAGE_BYTES": "65536", "FEDMQ_BROKER__CHUNK_BYTES": "16384"}
UNENDING = 10**6
CELLS = [(name, form) for name in FEATURES for form in ("whole", "chunks")]
EVERYDAY = [("all at once", "chunks")]
NAMES = ("sensor-1", "sensor-2")


@pytest.fixture
def make(tmp_path, rabbitmq_node, prefix):
    """Return a function that makes a federation with a feature."""
    made = []

    def of(name, form):
        feature, large = FEATURES[name], form == "chunks"
        (tmp_path / "codec.py").write_text(OWN_CODEC)
        one = Federation(
            tmp_path, rabbitmq_node.url, prefix, UNENDING, LARGE if large else SMALL, columns=COLUMNS,
            frozen=feature.frozen, uplink=feature.uplink, more=feature.tables, strategy=feature.strategy,
            app_text=feature.app_text(large=large) if feature.app else None,
        )  # fmt: skip
        one.environ = IN_CHUNKS if large else {}
        made.append(one)
        return one

    yield of
    for one in made:
        one.close()


def tasks_of(ledger):
    """Return the participant of each task that was ever issued."""
    return dict(ledger._rows("SELECT task_id, participant_id FROM tasks"))


def restore(federation, backup):
    """Put the folder back, and return the ids of the updates of the lost time."""
    with federation.ledger() as ledger:
        past = tasks_of(ledger)
    shutil.rmtree(federation.run_dir)
    shutil.copytree(backup, federation.run_dir)
    with federation.ledger() as ledger:
        lost = past.keys() - (tasks_of(ledger).keys() - {task.task_id for task in ledger.open_tasks()})
    return [update_id("r1", task_id, past[task_id]) for task_id in lost]


def check_bytes(federation, rows):
    """Check the bytes of each update against its message, and that each task's are counted."""
    with federation.ledger() as ledger:
        up, down = ledger.bytes_up(), ledger.bytes_down()
        counted = {row.accepted_order: row for row in rows}
        assert ledger.counted_orders() == list(counted)
        carried = {n: c for version in {row.version for row in rows} for n, c in ledger.bytes_of(version).items()}
        tasks = ledger._rows("SELECT count(*) FROM tasks WHERE state = 'accepted'")[0][0]
    for order, row in counted.items():
        update, payload = federation.witness.updates[row.update_id]
        message = federation.witness.num_bytes[row.update_id]
        assert carried[order].wire_bytes == message + (0 if payload is not None else update.chunks.num_bytes)
        assert carried[order].decoded_bytes == federation.archived(row).num_bytes
    assert up.messages == len(rows)
    assert tasks - down.messages <= 12, "tasks that went out right before a kill"
    assert down.decoded_bytes > 0
    explained = federation.command("explain", "runs/r1", "1")
    assert explained.ended() == 0
    assert "Bytes up" in explained.text


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "form"), CELLS if FULL else EVERYDAY)
def test_a_run_with_any_feature_counts_once_and_replays_through_kills_a_takeover_and_a_restored_folder(
    make, name, form
):
    federation = make(name, form)
    backup = federation.folder / "backup"
    active = federation.coordinator(fault="after-ledger:6", **LEASE)
    active.wait_for("event=active run=r1 epoch=1")
    standby = federation.coordinator(**LEASE)
    standby.wait_for("event=standby")
    assert died_at(federation.participant(NAMES[0], fault="update-sent:2"), "update-sent")
    people = [federation.participant(one) for one in NAMES]
    assert died_at(active, "after-ledger")
    standby.wait_for("event=active run=r1 epoch=2")
    standby.wait_for("event=version_made")
    standby.kill()
    shutil.copytree(federation.run_dir, backup)
    third = federation.coordinator(**LEASE)
    third.wait_for("event=version_made", times=2)
    third.kill()
    lost = restore(federation, backup)
    with federation.ledger() as ledger:
        versions = ledger.version() + 4
    last = federation.coordinator(**LEASE, FEDMQ_RUN__STOP__MAX_VERSIONS=str(versions))
    assert last.ended() == 0, last.text
    assert [one.ended() for one in people] == [0, 0]
    assert "event=ledger_set_back run=r1" in last.text
    rows = federation.check(versions, lost=lost)
    check_bytes(federation, rows)
    assert federation.command("verify", "runs/r1").ended() == 0
