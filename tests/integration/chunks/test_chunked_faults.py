"""Federations in chunks whose messages, connections and disks fail at the worst moment."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

import pytest

from fedmq.broker_config.chunks import receiver
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Message, OnDelivery, OnState, TransportState
from fedmq.coordinator.service.incoming import intake
from fedmq.coordinator.service.summary import RunSummary
from fedmq.participant.decisions import agent, outbox, retries
from fedmq.schemas import chunks
from fedmq.schemas.codec import decode, encode
from fedmq.schemas.local.backoff import Backoff
from fedmq.schemas.messages import Notice, Task, Update
from tests.integration.chunks.federation import DEADLINE_S, Federation, Trainer, is_chunk, until
from tests.integration.chunks.test_chunked_runs import Meddling, payload_queues


def damage_the_first_upload(transport: Meddling) -> None:
    def meddle(message: Message) -> list[Message]:
        broken = int(message.headers[chunks.INDEX]) == 3 and transport.published[3] == 1
        return [replace(message, body=b"\xff" + bytes(message.body)[1:]) if broken else message]

    transport.meddle = meddle  # type: ignore[method-assign]


def test_a_reconnect_brings_back_no_queue_of_a_payload_that_was_delivered(
    federation: Federation, broker: EmbeddedBroker
) -> None:
    trainer = Trainer()
    trainer.gate = gate = threading.Event()
    ended = federation.participant("p0", trainer)
    run = federation.coordinator(versions=1, buffer_size=1)
    until(lambda: trainer.trainings == 1)
    assert payload_queues(broker) == []
    assert broker.drop_connections("coordinator") == 1
    gate.set()
    assert ended.result(DEADLINE_S) == "run_finished"
    assert run.result(DEADLINE_S).accepted == 1
    assert payload_queues(broker) == []


def test_copies_of_a_manifest_count_as_one_try(federation: Federation, broker: EmbeddedBroker) -> None:
    """The confirm may be lost three times, and the payload is damaged. It is asked for again and counted."""
    transport = Meddling(broker, "p0")
    damage_the_first_upload(transport)
    copies = 3

    def publish(message: Message, timeout_s: float = 30.0) -> Future[None]:
        if message.headers.get("kind") == "update" and not transport.manifests:
            for _ in range(copies - 1):
                Meddling.publish(transport, message, timeout_s)
        return Meddling.publish(transport, message, timeout_s)

    transport.publish = publish  # type: ignore[method-assign]
    trainer = Trainer()
    federation.participant("p0", trainer, transport=transport)
    run = federation.coordinator(versions=1, buffer_size=1)
    assert run.result(DEADLINE_S).accepted == 1
    assert transport.meddled == 1
    assert "malformed" not in federation.discarded()
    assert trainer.trainings == 1, "no finished training was thrown away"


def test_a_payload_that_is_lost_holds_nobody_up(federation: Federation, broker: EmbeddedBroker) -> None:
    """p0's queue is empty. The others are counted before p0's payload is broken, which takes longer than the test."""
    transport = Meddling(broker, "p0")
    emptied = threading.Event()

    def publish(message: Message, timeout_s: float = 30.0) -> Future[None]:
        if message.headers.get("kind") == "update" and not emptied.is_set():
            queue = federation.topology.upload("p0", message.message_id)
            broker.delete_queue(queue.name)
            transport.declare(queue).result(DEADLINE_S)
            emptied.set()
        return Meddling.publish(transport, message, timeout_s)

    transport.publish = publish  # type: ignore[method-assign]
    federation.participant("p0", transport=transport)
    run = federation.coordinator(versions=1, buffer_size=2)
    assert emptied.wait(DEADLINE_S)
    for name in ("p1", "p2"):
        federation.participant(name)
    assert run.result(receiver.PATIENCE_S / 2).accepted == 2


def test_a_request_to_send_again_that_is_lost_costs_no_update(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill of the coordinator between the ack of the manifest and the request would lose it, for example."""
    monkeypatch.setattr(outbox, "ANNOUNCE_AGAIN_S", 0.1)
    lost = threading.Event()

    class Losing(EmbeddedTransport):
        def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
            if message.headers.get("kind") == "notice" and not lost.is_set():
                notice = decode(message.body).message
                if isinstance(notice, Notice) and notice.event == "send_again":
                    lost.set()
                    taken: Future[None] = Future()
                    taken.set_result(None)
                    return taken
            return super().publish(message, timeout_s)

    transport, trainer = Meddling(broker, "p0"), Trainer()
    damage_the_first_upload(transport)
    federation.participant("p0", trainer, transport=transport)
    run = federation.coordinator(versions=1, buffer_size=1, connect=lambda: Losing(broker, "coordinator"))
    assert lost.wait(DEADLINE_S)
    assert broker.drop_connections("p0") == 1
    assert run.result(DEADLINE_S).accepted == 1
    assert trainer.trainings == 1


