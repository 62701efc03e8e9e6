"""fedmq verify and fedmq explain: a good run passes every check, and each kind of damage fails the right one."""

import json
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedmq.cli.cli import main
from fedmq.coordinator.audit import audit
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedAsync, FedAvg
from fedmq.schemas.errors import LedgerError
from tests.integration.coordinator.federation import DEADLINE_S, delta, update_for


def wrong(federation) -> set[str]:
    return {check.name for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds}


def tamper(federation, statement: str) -> None:
    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        assert db.execute(statement).rowcount > 0
    db.close()


@pytest.mark.parametrize("strategy", [None, FedAsync(), FedAvg(cohort_size=2, min_updates=1)])
def test_a_good_run_passes_every_check(federation, strategy):
    federation.strategy = strategy or federation.strategy
    for i in range(3):
        federation.join(f"p{i}")
    federation.run()
    checks = audit.verify(RunFolder(federation.run_dir))
    assert [check for check in checks if check.wrong or check.left_out] == [
        audit.Check("the updates make the versions", left_out=audit.NO_ARCHIVE)
    ]
    assert [check.name for check in checks][3:5] == [
        "weights follow from the strategy",
        "the newest checkpoint holds all of it",
    ]
    assert checks[-2].name == "the final model is the newest checkpoint's"


def test_a_run_that_stopped_in_the_middle_of_a_buffer_passes_too(federation):
    federation.stop = StopSettings(max_updates=8)
    federation.join("p0")
    federation.run()
    with federation.ledger() as ledger:
        assert [row.version for row in ledger.updates()][-3:] == [2, None, None]
    assert wrong(federation) == set()


def test_the_ids_that_a_stranger_puts_into_its_own_update_make_no_run_look_wrong(federation):
    claimed = []

    def answer(p, task):
        p.train(task)
        if not claimed:
            claimed.append(update_for(task, participant_id="stranger"))  # with the other one's task and update_id
            stranger.send_update(claimed[0], delta(task.task_id)).result(DEADLINE_S)

    stranger = federation.join("stranger", lambda p, task: None)
    federation.join("p0", answer)
    federation.run()
    with federation.ledger() as ledger:
        accepted = {row.update_id for row in ledger.updates()}
        assert claimed[0].update_id in accepted & {uid for uid, *_ in ledger.discard_claims()}
    assert wrong(federation) == set()


def test_a_run_can_be_verified_while_it_goes_on(federation):
    federation.stop = StopSettings(max_updates=150)
    for i in range(3):
        federation.join(f"p{i}")
    running = federation.start(federation.service())
    federation.participants[0].wait_until(lambda: federation.participants[0].receipts)
    looks = 0
    while not running.done():
        assert wrong(federation) == set()
        looks += 1
    assert looks > 1
    assert running.result(DEADLINE_S).accepted == 150


@pytest.mark.parametrize(
    ("statement", "fails"),
    [
        ("DELETE FROM updates WHERE accepted_order = 5", "orders and versions without gaps"),
        ("DELETE FROM versions WHERE version = 2", "orders and versions without gaps"),
        ("UPDATE updates SET version = 3 WHERE accepted_order = 1", "orders and versions without gaps"),
        ("UPDATE updates SET task_id = 'other' WHERE accepted_order = 4", "each update once, for its own task"),
        ("UPDATE tasks SET state = 'withdrawn' WHERE task_id = (SELECT task_id FROM updates LIMIT 1)",
         "each update once, for its own task"),
        ("INSERT INTO discards SELECT NULL, 'too_stale', '', update_id, task_id, participant_id, 0, 0, 0, 0 "
         "FROM updates",
         "each update once, for its own task"),
        ("INSERT INTO discards VALUES (NULL, 'malformed', '', NULL, NULL, NULL, NULL, NULL, 0, 0)",
         "discarded updates are counted"),
        ("UPDATE checkpoints SET scalars = json_set(scalars, '$.discarded.malformed', 2)",
         "discarded updates are counted"),
        ("UPDATE updates SET staleness = staleness + 1 WHERE accepted_order = 9",
         "staleness follows from the versions"),
        ("UPDATE updates SET weight = weight * 1.0000001 WHERE accepted_order = 9", "weights follow from the strategy"),
        ("UPDATE updates SET client_weight = 2 WHERE accepted_order = 9", "weights follow from the strategy"),
        ("UPDATE checkpoints SET accepted = accepted - 1 WHERE seq = (SELECT max(seq) FROM checkpoints)",
         "the newest checkpoint holds all of it"),
        ("DELETE FROM update_bytes WHERE accepted_order = 9", "the bytes of each update are counted once"),
    ],
)  # fmt: skip
def test_a_ledger_that_was_altered_fails_the_check_that_says_how(federation, statement, fails):
    federation.join("p0")
    federation.run()
    tamper(federation, statement)
    assert fails in wrong(federation)


@pytest.mark.parametrize(
    ("rows", "count", "wrong_ones", "left_out"),
    [
        (1000, 1000, 0, ""),
        (1000, 20_000, 0, "there are 19000 malformed beyond the first 1000 of a reason"),
        (1003, 20_000, 0, "there are 18997 malformed beyond the first 1000 of a reason"),
        (999, 20_000, 1, ""),
        (1001, 1000, 1, ""),
    ],
)
def test_after_a_flood_the_check_of_the_discards_says_what_it_cannot_know(rows, count, wrong_ones, left_out):
    ledger = SimpleNamespace(discarded=lambda: {"malformed": count}, discard_rows=lambda: {"malformed": rows})
    checks = list(audit._discards(ledger))
    assert len(checks[0].wrong) == wrong_ones
    assert "".join(check.left_out for check in checks).startswith(left_out)
    assert len(checks) == 1 + bool(left_out)


def test_a_flipped_bit_in_a_checkpoint_or_the_final_model_is_found(federation, capsys):
    federation.join("p0")
    federation.run()
    with federation.ledger() as ledger:
        newest = federation.run_dir / "checkpoints" / ledger.checkpoints()[0].file
    for path in (newest, federation.run_dir / "final.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert wrong(federation) == {f"checkpoint {newest.name}", "the final model is the newest checkpoint's"}
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(federation.run_dir)])
    assert ended.value.code == 1
    assert "2 of 12 checks failed" in " ".join(capsys.readouterr().out.split())


def test_explain_names_the_updates_of_a_version_with_staleness_and_weights(federation, capsys):
    federation.concurrency = 1
    federation.join("p0")
    federation.run()
    with federation.ledger() as ledger:
        found = audit.explain(ledger, 2)
        rows = ledger.updates()
        with pytest.raises(LedgerError, match=r"no version 6 .* it has versions 1 to 5"):
            audit.explain(ledger, 6)
    assert [replace(row, wire_bytes=None, decoded_bytes=None) for row in found.updates] == rows[3:6]
    assert all(row.decoded_bytes == 20 < row.wire_bytes < 400 for row in found.updates)
    assert [(row.participant_id, row.staleness, row.weight) for row in found.updates] == [("p0", 0, 1 / 3)] * 3
    for arguments in (["verify", str(federation.run_dir)], ["explain", str(federation.run_dir), "2", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code in (0, None)
    said = capsys.readouterr().out.splitlines()
    assert said[-2].endswith("all that can be checked holds.")
    assert [update["task_id"] for update in json.loads(said[-1])["updates"]] == [row.task_id for row in rows[3:6]]
