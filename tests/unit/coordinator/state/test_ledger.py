"""The ledger keeps a commit whole or not at all, and knows how every task ended."""

import os
import shutil
import sqlite3
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fedmq.coordinator.decisions.commands import Accept, Discard, NewVersion
from fedmq.coordinator.decisions.events import Carried, ClosedTask, EvaluationArrived
from fedmq.coordinator.decisions.records import ParticipantRecord, TaskRecord
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.rows import (
    ArchivedVersion,
    Base,
    BrokerRow,
    CheckpointRow,
    CommitGroup,
    Stamp,
    Verdict,
)
from fedmq.coordinator.state.ledger.traffic import ModelBytes, Traffic
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.schemas.errors import Deposed, LedgerError
from fedmq.schemas.local.clocks import Moment
from fedmq.schemas.messages import Update

AT = Stamp(1.5, 1_700_000_000.0)
ZERO = CheckpointRow(0, "0.safetensors", "d0", 0, 0, {"next_seq": 1, "x": 0.1})


def task(seq: int, state: str = "out", detail: str = "") -> TaskRecord:
    return TaskRecord(f"t-{seq}", seq, "p1", 0, 1.0, 601.0, state, detail, 1.0, 0)  # type: ignore[arg-type]


def update(seq: int, **changed: object) -> Update:
    fields = {
        "update_id": f"u-{seq}", "task_id": f"t-{seq}", "run_id": "r", "participant_id": "p1", "base_version": 0,
        "payload": "delta", "num_examples": 10, "num_steps": 3, "metrics": {"loss": 0.25}, "train_s": 0.5,
    }  # fmt: skip
    return Update(**(fields | changed))  # type: ignore[arg-type]


def participant(name: str) -> ParticipantRecord:
    return ParticipantRecord(name, 0, "s1", 10, ("delta",), True, True, 1.25)


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.create("r", "0123abcd", {"seed": 3}, 1_600_000_000.0, ZERO)
        yield ledger


@pytest.fixture
def full(ledger: Ledger):
    ledger.commit(
        CommitGroup(
            accepted=[(Accept(1, update(1), 0, 1.0, 1), AT), (Accept(2, update(2), 1, 0.5, 2), AT)],
            versions=[(NewVersion(1, ("u-1",), (0.75,)), AT)],
            discards=[
                (Discard(3, "too_stale", "τ 9 over 5", update(3), 9), AT),
                (Discard(4, "malformed", "no envelope", None), AT),
                (Discard(5, "too_stale", "again", update(3), 9), AT),
            ],
            evaluations=[(EvaluationArrived(1, {"accuracy": 0.5}), AT)],
            participants={"p1": participant("p1")},
            tasks={
                "t-1": task(1, "accepted"), "t-2": task(2, "accepted"), "t-3": task(3, "discarded", "too_stale"),
                "t-4": task(4), "t-5": task(5, "lapsed"), "t-6": task(6, "withdrawn", "lost"),
            },
        ),
        CheckpointRow(1, "1.safetensors", "d1", 1, 2, {"next_seq": 7}), 2.0, 1_700_000_001.0,
    )  # fmt: skip
    return ledger


def test_a_new_ledger_holds_its_run_and_version_0(ledger: Ledger):
    run = ledger.run()
    assert (run.run_id, run.run_uid, run.settings, run.elapsed_s, run.finished) == (
        "r",
        "0123abcd",
        {"seed": 3},
        0,
        None,
    )
    assert ledger.checkpoints() == [ZERO]
    assert ledger.version() == 0
    assert not ledger.is_new()


def test_a_reader_sees_every_row_of_a_commit_while_the_writer_is_open(full: Ledger):
    with LedgerReader(full.path) as reader:
        assert reader.run().elapsed_s == 2.0
        assert reader.version() == 1
        assert [(v.version, v.num_updates, v.run_s) for v in reader.versions()] == [(1, 1, 1.5)]
        first, second = reader.updates()
        assert (first.update_id, first.weight, first.version, first.metrics) == ("u-1", 0.75, 1, {"loss": 0.25})
        assert (second.update_id, second.weight, second.version, second.staleness) == ("u-2", None, None, 1)
        assert reader.updates(after=1) == [second]
        assert reader.accepted() == 2
        assert reader.accepted_by_participant() == {"p1": 2}
        assert reader.discard_rows() == {"too_stale": 2, "malformed": 1}
        assert reader.staleness() == {0: 1, 1: 1}
        assert [t.task_id for t in reader.open_tasks()] == ["t-4", "t-5"]
        assert reader.open_tasks()[0] == task(4)
        assert [row.record for row in reader.participants()] == [participant("p1")]
        assert [(e.version, e.metrics) for e in reader.evaluations()] == [(1, {"accuracy": 0.5})]
        assert [c.seq for c in reader.checkpoints()] == [1, 0]


