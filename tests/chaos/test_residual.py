"""The books of error feedback through every fault: what a codec left out counts exactly once.

The books of `tests.chaos.residuals` are read when a participant stands in a training: it has all its verdicts then.
"""

import shutil

import pika
import pytest

from fedmq.schemas.codec import encode
from fedmq.schemas.messages import Receipt
from tests.chaos import residuals
from tests.chaos.harness import Federation, died_at
from tests.support.asking import ask_until
from tests.support.full import FULL, in_full

pytestmark = pytest.mark.broker

CODECS = {
    "topk": 'codec = "topk"\nfraction = 0.02',
    "topk-int8-zstd": 'codec = "topk"\nfraction = 0.05\nvalues = "int8"\nlossless = "zstd"',
    "int4": 'codec = "int4"\nerror_feedback = true',
    "powersgd": 'codec = "powersgd"\nrank = 1',
    "topk in chunks": 'codec = "topk"\nfraction = 0.1',
    "int4 in chunks": 'codec = "int4"\nerror_feedback = true',
    "powersgd in chunks": 'codec = "powersgd"\nrank = 2',
}
COLUMNS = 20
SIZE, LARGE = 2_000, 200_000
"""Values of the model. An update of the large one has 80 kB or more in each of these codecs, and a task 800 kB."""
IN_CHUNKS = {"FEDMQ_BROKER__MAX_MESSAGE_BYTES": "65536", "FEDMQ_BROKER__CHUNK_BYTES": "16384"}
PARTICIPANT = (
    "task-on-disk", "before-task-ack", "mid-training", "trained", "next-memory-on-disk", "update-on-disk",
    "task-cleared", "update-sent", "update-confirmed", "before-memory-moved", "memory-moved", "before-remembered",
    "before-update-cleared", "update-cleared",
)  # fmt: skip
COORDINATOR = (
    "before-checkpoint", "after-checkpoint", "before-ledger", "after-ledger", "before-acks", "between-acks",
    "after-acks", "before-task-publish", "after-task-publish",
)  # fmt: skip
ONLY_IN_CHUNKS = ("chunks-confirmed", "update-uploaded"), ("chunk-arrived", "payload-whole", "before-payload-deleted")
AT_A_DISCARD = ("before-memory-given-back",)
EVERYDAY = ("next-memory-on-disk", "before-memory-moved", "memory-moved"), ("after-ledger",)
UNENDING = 10**6


@pytest.fixture
def make(tmp_path, rabbitmq_node, prefix):
    """Return a function that makes a federation with a codec, whose run has no end of its own."""
    made = []

    def of(codec):
        chunked = codec.endswith("chunks")
        one = Federation(
            tmp_path, rabbitmq_node.url, prefix, UNENDING, LARGE if chunked else SIZE, columns=COLUMNS,
            uplink=CODECS[codec],
        )  # fmt: skip
        one.environ = IN_CHUNKS if chunked else {}
        made.append(one)
        return one

    yield of
    for one in made:
        one.close()


def stand_still(federation, processes):
    """Wait until each participant stands in a training, and kill it there."""
    for name in processes:
        federation.hold(name, wait=False)
    for name, process in processes.items():
        seen = federation.folder / "hold" / f"{name}.seen"
        ask_until(seen.exists, what=f"{name} in a training")
        process.kill()
        federation.release(name)


def check_books(federation, *names):
    for name in names:
        residuals.check(federation, name, residuals.sent(federation, residuals.accepted(federation, name)))


def to_the_end(federation, coordinator):
    """Let the run end two versions later, and check all that a run must leave, bit for bit."""
    coordinator.kill()
    with federation.ledger() as ledger:
        versions = ledger.version() + 2
    last = federation.coordinator(FEDMQ_RUN__STOP__MAX_VERSIONS=str(versions))
    people = [federation.participant(name) for name in ("p0", "p1")]
    assert [one.ended() for one in (last, *people)] == [0, 0, 0]
    federation.check(versions)
    spools = federation.folder / "spool"
    assert not list(spools.glob("*/memory/**/*.fedmq")), "the run is over: nothing of it is kept"


