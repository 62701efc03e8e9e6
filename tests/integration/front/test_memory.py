"""Both roles in one process: a participant's memory agrees with the coordinator's books, whatever crashes.

The model is 0 at first. A participant trains to a number that depends only on its task's seed. So AREA's model is at
any time the mean of the numbers in the participants' last accepted updates.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import MAX_MESSAGE_BYTES, Topology
from fedmq.coordinator.audit import audit
from fedmq.coordinator.decisions.task_desk import task_seed
from fedmq.coordinator.decisions.tasks.names import parsed
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import Area, Scaffold
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.trainer import TrainResult
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters
from fedmq.studies.engine.replay import replay

DEADLINE_S = 30.0
TOPOLOGY = Topology()
POINTS = (
    "task-on-disk", "trained", "next-memory-on-disk", "update-on-disk", "task-cleared", "update-sent",
    "before-remembered", "before-memory-moved", "memory-moved", "update-cleared",
)  # fmt: skip


class Crash(BaseException):
    """A stand-in for SIGKILL: nothing after it is done."""


def number_of(seed):
    return float(np.random.default_rng(seed).normal())


class Trainer:
    num_examples = 10

    def __init__(self, gate=None):
        self._gate = gate

    def train(self, parameters, config, correction=None):
        if self._gate is not None:
            assert self._gate.wait(DEADLINE_S)
        if correction is None:
            return TrainResult({"x": np.array([number_of(config.seed)])}, 10, 1)
        gradient = parameters["x"] - number_of(config.seed)
        return TrainResult({"x": parameters["x"] - config.learning_rate * (gradient + correction["x"])}, 10, 1)


class Room:
    def __init__(self, folder, strategy, max_updates):
        self.folder, self.strategy, self.broker = folder, strategy, EmbeddedBroker()
        self.pool = ThreadPoolExecutor()
        self.running = []
        run = RunSettings(
            run_id="r", concurrency=2, stop=StopSettings(max_updates=max_updates), decline_backoff_s=0,
            participant_timeout_s=1000, min_participants=2,
        )  # fmt: skip
        self.coordinator = CoordinatorService(
            run_dir=folder / "run", run=run, commit=CommitSettings(commit_interval_s=0.02), strategy=strategy,
            training=TrainingConfig(learning_rate=0.5), connect=lambda: EmbeddedTransport(self.broker, "coordinator"),
            topology=TOPOLOGY, initial_parameters=lambda: Parameters({"x": np.zeros(1)}),
            max_message_bytes=MAX_MESSAGE_BYTES, archive=ArchiveSettings(max_bytes=2**20),
        )  # fmt: skip
        self.run = self.pool.submit(self.coordinator.run)

    def participant(self, name, gate=None):
        return ParticipantService(
            participant_id=name, settings=ParticipantSettings(hello_interval_s=0.2), trainer=Trainer(gate),
            transport=EmbeddedTransport(self.broker, name), topology=TOPOLOGY, spool_dir=self.folder / "spool",
            max_message_bytes=MAX_MESSAGE_BYTES,
        )  # fmt: skip

    def join(self, name, gate=None):
        service = self.participant(name, gate)
        self.running.append(service)
        return self.pool.submit(service.run)

    def rows(self):
        with LedgerReader(self.folder / "run" / "ledger.sqlite") as ledger:
            assert set(ledger.discarded()) <= {"duplicate", "run_finished", "task_closed"}, ledger.discarded()
            return ledger.updates()

    def check(self):
        """Run the ledger's own checks, the replay of the archive among them."""
        folder = RunFolder(self.folder / "run")
        assert [check for check in audit.verify(folder) if not check.holds or check.left_out] == []

    def final(self):
        return float(checkpoint.read(self.folder / "run" / "final.safetensors").arrays["x"][0])

    def close(self):
        for service in (*self.running, self.coordinator):
            service.stop()
        self.pool.shutdown()


