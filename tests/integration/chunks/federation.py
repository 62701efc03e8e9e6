"""A federation in one process with a model too large for one message: both real services, over either transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message, Transport
from fedmq.coordinator.audit import audit
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.service.summary import RunSummary
from fedmq.coordinator.settings import CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.run_folder import RunFolder
from fedmq.coordinator.strategies import FedBuff
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.schemas.messages import TrainingConfig
from fedmq.schemas.parameters import Parameters

DEADLINE_S = 60.0
MAX_MESSAGE_BYTES = 16_384
CHUNK_BYTES = 8192
VALUES = 50_000
"""Values of the model: 200 kB, 25 chunks."""
RUN_ID = "r1"
MakeTransport = Callable[[str], Transport]


def initial() -> Parameters:
    return Parameters({"000/w": np.linspace(0, 1, VALUES, dtype=np.float32), "001/b": np.zeros(3, np.float32)})


class Trainer:
    """A trainer that adds values that follow from the seed. If it has a `gate`, a training ends only once that is
    set."""

    num_examples = 10

    def __init__(self) -> None:
        self.trainings = 0
        self.gate: threading.Event | None = None

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        self.trainings += 1
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        return Result({name: array + added(config.seed, name, array) for name, array in parameters.items()})


def added(seed: int, name: str, array: Any) -> Any:
    return np.random.default_rng([seed, len(name)]).normal(size=array.shape).astype(array.dtype)


class Result:
    num_examples, num_steps, metrics = 10, 1, {"loss": 0.5}

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters


class Federation:
    """A federation whose coordinators and participants come and go. `transports` has each name's last transport."""

    def __init__(self, folder: Path, topology: Topology, make_transport: MakeTransport) -> None:
        self.folder = folder
        self.topology = topology
        self.run_dir = folder / "run"
        self.transports: dict[str, Transport] = {}
        self._make_transport = make_transport
        self._pool = ThreadPoolExecutor(32)
        self._services: list[CoordinatorService | ParticipantService] = []
        self._coordinator: tuple[CoordinatorService, Future[RunSummary]] | None = None
        self._participants: dict[str, tuple[ParticipantService, Future[str]]] = {}

    def transport(self, name: str) -> Transport:
        self.transports[name] = self._make_transport(name)
        return self.transports[name]

    def coordinator(self, versions: int = 2, buffer_size: int = 3, **changed: Any) -> Future[RunSummary]:
        run = RunSettings(
            run_id=RUN_ID, concurrency=16, stop=StopSettings(max_versions=versions), lease_s=1000,
            participant_timeout_s=1000, decline_backoff_s=0,
        )  # fmt: skip
        given: dict[str, Any] = {
            "run_dir": self.run_dir, "run": run, "commit": CommitSettings(commit_interval_s=0.05),
            "strategy": FedBuff(buffer_size=buffer_size), "training": TrainingConfig(), "topology": self.topology,
            "initial_parameters": initial, "max_message_bytes": MAX_MESSAGE_BYTES, "chunk_bytes": CHUNK_BYTES,
        }  # fmt: skip
        changed.setdefault("connect", lambda: self.transport("coordinator"))
        service = CoordinatorService(**given | changed)
        ended: Future[RunSummary] = self._start(service)
        self._coordinator = service, ended
        return ended

    def participant(self, name: str, trainer: Trainer | None = None, **changed: Any) -> Future[str]:
        given: dict[str, Any] = {
            "participant_id": name, "settings": ParticipantSettings(hello_interval_s=1.0),
            "trainer": trainer or Trainer(), "topology": self.topology, "spool_dir": self.folder / "spool",
            "max_message_bytes": MAX_MESSAGE_BYTES, "chunk_bytes": CHUNK_BYTES,
        }  # fmt: skip
        if "transport" not in changed:
            changed["transport"] = self.transport(name)
        service = ParticipantService(**given | changed)
        ended = self._start(service)
        self._participants[name] = (service, ended)
        return ended

    def stop(self, name: str) -> None:
        """Stop a participant. The next one of this name finds its spool."""
        service, ended = self._participants[name]
        service.stop()
        ended.result(DEADLINE_S)

    def service(self, name: str) -> ParticipantService:
        return self._participants[name][0]

    @property
    def newest_coordinator(self) -> CoordinatorService:
        assert self._coordinator is not None
        return self._coordinator[0]

    def stop_coordinator(self) -> None:
        """Stop the coordinator. The next one goes on with its run."""
        assert self._coordinator is not None
        service, ended = self._coordinator
        service.stop()
        ended.result(DEADLINE_S)

    def _start(self, service: Any) -> Future[Any]:
        self._services.append(service)
        return self._pool.submit(service.run)

    def close(self) -> None:
        for service in self._services:
            service.stop()
        self._pool.shutdown()

    def check(self, versions: int = 2, updates: int | None = None) -> None:
        """Check that the ledger is in order, and that its rows give the model bit for bit."""
        assert [check for check in audit.verify(RunFolder(self.run_dir)) if not check.holds] == []
        with LedgerReader(self.run_dir / "ledger.sqlite") as ledger:
            rows = [row for row in ledger.updates() if row.version is not None]
            assert [point.version for point in ledger.versions()] == list(range(1, versions + 1))
            assert updates is None or len(rows) == updates
        assert len({row.update_id for row in rows}) == len(rows)
        final = checkpoint.read(self.run_dir / "final.safetensors").arrays
        assert not np.array_equal(final["000/w"], initial()["000/w"])

    def discarded(self) -> dict[str, int]:
        with LedgerReader(self.run_dir / "ledger.sqlite") as ledger:
            return ledger.discarded()


def until(condition: Callable[[], bool]) -> None:
    """Ask until the condition holds."""
    pause, deadline_s = threading.Event(), time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        pause.wait(0.01)


def is_chunk(message: Message) -> bool:
    return ".payload." in message.routing_key