@pytest.mark.timeout(900 if FULL else 120)
@pytest.mark.parametrize("codec", CODECS if FULL else ["topk"])
def test_kills_at_every_step_between_residual_and_receipt_count_what_was_left_out_once(make, codec):
    federation = make(codec)
    own, theirs = (PARTICIPANT, COORDINATOR) if FULL else EVERYDAY
    if codec.endswith("chunks"):
        own, theirs = (*own, *ONLY_IN_CHUNKS[0]), (*theirs, *ONLY_IN_CHUNKS[1])
    coordinator = federation.coordinator()
    other = federation.participant("p1")
    for point in own:
        assert died_at(federation.participant("p0", fault=point), point)
    first = federation.participant("p0")
    first.wait_for("event=receipt")
    coordinator.kill()
    for point in theirs:
        assert died_at(federation.coordinator(fault=point), point)
    coordinator = federation.coordinator()
    residuals.wait_for(federation, "p0", 3)
    stand_still(federation, {"p0": first, "p1": other})
    assert len(residuals.accepted(federation, "p0")) > 3
    check_books(federation, "p0", "p1")
    to_the_end(federation, coordinator)


def queue_of(federation, name):
    return federation.topology.participant(name)


@in_full("unit/participant/decisions/test_memory.py has lost and repeated receipts")
def test_a_receipt_that_is_lost_or_repeated_moves_the_residual_once(make, rabbitmq_node):
    """The participant is dead when its receipt comes, and somebody purges its queue. Then receipts come threefold."""
    federation = make("topk")
    coordinator = federation.coordinator()
    first = federation.participant("p0")
    residuals.wait_for(federation, "p0", 1)
    first.kill()
    before = len(residuals.accepted(federation, "p0"))
    assert died_at(federation.participant("p0", fault="update-confirmed"), "update-confirmed")
    ask_until(lambda: len(residuals.accepted(federation, "p0")) > before, what="accepted without its participant")
    federation.witness.wait_for_depth(queue_of(federation, "p0"), 1)
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_node.url))
    lost = connection.channel().queue_purge(queue_of(federation, "p0").name).method.message_count
    assert lost >= 1
    again = federation.participant("p0")
    newest = residuals.accepted(federation, "p0")[-1]
    again.wait_for(f"event=receipt participant=p0 task={newest.task_id} verdict=accepted")
    receipt = Receipt(
        update_id=newest.update_id, task_id=newest.task_id, run_id="r1", participant_id="p0", verdict="accepted",
        version=1,
    )  # fmt: skip
    for _ in range(3):
        connection.channel().basic_publish("", queue_of(federation, "p0").name, encode(receipt))
    connection.close()
    again.wait_for(f"event=receipt participant=p0 task={newest.task_id} verdict=accepted", times=4)
    residuals.wait_for(federation, "p0", 2)
    stand_still(federation, {"p0": again})
    check_books(federation, "p0")
    assert coordinator.status is None


@in_full("unit/participant/decisions/test_memory.py has discarded updates")
@pytest.mark.parametrize("point", ["", *AT_A_DISCARD])
def test_a_discarded_update_leaves_the_residual_as_it_was(make, point):
    """A named point kills the participant between the receipt and what it does about it."""
    federation = make("topk")
    coordinator = federation.coordinator(FEDMQ_RUN__MAX_STALENESS="1")
    people = {name: federation.participant(name, point * (name == "p0")) for name in ("p0", "p1", "p2")}
    residuals.wait_for(federation, "p0", 1)
    federation.hold("p0")
    residuals.wait_for(federation, "p1", 12)
    federation.release("p0")
    people["p0"].wait_for("event=receipt .* verdict=discarded .*too_stale")
    if point:
        assert died_at(people["p0"], point)
        assert list((federation.folder / "spool" / "p0" / "memory" / "next").glob("*.fedmq"))
        people["p0"] = federation.participant("p0")
        people["p0"].wait_for("event=receipt .* verdict=discarded .*too_stale")
    residuals.wait_for(federation, "p0", 1)
    stand_still(federation, people)
    with federation.ledger() as ledger:
        assert ledger.discarded()["too_stale"] >= 1
    check_books(federation, *people)
    assert coordinator.status is None


