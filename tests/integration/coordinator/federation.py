"""A federation in one process: the real service over the embedded broker, and participants made of plain functions."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Message
from fedmq.coordinator.service.service import CoordinatorService
from fedmq.coordinator.service.summary import RunSummary
from fedmq.coordinator.settings import ArchiveSettings, CommitSettings, RunSettings, StopSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.strategies import FedBuff
from fedmq.coordinator.strategies.math.staleness_weights import Polynomial
from fedmq.coordinator.strategies.protocol import ClientUpdate
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.messages import Decline, Hello, Notice, Receipt, Task, TrainingConfig, Update, update_id
from fedmq.schemas.parameters import Parameters

DEADLINE_S = 30.0
RUN_ID = "r1"
TOPOLOGY = Topology()


def initial() -> Parameters:
    return Parameters({"000/w": np.linspace(0, 1, 5, dtype=np.float32), "001/steps": np.array(7)}, {"001/steps"})


def delta(task_id: str) -> Parameters:
    """Return the result of training: always the same for one task, and awkward to add up in another order."""
    seed = int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "little")
    return Parameters({"000/w": np.random.default_rng(seed).normal(size=5).astype(np.float32)})


def update_for(task: Task, **changed: object) -> Update:
    fields = {
        "update_id": update_id(task.run_id, task.task_id, task.participant_id), "task_id": task.task_id,
        "run_id": task.run_id, "participant_id": task.participant_id, "base_version": task.base_version,
        "payload": task.reply, "num_examples": 10, "num_steps": 2, "metrics": {"loss": 0.5}, "train_s": 0.1,
    }  # fmt: skip
    return Update(**(fields | changed))  # type: ignore[arg-type]


class Participant:
    """A participant that answers every task at once by `answer`, on its transport's thread, and says hello if asked."""

    def __init__(
        self,
        broker: EmbeddedBroker,
        name: str,
        answer: Callable[[Participant, Task], object] | None = None,
        user: str = "guest",
    ) -> None:
        self.name = name
        self.session = 1
        self.accepting = True
        self.tasks: list[Task] = []
        self.receipts: list[Receipt] = []
        self.notices: list[Notice] = []
        self.held: list[str] = []
        self.changed = threading.Condition()
        self._answer = answer or Participant.train
        self._queue = TOPOLOGY.participant(name)
        self.transport = EmbeddedTransport(broker, name, user)
        self.transport.open(TOPOLOGY.exchanges, [*TOPOLOGY.shared_queues, self._queue])
        self.transport.consume(self._queue.name, self._on_delivery, 8)
        self.hello().result(DEADLINE_S)  # so that participants are known in the order in which they join

    def hello(self) -> Future[None]:
        with self.changed:
            message = Hello(
                participant_id=self.name, session_id=f"s{self.session}", num_examples=10,
                accepting=self.accepting, task_ids=tuple(self.held),
            )  # fmt: skip
        return self.send_control(message)

    def send_control(self, message: Hello | Decline | Notice) -> Future[None]:
        return self.send(encode(message), queue=TOPOLOGY.control)

    def train(self, task: Task) -> Future[None]:
        return self.send_update(update_for(task), delta(task.task_id))

    def send_update(self, update: Update, payload: Parameters) -> Future[None]:
        return self.send(encode(update, payload), task_id=update.task_id)

    def send(self, body: bytes, task_id: str | None = None, queue=TOPOLOGY.updates) -> Future[None]:
        return self.transport.publish(
            Message(queue.exchange, queue.routing_key, body, message_id="m", correlation_id=task_id)
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), f"{self.name}: waited in vain"

    def _on_delivery(self, delivery: Delivery) -> None:
        decoded = decode(delivery.body)
        message = decoded.message
        self.transport.ack(delivery)
        with self.changed:
            if isinstance(message, Task):
                self.tasks.append(message)
                self.held.append(message.task_id)
            elif isinstance(message, Receipt):
                self.receipts.append(message)
                self._drop(message.task_id)
            elif isinstance(message, Notice):
                self.notices.append(message)
                self._drop(message.task_id)
            self.changed.notify_all()
        if isinstance(message, Task):
            self._answer(self, message)
        elif isinstance(message, Notice) and message.event == "say_hello":
            self.hello()

    def _drop(self, task_id: str | None) -> None:
        if task_id in self.held:
            self.held.remove(task_id)