def test_an_update_in_chunks_that_cannot_be_used_leaves_no_queue(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The participant is gone for good, so only the coordinator can delete the queue."""
    monkeypatch.setattr(agent, "LEAVE_S", 0.0)
    transport = Meddling(broker, "p0")
    announced = threading.Event()

    def publish(message: Message, timeout_s: float = 30.0) -> Future[None]:
        if message.headers.get("kind") == "update":
            manifest = cast(Update, decode(message.body).message)
            assert manifest.chunks is not None
            larger = manifest.chunks.model_copy(update={"num_bytes": 9_000_000, "count": -(-9_000_000 // 8192)})
            message = replace(message, body=encode(manifest.model_copy(update={"chunks": larger})))
            announced.set()
        return Meddling.publish(transport, message, timeout_s)

    transport.publish = publish  # type: ignore[method-assign]
    federation.participant("p0", transport=transport)
    federation.coordinator(versions=1, buffer_size=1)
    assert announced.wait(DEADLINE_S)
    federation.stop("p0")
    until(lambda: "oversized" in federation.discarded())
    until(lambda: payload_queues(broker) == [])


def test_payloads_leave_the_broker_while_it_takes_no_messages(federation: Federation, broker: EmbeddedBroker) -> None:
    """The broker's disk may be full of payloads. Waiting until the last version's tasks are out would never end."""
    alarm = threading.Event()

    class Blocked(EmbeddedTransport):
        tell: OnState

        def open(self, exchanges: Any, queues: Any, on_state: Any = None, timeout_s: Any = None) -> None:
            self.tell = on_state
            super().open(exchanges, queues, on_state, timeout_s)

        def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
            return Future() if alarm.is_set() and is_chunk(message) else super().publish(message, timeout_s)

    gate, trainers = threading.Event(), [Trainer() for _ in range(3)]
    for number, trainer in enumerate(trainers):
        trainer.gate = gate
        federation.participant(f"p{number}", trainer)
    coordinator = Blocked(broker, "coordinator")
    run = federation.coordinator(versions=3, buffer_size=1, connect=lambda: coordinator)
    until(lambda: sum(trainer.trainings for trainer in trainers) == 3)
    alarm.set()
    coordinator.tell(TransportState("blocked", "disk"))
    gate.set()
    assert run.result(DEADLINE_S).accepted == 3
    until(lambda: payload_queues(broker) == [])


class Copying(EmbeddedTransport):
    """A transport that delivers a copy of the first task, with a payload of its own, during the ack of its last
    chunk."""

    def __init__(self, broker: EmbeddedBroker, topology: Topology) -> None:
        super().__init__(broker, "p0")
        self.copy_is_here = threading.Event()
        self._other = EmbeddedTransport(broker, "other")
        self._topology = topology
        self._tasks: list[Task] = []

    def consume(self, queue: str, on_delivery: OnDelivery, prefetch: int) -> None:
        def delivered(delivery: Delivery) -> None:
            on_delivery(delivery)
            if delivery.headers.get("kind") == "task":
                self._tasks.append(cast(Task, decode(delivery.body).message))
                if len(self._tasks) == 2:
                    self.copy_is_here.set()

        super().consume(queue, delivered, prefetch)

    def ack(self, delivery: Delivery) -> bool:
        if delivery.headers.get(chunks.INDEX) == 24 and not self.copy_is_here.is_set():
            task = self._tasks[0]
            assert task.chunks is not None
            copy = task.model_copy(update={"chunks": task.chunks.model_copy(update={"payload_id": "f" * 32})})
            queue = self._topology.participant("p0")
            message = Message(queue.exchange, queue.routing_key, encode(copy), task.task_id, headers={"kind": "task"})
            self._other.open(self._topology.exchanges, [self._topology.download("p0", "f" * 32)])
            self._other.publish(message).result(DEADLINE_S)
            self._other.close()
            assert self.copy_is_here.wait(DEADLINE_S)
        return super().ack(delivery)


def test_a_copy_of_a_task_that_comes_between_the_last_chunk_and_the_disk_leaves_no_queue(
    federation: Federation, broker: EmbeddedBroker
) -> None:
    """A new coordinator sends such a copy, because it cannot know the state of the first one."""
    transport, trainer = Copying(broker, federation.topology), Trainer()
    federation.participant("p0", trainer, transport=transport)
    run = federation.coordinator(versions=1, buffer_size=1)
    assert run.result(DEADLINE_S).accepted == 1
    assert transport.copy_is_here.is_set()
    assert trainer.trainings == 1
    until(lambda: payload_queues(broker) == [])


class Unlucky(EmbeddedTransport):
    """A transport that sometimes damages or repeats a chunk, repeats a manifest, or loses a request to send again."""

    def __init__(self, broker: EmbeddedBroker, name: str, luck: random.Random) -> None:
        super().__init__(broker, name)
        self._luck = luck

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        drawn, kind = self._luck.random(), message.headers.get("kind")
        if is_chunk(message) and drawn < 0.002:
            message = replace(message, body=b"\xff" + bytes(message.body)[1:])
        elif (is_chunk(message) and drawn < 0.006) or (kind == "update" and drawn < 0.3):
            super().publish(message, timeout_s)
        elif kind == "notice" and drawn < 0.2:
            notice = decode(message.body).message
            if isinstance(notice, Notice) and notice.event == "send_again":
                message = replace(message, routing_key="nobody")
        return super().publish(message, timeout_s)


def test_no_finished_training_is_lost_or_counted_twice_whatever_breaks(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All through the run connections are cut, queues are deleted and everybody is restarted."""
    for module, name, seconds in (
        (receiver, "PATIENCE_S", 0.4), (intake, "GIVE_WAY_S", 0.05),
        (outbox, "ANNOUNCE_AGAIN_S", 0.3), (agent, "LEAVE_S", 0.0), (retries, "RETRY", Backoff(0.05, 0.5)),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, seconds)
    luck, pause, versions = random.Random(1), threading.Event(), 12
    trainers = {f"p{number}": Trainer() for number in range(4)}

    def participant(name: str) -> None:
        federation.participant(name, trainers[name], transport=Unlucky(broker, name, luck))

    def coordinator() -> Future[RunSummary]:
        return federation.coordinator(versions, 2, connect=lambda: Unlucky(broker, "coordinator", luck))

    for name in trainers:
        participant(name)
    run, faults = coordinator(), Counter[str]()
    while not run.done():
        pause.wait(luck.uniform(0, 0.1))
        kinds, name = ["cut", "delete", "restart", "lead"], luck.choice(list(trainers))
        fault = luck.choice([kind for kind in kinds if not faults[kind]] or kinds)  # each kind before the run is over
        queues = payload_queues(broker)
        if fault == "cut":
            faults[fault] += broker.drop_connections(luck.choice(["coordinator", name, None]))
        elif fault == "delete" and queues:
            with contextlib.suppress(KeyError):  # somebody else deleted it first
                broker.delete_queue(luck.choice(queues))
                faults[fault] += 1
        elif fault == "restart":
            federation.stop(name)
            participant(name)
            faults[fault] += 1
        elif fault == "lead":
            federation.stop_coordinator()
            run = coordinator()
            faults[fault] += 1
    assert all(faults[kind] for kind in ("cut", "delete", "restart", "lead"))
    assert run.result(DEADLINE_S).accepted == 2 * versions
    federation.check(versions, 2 * versions)
    assert "malformed" not in federation.discarded()
    until(lambda: payload_queues(broker) == [])


def test_a_broker_that_lost_the_exchange_of_an_upload_has_it_made_again(
    federation: Federation, broker: EmbeddedBroker
) -> None:
    """The participant may not make it. Its hello names the task, and the coordinator makes it."""
    trainer = Trainer()
    trainer.gate = threading.Event()
    federation.participant("p0", trainer)
    run = federation.coordinator(versions=1, buffer_size=1)
    until(lambda: trainer.trainings == 1)
    broker.delete_exchange(federation.topology.upload_exchange("p0").name)
    assert broker.drop_connections("coordinator") == 1
    trainer.gate.set()
    assert run.result(DEADLINE_S).accepted == 1
    federation.check(versions=1, updates=1)
