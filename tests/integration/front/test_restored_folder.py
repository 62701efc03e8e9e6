"""Both roles in one process: a run folder is put back from a backup while the participants live on.

The lease is 600 s. A slot that waited for a task of the lost past would outlast the test.
"""

from __future__ import annotations

import shutil
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.coordinator.audit import audit
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import Area, FedAvg, FedBuff, Scaffold
from fedmq.coordinator.strategies.ca2fl import Ca2fl
from fedmq.coordinator.strategies.fedasync import FedAsync
from fedmq.coordinator.strategies.fedcompass import FedCompass
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.replay import replay
from fedmq.views.status import read_status
from tests.integration.chunks.federation import until
from tests.integration.coordinator.test_standby import Said
from tests.integration.front.test_memory import Trainer

DEADLINE_S = 30.0
LEASE_S = 600.0
TOPOLOGY = Topology()
VERSIONS = 9
ADDED = ("duplicate", "run_finished", "task_closed", "set_back")


class World:
    """A run folder, its broker, its participants and the coordinators that come and go."""

    def __init__(self, folder, strategy, said):
        self.folder, self.strategy, self.said = folder, strategy, said
        self.run_dir, self.backup = folder / "run", folder / "backup"
        self.broker, self.pool = EmbeddedBroker(), ThreadPoolExecutor()
        self.participants: list[tuple[ParticipantService, Future]] = []
        self._active: tuple[CoordinatorService, Future] | None = None

    def coordinator(self, run_dir=None):
        run = RunSettings(
            run_id="r", concurrency=2, stop=StopSettings(max_versions=VERSIONS), decline_backoff_s=0,
            participant_timeout_s=1000, min_participants=2, lease_s=LEASE_S,
        )  # fmt: skip
        service = CoordinatorService(
            run_dir=run_dir or self.run_dir, run=run, commit=CommitSettings(commit_interval_s=0.02),
            strategy=self.strategy, training=TrainingConfig(learning_rate=0.5),
            connect=lambda: EmbeddedTransport(self.broker, "coordinator"), topology=TOPOLOGY,
            initial_parameters=lambda: Parameters({"x": np.zeros(1)}), max_message_bytes=MAX_MESSAGE_BYTES,
            archive=ArchiveSettings(max_bytes=2**20),
        )  # fmt: skip
        self._active = service, self.pool.submit(service.run)

    def join(self, *names):
        for name in names:
            service = ParticipantService(
                participant_id=name, settings=ParticipantSettings(hello_interval_s=0.2), trainer=Trainer(),
                transport=EmbeddedTransport(self.broker, name), topology=TOPOLOGY, spool_dir=self.folder / "spool",
                max_message_bytes=MAX_MESSAGE_BYTES,
            )  # fmt: skip
            self.participants.append((service, self.pool.submit(service.run)))

    def until(self, version):
        """Let the coordinator work to this version at least, and stop it with its tasks out."""
        self.said.wait_for(f"event=version_made version={version} ")
        self.stop()

    def stop(self):
        service, run = self._active
        service.stop()
        assert run.result(DEADLINE_S).finished is None

    def back_up_at(self, version):
        """Copy the folder of a coordinator that worked to this version at least, and stopped."""
        self.coordinator()
        self.until(version)
        shutil.copytree(self.run_dir, self.backup)

    def put_back(self):
        shutil.rmtree(self.run_dir)
        shutil.copytree(self.backup, self.run_dir)
        self.said.forget()

    def finish(self):
        assert self._active[1].result(DEADLINE_S).finished == "max_versions"
        assert [run.result(DEADLINE_S) for _, run in self.participants] == ["run_finished"] * len(self.participants)

    def unsettled(self):
        """Return the updates whose verdict decides on a participant's memory."""
        return {path.stem for path in (self.folder / "spool").glob("*/memory/next/*.fedmq")}

    def ledger(self):
        return LedgerReader(self.run_dir / "ledger.sqlite")

    def check(self):
        """Check what holds for every run, of what the restored ledger knows, and return its accepted updates."""
        checks = audit.verify(RunFolder(self.run_dir))
        assert [check for check in checks if not check.holds or check.left_out] == []
        with self.ledger() as ledger:
            assert set(ledger.discarded()) <= set(ADDED), ledger.discarded()
            rows = ledger.updates()
        assert len({row.task_id for row in rows}) == len(rows)
        final = checkpoint.read(self.run_dir / "final.safetensors").arrays
        assert replay(self.run_dir).parameters["x"].tobytes() == final["x"].tobytes()
        return rows

    def close(self):
        for service, _ in [*self.participants, *([self._active] if self._active else [])]:
            service.stop()
        self.pool.shutdown()


class Lines(Said):
    def forget(self):
        with self.changed:
            self.lines.clear()


@pytest.fixture
def world(tmp_path, caplog, monkeypatch):
    made = []

    def make(strategy):
        made.append(World(tmp_path, strategy, Lines(caplog, monkeypatch)))
        return made[0]

    yield make
    for one in made:
        one.close()