def test_federated_metrics_are_the_mean_over_the_examples_behind_each_of_them(ledger: Ledger):
    largest = 1.7e308
    reports = {
        1: (1, 10, {"loss": 1.0, "accuracy": 0.5}), 2: (1, 30, {"loss": 2.0}), 3: (2, 7, {"loss": largest}),
        4: (2, 7, {"loss": largest}), 5: (3, 10, {}), 6: (None, 10, {"loss": 9.0}),
    }  # fmt: skip
    accepted = [
        (Accept(seq, update(seq, num_examples=n, metrics=metrics), 0, 1.0, seq), AT)
        for seq, (_, n, metrics) in reports.items()
    ]
    versions = [
        (NewVersion(v, tuple(f"u-{seq}" for seq, (of, _, _) in reports.items() if of == v), (1.0,) * count), AT)
        for v, count in ((1, 2), (2, 2), (3, 1))
    ]
    ledger.commit(CommitGroup(accepted, versions), CheckpointRow(1, "1.safetensors", "d1", 3, 6, {}), 2.0, 0.0)
    assert [(row.version, row.num_updates, row.metrics) for row in ledger.federated_metrics()] == [
        (1, 2, {"loss": 1.75, "accuracy": 0.5}),
        (2, 2, {"loss": largest}),
        (3, 1, {}),
    ]
    assert [row.version for row in ledger.federated_metrics(after=2)] == [3]


def test_a_reader_cannot_write(full: Ledger):
    with LedgerReader(full.path) as reader, pytest.raises(LedgerError, match="readonly"):
        reader._rows("DELETE FROM updates")


def test_a_later_version_takes_up_what_was_buffered(full: Ledger):
    state = CheckpointRow(2, "2.safetensors", "d2", 2, 2, {})
    full.commit(CommitGroup(versions=[(NewVersion(2, ("u-2",), (0.5,)), AT)]), state, 3.0, 0.0)
    assert [(u.version, u.weight) for u in full.updates()] == [(1, 0.75), (2, 0.5)]


def test_the_same_seq_renews_the_scalars_only(full: Ledger):
    full.commit(CommitGroup(), CheckpointRow(1, "1.safetensors", "d1", 1, 2, {"next_seq": 8}), 3.0, 0.0)
    assert [(c.seq, c.scalars) for c in full.checkpoints()] == [(1, {"next_seq": 8}), (0, ZERO.scalars)]


def test_only_the_newest_checkpoints_stay(full: Ledger):
    full.commit(CommitGroup(), CheckpointRow(2, "2.safetensors", "d2", 1, 2, {}), 3.0, 0.0, keep=2)
    assert [c.seq for c in full.checkpoints()] == [2, 1]


def test_a_task_that_is_over_has_an_end_and_a_verdict_and_one_that_is_open_has_neither(full: Ledger):
    assert full.closed_task("t-1") == ClosedTask("t-1", "p1", "accepted")
    assert full.closed_task("t-4") is None
    assert full.closed_task("t-99") is None
    assert full.verdict("t-1") == Verdict("t-1", "p1", "accepted", "u-1", 1)
    assert full.verdict("t-2") == Verdict("t-2", "p1", "accepted", "u-2", None)
    assert full.verdict("t-3") == Verdict("t-3", "p1", "discarded", "u-3", None, "too_stale")
    assert full.verdict("t-4") is None
    assert full.verdict("t-6") == Verdict("t-6", "p1", "withdrawn", None, None, "lost")


def test_the_last_decline_of_a_participant_lasts_until_it_answers_otherwise(full: Ledger):
    def last(tasks: dict[str, TaskRecord]) -> dict[str, str]:
        full.commit(CommitGroup(tasks=tasks), CheckpointRow(1, "1.safetensors", "d1", 1, 2, {}), 3.0, 0.0)
        return full.last_declines()

    assert full.last_declines() == {}
    assert last({"t-7": task(7, "declined", "trainer_error: nan"), "t-8": task(8)}) == {"p1": "trainer_error: nan"}
    assert last({"t-8": task(8, "declined", "no_data")}) == {"p1": "no_data"}
    assert last({"t-9": task(9, "accepted")}) == {}


