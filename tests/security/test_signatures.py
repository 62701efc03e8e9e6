"""Whoever administers the broker can put any message, of any user, into any queue. A device with a bundle trains
nothing that the coordinator has not signed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.chunks.sender import News
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Message
from fedmq.coordinator.decisions.commands import IssueTask
from fedmq.coordinator.service.outgoing.publishing import CoordinatorPublisher, TaskPublished, UploadsPrepared
from fedmq.fleet import certificates
from fedmq.participant.service.service import ParticipantService
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.spool.spool import Spool
from fedmq.participant.trainer import TrainResult
from fedmq.schemas.chunks import digest_of, digest_of_all
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.local.clocks import moment_now
from fedmq.schemas.messages import ChunkedPayload, Decline, Hello, Task, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import Sign, signed, tensors_digest
from tests.integration.chunks.federation import Federation, Trainer, until
from tests.integration.participant.scripted import ScriptedCoordinator

KEY = certificates.new_signing_key()
SIGN, VERIFY = certificates.signer(KEY.private), certificates.verifier(KEY.public)
MODEL = Parameters({"w": np.linspace(0, 1, 6000, dtype=np.float32)})
POISON = Parameters({"w": np.concatenate([[np.float32(1e-3)], MODEL["w"][1:]])})
WHOLE, IN_CHUNKS = 2**20, 16_384
"""Greatest size of the coordinator's messages. The model has 24 kB."""
DEADLINE_S = 30.0
both_ways = pytest.mark.parametrize("max_message_bytes", [WHOLE, IN_CHUNKS], ids=["whole", "in chunks"])


@dataclass(frozen=True)
class Order:
    """A task as somebody with the broker in hand would send it."""

    number: int
    run_id: str = "run-1"
    run_uid: str = "0a1b2c3d"
    participant_id: str = "sensor-1"
    base_version: int = 3
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lease_s: float = 600.0
    parameters: Parameters = field(default_factory=lambda: MODEL)
    sign: Sign | None = SIGN

    @property
    def task(self) -> Task:
        return Task(
            task_id=f"{self.run_uid}-{self.number}", run_id=self.run_id, participant_id=self.participant_id,
            base_version=self.base_version, reply="delta", training=self.training, lease_s=self.lease_s,
        )  # fmt: skip

    def signature(self) -> str:
        return signed(self.task, tensors_digest(self.parameters), SIGN).signature or ""

    def forged(self, **changed: Any) -> Order:
        """Return another order with the signature of this one."""
        stolen = self.signature()
        return replace(self, sign=lambda _content: stolen, **changed)


CHANGES: dict[str, Callable[[Order], Order]] = {
    "no signature": lambda order: replace(order, sign=None),
    "a signature of zeros": lambda order: replace(order, sign=lambda _content: "0" * 128),
    "another key": lambda order: replace(order, sign=certificates.signer(certificates.new_signing_key().private)),
    "other tensors": lambda order: order.forged(parameters=POISON),
    "another base version": lambda order: order.forged(base_version=4),
    "another learning rate": lambda order: order.forged(training=TrainingConfig(learning_rate=10.0)),
    "more for the trainer": lambda order: order.forged(training=TrainingConfig(extra={"upload": "everything"})),
    "another lease": lambda order: order.forged(lease_s=1e6),
    "another run": lambda order: order.forged(run_id="run-2"),
    "another run of the same name": lambda order: order.forged(run_uid="ffffffff"),
    "another task": lambda order: order.forged(number=order.number + 1000),
    "another device's": lambda order: replace(order, participant_id="sensor-2").forged(participant_id="sensor-1"),
}


class Counting:
    """A trainer that counts its trainings and adds 1."""

    num_examples = 5

    def __init__(self) -> None:
        self.seen: list[float] = []

    def train(self, parameters: Parameters, _config: TrainingConfig) -> TrainResult:
        self.seen.append(float(parameters["w"][0]))
        return TrainResult({name: array + np.float32(1) for name, array in parameters.items()}, 5, 1, {})