STRATEGIES = [
    FedBuff(buffer_size=2), FedAsync(), FedAvg(cohort_size=2, min_updates=2), Ca2fl(num_participants=2, buffer_size=2),
    Area(num_participants=2, buffer_size=2), FedCompass(num_participants=2, min_steps=1, max_steps=3),
    Area(num_participants=2, buffer_size=2, memory="participant"),
    Area(num_participants=2, buffer_size=20, memory="participant", buffer_timeout_s=0.1, min_updates=1),
    Scaffold(num_participants=2, buffer_size=2), Scaffold(num_participants=2, cohort_size=2, min_updates=2),
]  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.name}-{s.reply}-{s.cohort is not None}")
def test_a_restored_run_notices_says_what_it_lost_and_goes_on_at_once(world, strategy):
    one = world(strategy)
    one.join("p0", "p1")
    one.back_up_at(3)
    with one.ledger() as ledger:
        version = ledger.version()
    one.coordinator()
    one.until(6)
    with one.ledger() as ledger:
        lost = {row.update_id for row in ledger.updates()}
        lost_version = ledger.version()
    one.put_back()
    with one.ledger() as ledger:
        kept = {row.update_id for row in ledger.updates()}
        open_then = {task.task_id for task in ledger.open_tasks()}
    one.coordinator()
    one.finish()
    rows = one.check()
    with one.ledger() as ledger:
        (found,) = ledger.set_backs()
    assert found.version == version
    assert version < found.lost_version <= lost_version
    assert found.anew == (strategy.reply in ("change", "scaffold"))
    one.said.wait_for('event=ledger_set_back run=r detail="the folder was restored from a backup')
    assert read_status(one.run_dir).set_backs == (found.told(),)
    assert found.told() in [check.name for check in audit.verify(RunFolder(one.run_dir))]
    again = {row.update_id for row in rows} & (lost - kept)
    assert {row.task_id for row in rows if row.update_id in again} <= open_then, "no lost task's update counts"


@pytest.mark.parametrize("lost_copies", [False, True], ids=["crash", "damaged-checkpoints"])
def test_a_method_that_began_anew_goes_on_from_there_after_another_crash(world, lost_copies):
    """The archive gives the state again if both checkpoint files are gone, and begins anew at the same place."""
    one = world(Area(num_participants=2, buffer_size=2, memory="participant"))
    one.join("p0", "p1")
    one.back_up_at(2)
    one.coordinator()
    one.until(4)
    one.put_back()
    one.coordinator()
    one.said.wait_for("event=ledger_set_back ")
    one.until(5)
    if lost_copies:
        with one.ledger() as ledger:
            newest = ledger.checkpoints()[0].file
        for folder in ("checkpoints", "copies"):
            (one.run_dir / folder / newest).unlink(missing_ok=True)
        for older in (one.run_dir / "checkpoints").glob("*.safetensors"):
            older.unlink()
    one.coordinator()
    one.finish()
    one.check()
    assert ("event=checkpoint_rebuilt" in " ".join(one.said.lines)) == lost_copies
    with one.ledger() as ledger:
        assert len(ledger.set_backs()) == 1


def test_a_copy_that_was_made_while_the_run_went_on_serves_as_well(world):
    """The ledger by SQLite's own backup, and then the checkpoints and the archive as plain files."""
    one = world(Area(num_participants=2, buffer_size=2, memory="participant"))
    one.join("p0", "p1")
    one.coordinator()
    one.said.wait_for("event=version_made version=3 ")
    one.backup.mkdir()
    source, target = (sqlite3.connect(folder / "ledger.sqlite") for folder in (one.run_dir, one.backup))
    source.backup(target)
    for name in ("checkpoints", "copies", "archive"):
        shutil.copytree(one.run_dir / name, one.backup / name)
    source.close()
    target.close()
    one.until(6)
    one.put_back()
    one.coordinator()
    one.finish()
    one.check()
    with one.ledger() as ledger:
        assert [one.anew for one in ledger.set_backs()] == [True]


def test_updates_and_memories_that_wait_in_the_spools_of_the_lost_past_are_discarded_and_hold_nobody_up(world):
    """The participants stop with their work on disk, and the broker is lost together with the folder."""
    one = world(Area(num_participants=2, buffer_size=2, memory="participant"))
    one.join("p0", "p1")
    one.back_up_at(3)
    one.coordinator()
    one.until(6)
    until(one.unsettled)  # trained for the stopped coordinator, and sent to nobody
    for service, run in one.participants:
        service.stop()
        assert run.result(DEADLINE_S) == "stopped"
    one.participants.clear()
    held = one.unsettled()
    assert held
    one.broker = EmbeddedBroker()
    one.put_back()
    one.coordinator()
    one.join("p0", "p1")
    one.finish()
    rows = one.check()
    assert not {row.update_id for row in rows} & held
    assert not one.unsettled()