def test_an_update_counted_twice_is_refused_and_nothing_of_that_commit_stays(full: Ledger):
    twice = CommitGroup(
        accepted=[(Accept(9, update(1), 0, 1.0, 3), AT)], discards=[(Discard(9, "malformed", "x", None), AT)]
    )
    with pytest.raises(LedgerError, match="UNIQUE"):
        full.commit(twice, CheckpointRow(2, "2.safetensors", "d2", 1, 3, {}), 9.0, 0.0)
    assert full.accepted() == 2
    assert full.discard_rows()["malformed"] == 1
    assert full.run().elapsed_s == 2.0
    assert len(full.checkpoints()) == 2


def test_a_full_disk_is_an_os_error_and_the_same_commit_succeeds_later(full: Ledger):
    pages = full._db.execute("PRAGMA page_count").fetchone()[0]
    full._db.execute(f"PRAGMA max_page_count = {pages}")
    group = CommitGroup(discards=[(Discard(9, "malformed", "x" * 100_000, None), AT)])
    state = CheckpointRow(2, "2.safetensors", "d2", 1, 2, {})
    with pytest.raises(OSError, match="full"):
        full.commit(group, state, 9.0, 0.0)
    assert full.run().elapsed_s == 2.0
    full._db.execute("PRAGMA max_page_count = 100000")
    full.commit(group, state, 9.0, 0.0)
    assert full.discard_rows()["malformed"] == 2


@pytest.mark.parametrize("kind", [Ledger, LedgerReader])
def test_corrupt_foreign_and_newer_files_are_refused_by_name(tmp_path: Path, kind):
    corrupt = tmp_path / "corrupt.sqlite"
    corrupt.write_bytes(os.urandom(8192))
    with pytest.raises(LedgerError, match=r"corrupt\.sqlite"):
        kind(corrupt)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE x(y)")
    db.close()
    with pytest.raises(LedgerError, match="not a fedmq ledger"):
        kind(foreign)
    newer = tmp_path / "newer.sqlite"
    with Ledger(newer) as ledger:
        ledger._db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="format 99"):
        kind(newer)