class Site:
    """A device on an embedded broker, and whoever has that broker in hand."""

    def __init__(self, folder: Path) -> None:
        self.topology = Topology()
        self.broker = EmbeddedBroker()
        self.folder = folder
        self.scripted = ScriptedCoordinator(self.broker, self.topology)
        self.trainer = Counting()
        self._running: list[tuple[ParticipantService, threading.Thread]] = []

    def device(self, **options: Any) -> None:
        service = ParticipantService(
            participant_id="sensor-1", settings=ParticipantSettings(), trainer=self.trainer,
            transport=EmbeddedTransport(self.broker, "sensor-1"), topology=self.topology, spool_dir=self.folder,
            max_message_bytes=WHOLE, **{"verify": VERIFY} | options,
        )  # fmt: skip
        thread = threading.Thread(target=service.run)
        thread.start()
        self._running.append((service, thread))
        self.scripted.wait_for(Hello)

    def send(self, order: Order, max_message_bytes: int) -> None:
        """Send a task as a coordinator does, whole or in chunks."""
        news: SimpleQueue[TaskPublished | News | UploadsPrepared] = SimpleQueue()
        publisher = CoordinatorPublisher(
            self.scripted.transport, self.topology, run_id=order.run_id, reply="delta", window_bytes=2**20,
            timeout_s=DEADLINE_S, put=news.put, max_message_bytes=max_message_bytes, chunk_bytes=8192, sign=order.sign,
        )  # fmt: skip
        task = order.task
        publisher.task(
            IssueTask(
                task.task_id, order.number, task.participant_id, task.base_version, task.training, task.lease_s
            ),
            order.parameters,
        )  # fmt: skip
        publisher.pump()
        while True:
            match news.get(timeout=DEADLINE_S):
                case UploadsPrepared() as prepared:
                    publisher.uploads_prepared(prepared)
                case News() as one:
                    one.sender.on_news(one)
                case TaskPublished(error=error):
                    assert error is None
                    return

    def update(self, order: Order) -> Update:
        update = self.scripted.wait_for(Update)
        assert update.task_id == order.task.task_id
        self.scripted.receipt(update)
        return update

    def close(self) -> None:
        for service, thread in self._running:
            service.stop()
            thread.join(DEADLINE_S)
        self._running = []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    one = Site(tmp_path)
    yield one
    one.close()
    one.scripted.transport.close()


@both_ways
def test_a_task_that_was_changed_anywhere_is_declined_and_never_trained(
    site: Site, max_message_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "fedmq")
    site.device()
    for number, (name, change) in enumerate(CHANGES.items()):
        order = change(Order(number))
        site.send(order, max_message_bytes)
        decline = site.scripted.wait_for(Decline)
        assert (decline.task_id, decline.reason) == (order.task.task_id, "bad_signature"), name
    refused = [record for record in caplog.records if "event=task_refused" in record.getMessage()]
    assert len(refused) == len(CHANGES)
    assert site.trainer.seen == []
    genuine = Order(100)
    site.send(genuine, max_message_bytes)
    assert site.update(genuine).base_version == 3
    assert site.trainer.seen == [0.0]


@both_ways
def test_the_same_changes_are_trained_by_a_device_whose_bundle_has_no_key(site: Site, max_message_bytes: int) -> None:
    """Proof that the attack of the test above would have worked."""
    site.device(verify=None)
    for number, change in enumerate(CHANGES.values()):
        order = change(Order(number))
        site.send(order, max_message_bytes)
        site.update(order)
    assert len(site.trainer.seen) == len(CHANGES)
    assert POISON["w"][0] in site.trainer.seen


@both_ways
def test_a_signed_task_that_is_sent_again_is_trained_once(site: Site, max_message_bytes: int) -> None:
    site.device()
    first, second = Order(1), Order(2)
    site.send(first, max_message_bytes)
    site.update(first)
    site.send(first, max_message_bytes)
    site.send(second, max_message_bytes)
    site.update(second)
    assert len(site.trainer.seen) == 2


def test_a_signed_task_of_another_device_is_ignored(site: Site) -> None:
    site.device()
    task = signed(Order(1, participant_id="sensor-2").task, tensors_digest(MODEL), SIGN)
    site.scripted.send(task, MODEL, to="sensor-1")
    own = Order(2)
    site.send(own, WHOLE)
    site.update(own)
    assert len(site.trainer.seen) == 1


