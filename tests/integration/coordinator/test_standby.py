"""Two coordinators of one run, over the embedded broker: one is active, the other takes over."""

import sqlite3
import threading

import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.coordinator.service import loop
from fedmq.coordinator.service.commits import after_commit, commit
from fedmq.coordinator.service.leading import leadership, standby
from fedmq.coordinator.service.outgoing import publishing
from fedmq.coordinator.settings import StopSettings
from fedmq.coordinator.state.ledger.writer import Ledger
from fedmq.schemas.errors import ConfigError, LedgerError
from fedmq.schemas.messages import TrainingConfig
from tests.integration.coordinator.federation import DEADLINE_S, TOPOLOGY, same_bits


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(leadership, "ANSWER_S", 0.05)


def epochs_of(federation):
    with federation.ledger() as ledger:
        return ledger._rows("SELECT epoch, ended_wall_s IS NULL FROM epochs ORDER BY epoch")


class Said:
    """The lines of the log, and a wait for them."""

    def __init__(self, caplog, monkeypatch):
        self.lines, self.changed = [], threading.Condition()
        caplog.set_level("INFO", "fedmq.coordinator")
        monkeypatch.setattr(caplog.handler, "emit", self._emit)

    def _emit(self, record):
        with self.changed:
            self.lines.append(record.getMessage())
            self.changed.notify_all()

    def wait_for(self, text, times=1):
        with self.changed:
            found = self.changed.wait_for(lambda: sum(text in line for line in self.lines) >= times, DEADLINE_S)
            assert found, (text, self.lines)


@pytest.fixture
def said(caplog, monkeypatch):
    return Said(caplog, monkeypatch)


def test_a_standby_waits_says_for_whom_and_takes_over_when_the_active_one_leaves(federation, monkeypatch, said):
    """The takeover is faster than the note in the ledger of the one that leaves."""
    go, leave = threading.Event(), Ledger.leave

    def late(ledger, wall_s):
        if ledger.epoch == 1:
            said.wait_for('epoch=2 after="the coordinator with pid')
        leave(ledger, wall_s)

    monkeypatch.setattr(Ledger, "leave", late)
    for i in range(3):
        federation.join(f"p{i}", lambda p, task: (len(p.tasks) < 2 or go.wait(DEADLINE_S), p.train(task)))
    first = federation.service()
    active = federation.start(first)
    said.wait_for("event=active run=r1 epoch=1")
    standby = federation.start(federation.service())
    said.wait_for('event=standby waits_for="the coordinator with pid')
    assert not standby.done()
    first.stop()
    left = active.result(DEADLINE_S)
    go.set()
    assert left.finished is None
    summary = standby.result(DEADLINE_S)
    assert (summary.finished, summary.version) == ("max_versions", 5)
    assert epochs_of(federation) == [(1, 0), (2, 0)]
    assert same_bits(federation.final(), federation.replayed())


def test_a_standby_ends_well_when_the_active_one_finishes_the_run(federation, said):
    go = threading.Event()
    federation.join("p0", lambda p, task: (go.wait(DEADLINE_S), p.train(task)))
    active = federation.start(federation.service())
    said.wait_for("epoch=1")
    standby = federation.start(federation.service())
    said.wait_for("event=standby ")
    go.set()
    assert standby.result(DEADLINE_S) == active.result(DEADLINE_S)
    assert active.result().finished == "max_versions"


def test_a_standby_that_is_stopped_leaves_the_run_alone(federation, said):
    go = threading.Event()
    federation.join("p0", lambda p, task: (go.wait(DEADLINE_S), p.train(task)))
    active = federation.start(federation.service())
    said.wait_for("epoch=1")
    service = federation.service()
    standby = federation.start(service)
    said.wait_for("event=standby ")
    service.stop()
    assert standby.result(DEADLINE_S).finished is None
    go.set()
    assert active.result(DEADLINE_S).finished == "max_versions"
    assert epochs_of(federation) == [(1, 0)]


@pytest.mark.parametrize("point", ["before-checkpoint", "before-ledger"])
def test_who_is_deposed_in_the_middle_of_a_commit_commits_and_acks_nothing_and_stands_by(
    federation, monkeypatch, said, point
):
    """The coordinator is paused inside its commit while the broker drops its connection and another one takes over."""
    federation.stop = StopSettings(max_versions=8)
    paused, go_on, passes = threading.Event(), threading.Event(), [0]

    def fault(name):
        passes[0] += name == point
        if passes[0] == 3 and not paused.is_set():
            paused.set()
            assert go_on.wait(DEADLINE_S)

    for module in (after_commit, commit, loop, publishing):
        monkeypatch.setattr(module, "fault", fault)
    acked = []

    class Old(EmbeddedTransport):
        def ack(self, delivery):
            if paused.is_set() and delivery.queue == TOPOLOGY.updates.name:
                acked.append(delivery)
            return super().ack(delivery)

    held = threading.Event()
    federation.join("p0", lambda p, task: (task.base_version < 4 or held.wait(DEADLINE_S), p.train(task)))
    old = federation.start(federation.service(connect=lambda: Old(federation.broker, "old")))
    assert paused.wait(DEADLINE_S)
    new = federation.start(federation.service(connect=lambda: EmbeddedTransport(federation.broker, "new")))
    said.wait_for("event=standby ")
    assert federation.broker.drop_connections("old") == 1
    said.wait_for('epoch=2 after="the coordinator with pid')
    said.wait_for("event=version_made version=2 ")
    go_on.set()
    said.wait_for("event=standing_by_again")
    assert acked == []
    held.set()
    assert (new.result(DEADLINE_S).version, old.result(DEADLINE_S).version) == (8, 8)
    assert epochs_of(federation) == [(1, 1), (2, 0)]
    assert same_bits(federation.final(), federation.replayed())
    assert any("taken over by the coordinator with pid" in line for line in said.lines)