def test_reading_a_run_that_has_no_ledger_says_so_and_makes_none(tmp_path: Path):
    with pytest.raises(LedgerError, match="no ledger"):
        LedgerReader(tmp_path / "ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_memories_come_back_with_their_bits_and_a_commit_replaces_those_it_names(ledger: Ledger):
    one = {"w": np.array([[0.1, 2.0]], np.float32), "half": np.array(1.5, ml_dtypes.bfloat16)}
    ledger.commit(CommitGroup(memories={"p1": one, "p2": {"w": np.ones((1, 2), np.float32)}}), ZERO, 1.0, 1.0)
    newer = {"w": np.array([[7.0, 8.0]], ">f4")}
    ledger.commit(CommitGroup(memories={"p2": newer}), ZERO, 2.0, 2.0)
    found = ledger.memories()
    assert {p: {n: (a.dtype.name, a.tolist()) for n, a in arrays.items()} for p, arrays in found.items()} == {
        "p1": {"w": ("float32", one["w"].tolist()), "half": ("bfloat16", 1.5)},
        "p2": {"w": ("float32", [[7.0, 8.0]])},
    }


def test_a_memory_that_was_altered_is_not_taken(ledger: Ledger):
    ledger.commit(CommitGroup(memories={"p1": {"w": np.ones(2, np.float32)}}), ZERO, 1.0, 1.0)
    ledger._db.execute("UPDATE memories SET bytes = zeroblob(8)")
    with pytest.raises(LedgerError, match="'p1', tensor 'w', is damaged"):
        ledger.memories()


def of_format(number: int, path: Path) -> None:
    """Turn a ledger into one of an older format."""
    with sqlite3.connect(path) as db:
        for since, table in (
            (6, "timeouts"),
            (7, "connections"),
            (8, "update_bytes"),
            (8, "task_bytes"),
            (9, "model_bytes"),
            (10, "distillations"),
            (10, "archive_versions"),
        ):
            if number < since:
                db.execute(f"DROP TABLE {table}")
        db.execute(f"PRAGMA user_version = {number}")
    db.close()


def test_a_version_by_a_timeout_is_told_from_the_others(full: Ledger):
    state = CheckpointRow(3, "3.safetensors", "d3", 2, 2, {})
    full.commit(CommitGroup(versions=[(NewVersion(2, ("u-2",), (0.5,), by_timeout=True), AT)]), state, 3.0, 0.0)
    assert [(row.version, row.by_timeout) for row in full.versions()] == [(1, False), (2, True)]
    assert [row.by_timeout for row in full.versions(after=1)] == [True]
    assert full.timeouts() == 1


def test_a_ledger_of_the_format_before_timeouts_is_read_and_a_coordinator_that_goes_on_adds_the_table(full: Ledger):
    path = full.path
    before = full.versions()
    full.close()
    of_format(5, path)
    with LedgerReader(path) as reader, Ledger(path) as ledger:
        assert (reader.versions(), reader.timeouts()) == (ledger.versions(), ledger.timeouts()) == (before, 0)
        ledger.take_over("host", 1, 2.0)
        state = CheckpointRow(3, "3.safetensors", "d3", 2, 2, {})
        ledger.commit(CommitGroup(versions=[(NewVersion(2, ("u-2",), (0.5,), by_timeout=True), AT)]), state, 3.0, 0.0)
        assert reader.timeouts() == 1, "a reader that was open before"
    with LedgerReader(path) as again:
        assert [row.by_timeout for row in again.versions()] == [False, True]


def test_versions_say_if_they_were_distilled_and_where_their_tensors_are(full: Ledger):
    state = CheckpointRow(3, "3.safetensors", "d3", 3, 2, {})
    made = [(NewVersion(2, ("u-2",), (0.5,), plain=""), AT), (NewVersion(3, (), (), plain="the child died"), AT)]
    place = ArchivedVersion(2, "a.updates", 64, 128, 7)
    full.commit(CommitGroup(versions=made, archived=[place]), state, 3.0, 0.0)
    assert [(row.version, row.plain) for row in full.versions()] == [(1, None), (2, ""), (3, "the child died")]
    assert full.distillations(after=2) == {3: "the child died"}
    assert full.plain_versions() == (1, "the child died")
    assert full.archived_versions() == {2: place}
    assert full.archived_versions(after=2) == {}
    assert full.archived_bytes(after_version=2) + 128 == full.archived_bytes()
    assert "a.updates" in full.archive_files()
    full.add_base(Base(2, 2, "b.safetensors", "d", 10, Moment(0.0, 0.0, "boot")))
    assert "a.updates" in full.forget_archived(2)
    assert full.archived_versions() == {}


def test_a_ledger_of_the_format_before_distillations_has_none(full: Ledger):
    path = full.path
    full.close()
    of_format(9, path)
    with LedgerReader(path) as reader:
        assert (reader.distillations(), reader.plain_versions(), reader.archived_versions()) == ({}, (0, ""), {})
        assert [row.plain for row in reader.versions()] == [None]


def test_a_place_of_a_distilled_version_that_leads_out_of_the_folder_is_refused(full: Ledger):
    full._db.execute("INSERT INTO archive_versions VALUES (1, '../x', 0, 1, 0)")
    with pytest.raises(LedgerError, match="not in the run's folder"):
        full.archived_versions()


def test_tables_that_do_not_belong_to_a_ledgers_format_are_refused(full: Ledger):
    full._db.execute("PRAGMA user_version = 5")
    with pytest.raises(LedgerError, match="other tables than fedmq makes"):
        LedgerReader(full.path)
    full._db.execute("PRAGMA user_version = 10")
    full._db.execute("DROP TABLE timeouts")
    with pytest.raises(LedgerError, match="other tables than fedmq makes"):
        LedgerReader(full.path)


def test_the_last_news_of_the_broker_is_kept_and_a_new_epoch_begins_without_any(full: Ledger):
    assert full.broker() is None
    full.take_over("host", 1, 2.0)
    full.note_broker(BrokerRow("disconnected", "socket closed", 5.0))
    full.note_broker(BrokerRow("blocked", "low on memory", 6.0))
    with LedgerReader(full.path) as reader:
        assert reader.broker() == BrokerRow("blocked", "low on memory", 6.0)
        with Ledger(full.path) as successor:
            successor.take_over("host", 2, 7.0)
            with pytest.raises(Deposed):
                full.note_broker(BrokerRow("connected", "", 8.0))
        assert reader.broker() is None


@pytest.mark.parametrize("number", [5, 6])
def test_a_ledger_of_the_format_before_connections_is_read_and_goes_on_with_the_table(full: Ledger, number: int):
    full.close()
    of_format(number, full.path)
    with LedgerReader(full.path) as reader:
        assert reader.broker() is None
    with Ledger(full.path) as ledger:
        ledger.take_over("host", 1, 2.0)
        ledger.note_broker(BrokerRow("connected", "", 3.0))
        assert ledger.broker() == BrokerRow("connected", "", 3.0)


def test_the_bytes_of_updates_and_tasks_are_in_the_commit_that_has_them(full: Ledger):
    state = CheckpointRow(3, "3.safetensors", "d3", 2, 4, {})
    group = CommitGroup(
        accepted=[
            (Accept(6, update(4), 0, 1.0, 3, carried=Carried(300, 1000)), AT),
            (Accept(7, update(5), 0, 1.0, 4, carried=Carried(200, 1000)), AT),
        ],
        versions=[(NewVersion(2, ("u-2", "u-4", "u-5"), (0.5, 0.5, 0.5)), AT)],
        sent=[(4, 50, 70), (5, 60, 70), (4, 50, 70)],
    )
    full.commit(group, state, 3.0, 0.0)
    assert full.bytes_up() == Traffic(2, 500, 2000)
    assert full.bytes_down() == Traffic(2, 160, 210), "a task that was sent again counts again"
    assert [(row.update_id, row.wire_bytes, row.decoded_bytes) for row in full.updates_in(2)] == [
        ("u-2", None, None), ("u-4", 300, 1000), ("u-5", 200, 1000),
    ]  # fmt: skip
    with pytest.raises(LedgerError):  # the broker's second copy of a commit that was made
        full.commit(group, state, 4.0, 0.0)
    assert (full.bytes_up(), full.bytes_down()) == (Traffic(2, 500, 2000), Traffic(2, 160, 210))


@pytest.mark.parametrize("number", [5, 7])
def test_a_ledger_of_the_format_before_bytes_is_read_and_counts_from_then_on(full: Ledger, number: int):
    full.close()
    of_format(number, full.path)
    with LedgerReader(full.path) as reader:
        assert (reader.bytes_up(), reader.bytes_down()) == (Traffic(0, 0, 0), Traffic(0, 0, 0))
        assert [row.wire_bytes for row in reader.updates_in(1)] == [None]
    with Ledger(full.path) as ledger:
        ledger.take_over("host", 1, 2.0)
        accepted = [(Accept(6, update(4), 0, 1.0, 3, carried=Carried(300, 1000)), AT)]
        state = CheckpointRow(3, "3.safetensors", "d3", 1, 3, {})
        ledger.commit(CommitGroup(accepted=accepted, sent=[(6, 50, 70)]), state, 3.0, 0.0)
        assert (ledger.bytes_up(), ledger.bytes_down()) == (Traffic(1, 300, 1000), Traffic(1, 50, 70))


def test_a_model_counts_as_it_was_sent_and_as_its_tasks_read_it(full: Ledger):
    state = CheckpointRow(3, "3.safetensors", "d3", 1, 2, {})
    rows = [ModelBytes(1, sent_bytes=100), ModelBytes.read(1, 100), ModelBytes.read(1, 100), ModelBytes.read(2, 50)]
    full.commit(CommitGroup(models=rows), state, 3.0, 0.0)
    assert full.bytes_of_models(1) == ModelBytes(1, 100, 2, 200)
    assert full.bytes_of_models() == ModelBytes(-1, 100, 3, 250)
    assert full.bytes_of_models(7) == ModelBytes(7)


def test_a_ledger_of_the_format_before_models_is_read_and_counts_from_then_on(full: Ledger):
    full.close()
    of_format(8, full.path)
    with LedgerReader(full.path) as reader:
        assert reader.bytes_of_models() == ModelBytes(-1)
    with Ledger(full.path) as ledger:
        ledger.take_over("host", 1, 2.0)
        state = CheckpointRow(3, "3.safetensors", "d3", 1, 2, {})
        ledger.commit(CommitGroup(models=[ModelBytes.read(1, 100)]), state, 3.0, 0.0)
        assert ledger.bytes_of_models() == ModelBytes(-1, 0, 1, 100)


@pytest.mark.parametrize("how", ["replaced", "removed"])
@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.sqlite-wal"])
def test_a_ledger_that_is_taken_from_under_its_writer_is_noticed(ledger, tmp_path, name, how):
    ledger.take_over("host", 1, 1.0)
    assert ledger.in_place()
    if how == "removed":
        (tmp_path / name).unlink()
    else:  # as rsync does it, and whoever puts a backup back
        shutil.copy(tmp_path / name, tmp_path / "copy")
        (tmp_path / "copy").rename(tmp_path / name)
    ledger.note_broker(BrokerRow("connected", "", 2.0))  # SQLite does not notice
    assert not ledger.in_place()


def test_a_ledger_that_others_read_and_tidy_stays_in_place(ledger, tmp_path):
    ledger.take_over("host", 1, 1.0)
    with LedgerReader(tmp_path / "ledger.sqlite") as reader:
        assert reader.run().run_id == "r"
    with sqlite3.connect(tmp_path / "ledger.sqlite") as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    ledger.note_broker(BrokerRow("connected", "", 2.0))
    assert ledger.in_place()