def test_a_forged_copy_of_the_task_in_hand_changes_nothing(site: Site) -> None:
    site.device()
    gate, entered = threading.Event(), threading.Event()
    train = site.trainer.train

    def wait(parameters: Parameters, config: TrainingConfig) -> TrainResult:
        entered.set()
        assert gate.wait(DEADLINE_S)
        return train(parameters, config)

    site.trainer.train = wait  # type: ignore[method-assign]
    order, other = Order(1), Order(2)
    site.send(order, WHOLE)
    assert entered.wait(DEADLINE_S)
    site.send(order.forged(parameters=POISON), WHOLE)
    site.send(replace(other, sign=None), WHOLE)  # its decline says that the copy before it is dealt with
    assert site.scripted.wait_for(Decline).task_id == other.task.task_id
    gate.set()
    site.update(order)
    assert site.trainer.seen == [0.0]


@both_ways
@pytest.mark.parametrize("genuine", [True, False], ids=["genuine", "changed on the disk"])
def test_a_spooled_task_is_checked_again_after_a_kill(site: Site, genuine: bool, max_message_bytes: int) -> None:
    """The folder is what `kill -9` between spooling and training leaves."""
    task = signed(Order(1).task, tensors_digest(MODEL), SIGN)
    body = encode(task, MODEL if genuine else POISON)
    spool = Spool(site.folder, "sensor-1")
    if max_message_bytes == IN_CHUNKS:
        chunks = [body[start : start + 8192] for start in range(0, len(body), 8192)]
        digests = [digest_of(chunk) for chunk in chunks]
        payload = ChunkedPayload(
            payload_id="p1", num_bytes=len(body), chunk_bytes=8192, count=len(chunks), digest=digest_of_all(digests)
        )
        spool.payload.open(payload)
        spool.payload.write(0, body)
        spool.payload.sync(dict(enumerate(digests)))
        spool.payload.close()
        body = encode(task.model_copy(update={"chunks": payload}))
    spool.write_task(body, moment_now())
    spool.close()
    site.device()
    if genuine:
        site.update(Order(1))
    else:
        assert site.scripted.wait_for(Decline).reason == "bad_signature"
    assert len(site.trainer.seen) == genuine
    site.close()
    assert not (site.folder / "sensor-1" / "task.fedmq").exists()


class Administered(EmbeddedTransport):
    """The coordinator's connection, and an administrator who puts a poisoned copy of each task beside it: the first one
    before it, the others behind it."""

    forged: list[str]

    def publish(self, message: Message, *args: Any, **kwargs: Any) -> Any:
        if message.headers.get("kind") != "task":
            return super().publish(message, *args, **kwargs)
        came = decode(message.body)
        assert isinstance(came.message, Task)
        assert came.message.signature is not None
        assert came.parameters is not None
        poison = came.parameters.replace({name: np.full_like(a, 1e6) for name, a in came.parameters.items()})
        copy = replace(message, body=encode(came.message, poison))
        order = [copy, message] if not self.forged else [message, copy]
        self.forged.append(came.message.task_id)
        published = [super(Administered, self).publish(one, *args, **kwargs) for one in order]
        return published[order.index(message)]


class Wary(Trainer):
    """A trainer that knows poison when it sees some."""

    def __init__(self) -> None:
        super().__init__()
        self.poisoned = 0

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        self.poisoned += any(float(np.abs(array).max(initial=0)) > 1e3 for array in parameters.values())
        return super().train(parameters, config)


def test_a_run_with_poison_beside_every_task_counts_each_update_once_and_a_standby_signs_with_the_same_key(
    tmp_path: Path,
) -> None:
    broker, forged = EmbeddedBroker(), []  # type: ignore[var-annotated]

    def transport(name: str) -> EmbeddedTransport:
        if name != "coordinator":
            return EmbeddedTransport(broker, name)
        made = Administered(broker, name)
        made.forged = forged
        return made

    federation = Federation(tmp_path, Topology("p"), transport)
    trainers = {name: Wary() for name in ("a", "b", "c")}
    settings: dict[str, Any] = {"max_message_bytes": WHOLE, "verify": VERIFY}
    try:
        federation.coordinator(versions=8, max_message_bytes=WHOLE, sign=SIGN)
        for name, trainer in trainers.items():
            federation.participant(name, trainer, **settings)
        until(lambda: sum(trainer.trainings for trainer in trainers.values()) >= 6)
        federation.stop_coordinator()
        before = len(forged)
        assert federation.coordinator(versions=8, max_message_bytes=WHOLE, sign=SIGN).result(DEADLINE_S).version == 8
        federation.check(versions=8, updates=24)
        assert before >= 6
        assert len(forged) > before
        assert [trainer.poisoned for trainer in trainers.values()] == [0, 0, 0]
    finally:
        federation.close()