def test_a_coordinator_on_another_copy_of_the_folder_is_refused(federation, said, tmp_path):
    federation.join("p0", lambda p, task: None)
    service = federation.service()
    running = federation.start(service)
    said.wait_for("epoch=1")
    with pytest.raises(LedgerError, match="works on another run, or on another copy of this folder"):
        federation.run(run_dir=tmp_path / "elsewhere")
    service.stop()
    running.result(DEADLINE_S)


def test_a_copy_of_a_folder_whose_coordinator_is_at_work_is_refused_and_no_standby(federation, said, tmp_path):
    """The copy's ledger says that a coordinator is active. It is, but not in the copy."""
    go = threading.Event()
    federation.join("p0", lambda p, task: (go.wait(DEADLINE_S), p.train(task)))
    active = federation.start(federation.service())
    said.wait_for("event=active run=r1 epoch=1")
    source, target = sqlite3.connect(federation.run_dir / "ledger.sqlite"), tmp_path / "copy"
    target.mkdir()
    copied = sqlite3.connect(target / "ledger.sqlite")
    source.backup(copied)
    for one in (source, copied):
        one.close()
    with pytest.raises(LedgerError, match="works on another run, or on another copy of this folder"):
        federation.start(federation.service(run_dir=target)).result(DEADLINE_S)
    standby = federation.start(federation.service())
    said.wait_for('event=standby waits_for="the coordinator with pid')
    go.set()
    assert standby.result(DEADLINE_S) == active.result(DEADLINE_S)


def test_a_coordinator_of_the_folder_over_another_broker_or_prefix_is_refused(federation, said):
    federation.join("p0", lambda p, task: None)
    service = federation.service()
    running = federation.start(service)
    said.wait_for("epoch=1")
    elsewhere = EmbeddedBroker()
    with pytest.raises(LedgerError, match="start this one with another run_id"):
        federation.run(connect=lambda: EmbeddedTransport(elsewhere))
    with pytest.raises(LedgerError, match="with prefix other"):
        federation.run(topology=Topology("other"))
    service.stop()
    running.result(DEADLINE_S)


def test_a_standby_hears_of_wrong_settings_at_once(federation, said):
    federation.join("p0", lambda p, task: None)
    service = federation.service()
    running = federation.start(service)
    said.wait_for("event=run_created")
    with pytest.raises(ConfigError, match=r"training\.epochs was 1 and is now 2"):
        federation.run(training=TrainingConfig(epochs=2), connect=None)
    service.stop()
    running.result(DEADLINE_S)


def test_a_standby_does_not_take_a_coordinator_that_is_leaving_for_one_of_another_folder(federation, monkeypatch, said):
    """The last messages of the one that leaves may take seconds, and it keeps the token for as long."""
    looks, go_on = threading.Semaphore(0), threading.Event()
    looking, waiting = standby._active, threading.Event()

    def look(folder):
        found = looking(folder)
        if waiting.is_set():
            looks.release()
        return found

    class Slow(EmbeddedTransport):
        def close(self, timeout_s=5.0):
            waiting.set()
            assert go_on.wait(DEADLINE_S)
            super().close(timeout_s)

    monkeypatch.setattr(standby, "_active", look)
    monkeypatch.setattr(leadership, "ASK_AGAIN_S", 0.05)
    federation.join("p0", lambda p, task: go_on.wait(DEADLINE_S) and p.train(task))
    first = federation.service(connect=lambda: Slow(federation.broker))
    active = federation.start(first)
    said.wait_for("epoch=1")
    other = federation.start(federation.service())
    said.wait_for("event=standby ")
    first.stop()
    assert waiting.wait(DEADLINE_S)
    for _ in range(5):
        assert looks.acquire(timeout=DEADLINE_S)
    assert not other.done()
    go_on.set()
    assert active.result(DEADLINE_S).finished is None
    assert other.result(DEADLINE_S).finished == "max_versions"
    assert epochs_of(federation)[-1] == (2, 0)