@pytest.fixture
def armed(monkeypatch):
    """Return a fault point of the participant "p0" that crashes it once, the second time it gets there."""
    state = {"point": "", "left": 0, "died": []}

    def fault(name):
        if name != state["point"] or threading.current_thread().name.partition(":")[0] != "p0":
            return
        state["left"] -= 1
        if state["left"] == 0:
            state["died"].append(name)
            raise Crash(name)

    for module in ("service", "task_intake", "publishing", "sending"):
        monkeypatch.setattr(f"fedmq.participant.service.{module}.fault", fault)
    return state


def run_named(service):
    threading.current_thread().name = "p0"
    try:
        return service.run()
    finally:
        threading.current_thread().name = "done"


@pytest.fixture
def room(tmp_path):
    made = []

    def make(strategy, max_updates):
        made.append(Room(tmp_path, strategy, max_updates))
        return made[0]

    yield make
    for one in made:
        one.close()


def test_area_is_the_mean_of_the_last_accepted_numbers_though_a_participant_crashes_at_every_point(room, armed, caplog):
    caplog.set_level(logging.ERROR)
    one = room(Area(num_participants=2, memory="participant"), 60)
    crashed = threading.Event()
    other = one.join("p1", gate=crashed)
    for point in POINTS:
        armed.update(point=point, left=2)
        with pytest.raises(Crash, match=point):
            one.pool.submit(run_named, one.participant("p0")).result(DEADLINE_S)
    armed.update(point="")
    crashed.set()
    last = one.join("p0")
    assert one.run.result(DEADLINE_S).finished == "max_updates"
    assert (last.result(DEADLINE_S), other.result(DEADLINE_S)) == ("run_finished", "run_finished")
    assert armed["died"] == list(POINTS)
    newest = {row.participant_id: number_of(task_seed(0, parsed(row.task_id).seq)) for row in one.rows()}
    assert len([row for row in one.rows() if row.participant_id == "p0"]) > len(POINTS)
    assert one.final() == pytest.approx(sum(newest.values()) / 2, abs=1e-12)
    one.check()
    assert not list((one.folder / "spool").glob("*/memory/**/*.fedmq")), "the run is over: nothing of it is kept"


def test_scaffolds_control_variates_add_up_to_the_coordinators(room):
    one = room(Scaffold(num_participants=2, buffer_size=1), 12)
    people = [one.join(name) for name in ("p0", "p1")]
    assert one.run.result(DEADLINE_S).finished == "max_updates"
    assert [p.result(DEADLINE_S) for p in people] == ["run_finished"] * 2
    # One step of η = 1/2 from x_b to y: Δc = 2·(x_b - y) - c, and c + Δc is the gradient there minus the correction.
    x, versions, control, own = 0.0, [(0.0, 0.0)], 0.0, {}
    for row in one.rows():
        base, c = versions[row.base_version]
        gradient = base - number_of(task_seed(0, parsed(row.task_id).seq))
        mine = own.get(row.participant_id, 0.0)
        y = base - 0.5 * (gradient + c - mine)
        change = (base - y) / 0.5 - c
        own[row.participant_id] = mine + change
        assert own[row.participant_id] == pytest.approx(gradient), "option II: the mean of its own gradients"
        x, control = x + y - base, control + change / 2
        versions.append((x, control))
    assert len(own) == 2
    assert control == pytest.approx(sum(own.values()) / 2)
    one.check()
    assert float(replay(one.folder / "run").parameters["x"][0]) == one.final()
    assert one.final() == pytest.approx(x, abs=1e-12)


def test_scaffolds_rounds_replay_in_the_engine_with_what_participants_remembered(room):
    one = room(Scaffold(num_participants=2, cohort_size=2), 12)
    people = [one.join(name) for name in ("p0", "p1")]
    assert one.run.result(DEADLINE_S).finished == "max_updates"
    assert [p.result(DEADLINE_S) for p in people] == ["run_finished"] * 2
    assert [row.version for row in one.rows()] == [v for v in range(1, 7) for _ in range(2)]
    assert float(replay(one.folder / "run").parameters["x"][0]) == one.final()