@in_full("unit/participant/decisions/test_memory.py has discarded updates")
def test_an_update_of_the_run_before_is_discarded_and_the_next_run_begins_at_zero(make):
    federation = make("topk")
    coordinator = federation.coordinator()
    first = federation.participant("p0")
    residuals.wait_for(federation, "p0", 1)
    first.kill()
    assert died_at(federation.participant("p0", fault="update-on-disk"), "update-on-disk")
    coordinator.kill()
    federation.run_dir = federation.run_dir.with_name("r2")
    coordinator = federation.coordinator(FEDMQ_RUN__RUN_ID="r2")
    again = federation.participant("p0")
    again.wait_for("event=receipt .* verdict=discarded .*wrong_run")
    residuals.wait_for(federation, "p0", 2)
    stand_still(federation, {"p0": again})
    check_books(federation, "p0")
    assert coordinator.status is None


@in_full("test_standby.py has takeovers")
def test_a_standby_takes_over_in_a_commit_and_the_books_balance(make):
    federation = make("topk")
    active = federation.coordinator(fault="after-ledger:3")
    active.wait_for("event=active run=r1 epoch=1")
    standby = federation.coordinator()
    standby.wait_for("event=standby")
    people = {name: federation.participant(name) for name in ("p0", "p1")}
    assert died_at(active, "after-ledger")
    standby.wait_for("event=active run=r1 epoch=2")
    residuals.wait_for(federation, "p0", 2)
    stand_still(federation, people)
    check_books(federation, *people)
    to_the_end(federation, standby)


@in_full("integration/coordinator/test_uplink.py has lost and restored disks")
def test_a_lost_disk_starts_at_zero_and_an_older_one_is_refused_once_and_begins_anew(make):
    federation = make("topk")
    spool, backup = federation.folder / "spool" / "p0", federation.folder / "backup"
    coordinator = federation.coordinator()
    people = {"p0": federation.participant("p0")}
    residuals.wait_for(federation, "p0", 2)
    stand_still(federation, people)
    shutil.copytree(spool, backup)
    (backup / "task.fedmq").unlink(missing_ok=True)  # the backup is of a moment between two tasks
    shutil.rmtree(spool)
    lost_at = len(residuals.accepted(federation, "p0"))

    def since(count):
        return residuals.sent(federation, residuals.accepted(federation, "p0")[count:])

    people = {"p0": federation.participant("p0")}
    residuals.wait_for(federation, "p0", 2)
    stand_still(federation, people)
    residuals.check(federation, "p0", since(lost_at))
    shutil.rmtree(spool)
    shutil.copytree(backup, spool)
    restored_at = len(residuals.accepted(federation, "p0"))
    people = {"p0": federation.participant("p0")}
    people["p0"].wait_for("event=receipt .* verdict=discarded .*wrong_memory")
    residuals.wait_for(federation, "p0", 2)
    stand_still(federation, people)
    with federation.ledger() as ledger:
        assert ledger.discarded()["wrong_memory"] == 1
    residuals.check(federation, "p0", since(restored_at))
    assert coordinator.status is None


@in_full("test_restored_folder.py has a folder from a backup")
def test_a_coordinator_from_a_backup_counts_what_was_left_out_once(make):
    """The updates of the lost time are in no model. Their participants were told that they are accepted, so what these
    left out is sent all the same, under the run's new id, and what they sent is not sent again."""
    federation = make("topk")
    backup = federation.folder / "run-backup"
    lease = {"FEDMQ_RUN__LEASE_S": "600"}
    coordinator = federation.coordinator(**lease)
    people = {name: federation.participant(name) for name in ("p0", "p1")}
    residuals.wait_for(federation, "p0", 1)
    coordinator.kill()
    shutil.copytree(federation.run_dir, backup)
    coordinator = federation.coordinator(**lease)
    residuals.wait_for(federation, "p0", 2)
    coordinator.kill()
    counted = {name: residuals.sent(federation, residuals.accepted(federation, name)) for name in people}
    shutil.rmtree(federation.run_dir)
    shutil.copytree(backup, federation.run_dir)
    assert len(residuals.accepted(federation, "p0")) < len(counted["p0"])
    last = federation.coordinator(**lease)
    last.wait_for("event=ledger_set_back")
    residuals.wait_for(federation, "p0", 3)
    stand_still(federation, people)
    for name, process in people.items():
        counted[name] |= residuals.sent(federation, residuals.accepted(federation, name))
        told = {task for task in counted[name] if f"task={task} verdict=accepted" in process.text}
        residuals.check(federation, name, {task: counted[name][task] for task in told})
    with federation.ledger() as ledger:
        assert "wrong_memory" not in ledger.discarded()
