"""A buffer with a timeout in deployments: crashes, standbys, verify, replay, explain and the real command line."""

import json
import sqlite3
import threading

import pytest

from fedmq.cli.cli import main
from fedmq.coordinator.audit import audit
from fedmq.coordinator.service.leading import leadership
from fedmq.coordinator.settings import ArchiveSettings, StopSettings
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import Area, Ca2fl, FedBuff, FedNova
from fedmq.studies.engine.replay import replay
from tests.integration.coordinator.federation import DEADLINE_S, same_bits
from tests.integration.coordinator.test_crashes import Crashed, crash_at

TIMED = FedBuff(buffer_size=20, buffer_timeout_s=0.05, min_updates=2)
STRATEGIES = [
    TIMED,
    Ca2fl(num_participants=3, buffer_size=20, buffer_timeout_s=0.05),
    Area(num_participants=3, buffer_size=4, buffer_timeout_s=0.05),
    FedNova(buffer_size=20, buffer_timeout_s=0.05, min_updates=2),
]
TIMES = "versions by a timeout follow from its time"


def naps(p, task):
    """Train, and take longer over every third task than the buffer waits."""
    if len(p.tasks) % 3 == 0:
        threading.Event().wait(0.08)
    p.train(task)


def run_of(federation, strategy=TIMED, join=True, versions=5):
    federation.strategy, federation.archive = strategy, ArchiveSettings(max_bytes=2**30)
    federation.stop = StopSettings(max_versions=versions)
    for i in range(3 if join else 0):
        federation.join(f"p{i}", naps)
    return federation.run()


def checked(federation):
    """Return the versions of a run that verifies and replays to its own bits."""
    checks = {check.name: check for check in audit.verify(RunFolder(federation.run_dir))}
    assert [check for check in checks.values() if check.wrong or check.left_out] == []
    assert TIMES in checks
    assert any("bit for bit" in name for name in checks)
    outcome = replay(federation.run_dir)
    assert same_bits(outcome.parameters, federation.final())
    with federation.ledger() as ledger:
        points = ledger.versions()
    assert list(outcome.version_s) == [point.run_s for point in points]
    assert outcome.by_timeout == [point.version for point in points if point.by_timeout]
    return points


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_a_run_of_buffers_that_do_not_fill_verifies_and_replays_bit_for_bit(federation, strategy):
    assert run_of(federation, strategy).version == 5
    assert sum(point.by_timeout for point in checked(federation)) >= 2


@pytest.mark.parametrize(
    ("strategy", "point"),
    [(TIMED, "before-checkpoint"), (TIMED, "after-ledger"), (STRATEGIES[1], "before-acks")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_crash_with_a_half_filled_buffer_loses_nothing_and_the_run_replays_bit_for_bit(
    federation, monkeypatch, strategy, point
):
    crash_at(monkeypatch, point, 4)
    with pytest.raises(Crashed):
        run_of(federation, strategy)
    assert run_of(federation, strategy, join=False).version == 5
    assert checked(federation)[-1].version == 5
    with federation.ledger() as ledger:
        assert len({row.update_id for row in ledger.updates()}) == ledger.accepted()


def answers_once(p, task):
    """Answer the first task, and sleep from then on."""
    if len(p.tasks) == 1:
        p.train(task)


@pytest.mark.parametrize("successor", ["restart", "standby"])
def test_the_time_of_a_half_filled_buffer_goes_on_at_the_next_coordinator(federation, monkeypatch, successor):
    monkeypatch.setattr(leadership, "ANSWER_S", 0.05)
    federation.strategy = FedBuff(buffer_size=20, buffer_timeout_s=0.8, min_updates=3)
    federation.archive, federation.stop = ArchiveSettings(max_bytes=2**30), StopSettings(max_versions=1)
    people = [federation.join(f"p{i}", answers_once) for i in range(3)]
    first = federation.service()
    active = federation.start(first)
    for p in people:
        p.wait_until(lambda p=p: p.receipts)  # receipts follow the commit
    waiting = federation.start(federation.service()) if successor == "standby" else None
    first.stop()
    assert active.result(DEADLINE_S).version == 0
    with federation.ledger() as ledger:
        opened_s, rows = ledger.checkpoints()[0].scalars["buffer_opened_s"], ledger.updates()
    assert opened_s == rows[0].run_s
    summary = federation.run() if waiting is None else waiting.result(DEADLINE_S)
    assert (summary.finished, summary.version, summary.accepted) == ("max_versions", 1, 3)
    (point,) = checked(federation)
    assert (point.by_timeout, point.num_updates) == (True, 3)
    assert point.run_s >= opened_s + 0.8


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM timeouts WHERE version = 1",
        "UPDATE versions SET run_s = run_s - 0.04 WHERE version = 1",
        "UPDATE run SET settings = json_set(settings, '$.strategy.buffer_timeout_s', 60.0)",
        "UPDATE run SET settings = json_remove(settings, '$.strategy.buffer_timeout_s', '$.strategy.min_updates')",
        "UPDATE run SET settings = json_set(settings, '$.strategy.min_updates', 19)",
    ],
)
def test_a_ledger_that_says_so_of_other_versions_fails_the_check(federation, statement):
    run_of(federation, versions=2)
    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        assert db.execute(statement).rowcount > 0
    db.close()
    assert TIMES in {check.name for check in audit.verify(RunFolder(federation.run_dir)) if not check.holds}


def test_explain_says_which_version_the_timeout_made(federation, capsys):
    run_of(federation, versions=2)

    def explained(*options):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["explain", str(federation.run_dir), "1", *options])
        return capsys.readouterr().out

    assert "by its buffer's timeout" in " ".join(explained().split())
    assert json.loads(explained("--json"))["point"]["by_timeout"] is True


def test_a_run_of_a_ledger_without_the_table_goes_on_and_is_read_before_that(federation):
    federation.stop = StopSettings(max_versions=10_000)
    p, first = federation.join("p0"), federation.service()
    active = federation.start(first)
    p.wait_until(lambda: len(p.receipts) > 6)
    first.stop()
    made = active.result(DEADLINE_S).version
    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        for table in (
            "timeouts", "connections", "update_bytes", "task_bytes", "model_bytes", "distillations",
            "archive_versions",
        ):  # fmt: skip
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 5")
        settings = json.loads(db.execute("SELECT settings FROM run").fetchone()[0])
        del settings["strategy"]["buffer_timeout_s"], settings["strategy"]["min_updates"]
        db.execute("UPDATE run SET settings = ?", (json.dumps(settings),))
        db.execute("UPDATE checkpoints SET scalars = json_remove(scalars, '$.buffer_opened_s')")
    db.close()
    assert not [check for check in audit.verify(RunFolder(federation.run_dir)) if check.wrong]
    federation.stop = StopSettings(max_versions=made + 2)
    assert federation.run().version == made + 2
    assert not [check for check in audit.verify(RunFolder(federation.run_dir)) if check.wrong]
    with federation.ledger() as ledger:
        after = [row.accepted_order for row in ledger.updates() if row.accepted_order >= ledger.counted_orders()[0]]
        assert 0 < len(after) < ledger.accepted()
        assert ledger.counted_orders() == after, "bytes are counted from then on"
    assert same_bits(federation.final(), federation.replayed())