class FullDisk:
    """A disk that is full from a participant's fourth task on, until `room` is called."""

    def __init__(self) -> None:
        self._full = threading.Event()
        self._refused = threading.Semaphore(0)

    def refuse_where_full(self) -> None:
        """Raise OSError if the disk is full. The test calls it before each write."""
        if self._full.is_set():
            self._refused.release()
            raise OSError(errno.ENOSPC, "No space left on device")

    def train(self, p: Participant, task: Task) -> None:
        """Answer a task, and fill the disk at the fourth."""
        if len(p.tasks) == 4:
            self._full.set()
        p.train(task)

    def wait_until_refused(self, times: int) -> None:
        for _ in range(times):
            assert self._refused.acquire(timeout=DEADLINE_S)

    def room(self) -> None:
        self._full.clear()


class Federation:
    """One run's folder and broker; coordinators come and go."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.broker = EmbeddedBroker()
        self.strategy = FedBuff(buffer_size=3, staleness=Polynomial(0.5))
        self.stop = StopSettings(max_versions=5)
        self.concurrency = 3
        self.lease_s = 1000.0
        self.commit = CommitSettings(commit_interval_s=0.05)
        self.archive = ArchiveSettings()
        self.participants: list[Participant] = []
        self._pool = ThreadPoolExecutor()
        self._services: list[CoordinatorService] = []

    def join(
        self, name: str, answer: Callable[[Participant, Task], None] | None = None, user: str = "guest"
    ) -> Participant:
        participant = Participant(self.broker, name, answer, user)
        self.participants.append(participant)
        return participant

    def service(self, **changed: object) -> CoordinatorService:
        run = RunSettings(
            run_id=RUN_ID, concurrency=self.concurrency, stop=self.stop, lease_s=self.lease_s,
            participant_timeout_s=1000, decline_backoff_s=0,
        )  # fmt: skip
        given = {
            "run_dir": self.run_dir, "run": run, "commit": self.commit, "archive": self.archive,
            "strategy": self.strategy, "training": TrainingConfig(),
            "connect": lambda: EmbeddedTransport(self.broker, "coordinator"),
            "topology": TOPOLOGY, "initial_parameters": initial, "max_message_bytes": 2**20,
        }  # fmt: skip
        return CoordinatorService(**(given | changed))  # type: ignore[arg-type]

    def start(self, service: CoordinatorService) -> Future[RunSummary]:
        self._services.append(service)
        return self._pool.submit(service.run)

    def run(self, **changed: object) -> RunSummary:
        return self.start(self.service(**changed)).result(DEADLINE_S)

    def ledger(self) -> LedgerReader:
        return LedgerReader(self.run_dir / "ledger.sqlite")

    def final(self) -> Parameters:
        return Parameters(checkpoint.read(self.run_dir / "final.safetensors").arrays)

    def depth(self, queue) -> int:
        """Return the number of messages that are ready or unsettled."""
        transport = EmbeddedTransport(self.broker)
        transport.open(TOPOLOGY.exchanges, TOPOLOGY.shared_queues)
        try:
            return transport.depth(queue.name) + self.broker.unsettled(queue.name)
        finally:
            transport.close()

    def close(self) -> None:
        for service in self._services:
            service.stop()
        for participant in self.participants:
            participant.transport.close()
        self._pool.shutdown()

    def replayed(self) -> Parameters:
        """Return the model that the ledger's order gives if its updates go through the strategy alone."""
        parameters = initial()
        state = self.strategy.init(parameters)
        with self.ledger() as ledger:
            rows = [row for row in ledger.updates() if row.version is not None]
        for at, row in enumerate(rows):
            update = ClientUpdate(
                row.update_id, row.participant_id, row.base_version, delta(row.task_id), row.num_examples,
                row.num_steps, row.metrics, row.client_weight, row.train_s,
            )  # fmt: skip
            state = self.strategy.accumulate(state, update, row.staleness)
            if at + 1 == len(rows) or rows[at + 1].version != row.version:
                state, parameters = self.strategy.aggregate(state, parameters)
        return parameters


def same_bits(a: Parameters, b: Parameters) -> bool:
    return list(a) == list(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)
