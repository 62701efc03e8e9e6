"""Whole runs of models too large for one message. Mistakes in chunks are found and mended."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from typing import cast

import pytest

from fedmq.broker_config.chunks import receiver
from fedmq.broker_config.chunks.receiver import ChunkArrived
from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.transport import Message
from fedmq.coordinator.service.incoming import intake, window
from fedmq.participant.decisions import agent
from fedmq.participant.service.download import Download
from fedmq.participant.spool.chunk_journal import PayloadFile
from fedmq.schemas import chunks
from tests.integration.chunks.federation import DEADLINE_S, Federation, Trainer, is_chunk, until

CHUNKS = 25
"""Chunks of a task or an update here."""


class Meddling(EmbeddedTransport):
    """A transport that passes each chunk through `meddle`, which returns the messages to publish in its place."""

    def __init__(self, broker: EmbeddedBroker, name: str) -> None:
        super().__init__(broker, name)
        self.published: Counter[int] = Counter()
        self.manifests = 0
        self.meddled = 0

    def meddle(self, message: Message) -> list[Message]:
        return [message]

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        if not is_chunk(message):
            self.manifests += message.headers.get("kind") == "update"
            return super().publish(message, timeout_s)
        self.published[int(message.headers[chunks.INDEX])] += 1
        instead = self.meddle(message)
        self.meddled += instead != [message]
        futures = [super(Meddling, self).publish(one, timeout_s) for one in instead]
        return futures[-1]


def payload_queues(broker: EmbeddedBroker) -> list[str]:
    return [name for name in broker.queue_names if ".payload." in name]


def test_a_model_in_chunks_makes_full_rounds(federation: Federation, broker: EmbeddedBroker) -> None:
    participants = [federation.participant(f"p{number}") for number in range(3)]
    summary = federation.coordinator(versions=3).result(DEADLINE_S)
    assert (summary.version, summary.accepted) == (3, 9)
    assert summary.discarded.keys() <= {"run_finished"}
    assert [one.result(DEADLINE_S) for one in participants] == ["run_finished"] * 3
    federation.check(versions=3, updates=9)
    assert payload_queues(broker) == []


@pytest.mark.broker
def test_a_model_in_chunks_makes_full_rounds_over_rabbitmq(amqp_federation: Federation) -> None:
    participants = [amqp_federation.participant(f"p{number}") for number in range(3)]
    summary = amqp_federation.coordinator(versions=3).result(DEADLINE_S)
    assert (summary.version, summary.accepted) == (3, 9)
    assert [one.result(DEADLINE_S) for one in participants] == ["run_finished"] * 3
    amqp_federation.check(versions=3, updates=9)


def test_eight_uploads_at_once_finish_through_a_window_of_one(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "MOST_PREFETCH", 1)
    gate = threading.Event()
    trainers = [Trainer() for _ in range(8)]
    for number, trainer in enumerate(trainers):
        trainer.gate = gate
        federation.participant(f"p{number}", trainer)
    run = federation.coordinator(versions=1, buffer_size=8)
    until(lambda: sum(trainer.trainings for trainer in trainers) == 8)
    gate.set()
    assert run.result(DEADLINE_S).accepted == 8
    federation.check(versions=1, updates=8)


@pytest.mark.parametrize("kind", ["missing", "damaged", "repeated", "reordered", "of another payload"])
def test_chunks_that_are_not_as_they_were_sent_are_found(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The first chunk of the kind is asked for again if that helps. The update counts once."""
    monkeypatch.setattr(receiver, "PATIENCE_S", 0.2)
    transport = Meddling(broker, "p0")
    held: list[Message] = []

    def meddle(message: Message) -> list[Message]:
        index = int(message.headers[chunks.INDEX])
        if index != 3 or transport.published[3] > 1:
            return [*held, message] if index == 4 and kind == "reordered" and not held.clear() else [message]
        if kind == "missing":  # confirmed and yet lost: a message of no payload stands for it
            return [replace(message, headers={})]
        if kind == "damaged":
            return [replace(message, body=b"\xff" + bytes(message.body)[1:])]
        if kind == "of another payload":
            return [replace(message, headers={**message.headers, chunks.PAYLOAD_ID: "other"}), message]
        return [message, message]

    transport.meddle = meddle  # type: ignore[method-assign]
    federation.participant("p0", transport=transport)
    run = federation.coordinator(versions=2, buffer_size=1)
    assert run.result(DEADLINE_S).accepted == 2
    federation.check(updates=2)
    assert transport.meddled
    again = kind in ("missing", "damaged")
    assert transport.published[0] == 2 + again
    assert transport.manifests >= 2 + again


def test_a_payload_that_never_comes_whole_is_discarded_at_the_third_try(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "ONE_TRY_S", 0.0)
    transport = Meddling(broker, "p0")

    def meddle(message: Message) -> list[Message]:
        broken = int(message.headers[chunks.INDEX]) == 3 and transport.published[3] <= 3
        return [replace(message, body=b"\xff" + bytes(message.body)[1:]) if broken else message]

    transport.meddle = meddle  # type: ignore[method-assign]
    federation.participant("p0", transport=transport)
    run = federation.coordinator(versions=1, buffer_size=1)
    other = federation.participant("p1")
    assert run.result(DEADLINE_S).accepted == 1
    assert other.result(DEADLINE_S) == "run_finished"
    assert federation.discarded().get("malformed", 0) <= 1


def test_an_upload_that_was_interrupted_goes_on_where_it_was_confirmed(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The participant stops in mid-upload. The next process publishes only the chunks that are not in the journal."""
    monkeypatch.setattr(agent, "LEAVE_S", 0.0)
    first = Meddling(broker, "p0")
    stuck: Future[None] = Future()
    at_16 = threading.Event()

    def publish(message: Message, timeout_s: float = 30.0) -> Future[None]:
        if is_chunk(message) and int(message.headers[chunks.INDEX]) >= 16:
            at_16.set()
            return stuck
        return Meddling.publish(first, message, timeout_s)

    first.publish = publish  # type: ignore[method-assign]
    trainer = Trainer()
    federation.participant("p0", trainer, transport=first)
    run = federation.coordinator(versions=1, buffer_size=1)
    assert at_16.wait(DEADLINE_S)
    journal = next((federation.folder / "spool").rglob("*.chunks"))
    until(lambda: journal.stat().st_size > 16 * 36)
    federation.stop("p0")
    second = Meddling(broker, "p0")
    federation.participant("p0", trainer, transport=second)
    assert run.result(DEADLINE_S).accepted == 1
    assert set(first.published) == set(range(16))
    assert set(second.published) == set(range(16, CHUNKS)), "none that was confirmed was published again"
    assert trainer.trainings == 1


def test_a_download_goes_on_with_the_chunks_that_are_on_disk(federation: Federation) -> None:
    """The first process gets 16 chunks, and is stopped once they are on its disk."""
    run = federation.coordinator(versions=1, buffer_size=1)
    on_chunk, write, written = Download.on_chunk, PayloadFile.write, list[int]()

    def only_16(self: Download, chunk: ChunkArrived, now: float) -> None:
        if cast(int, chunk.delivery.headers[chunks.INDEX]) < 16:
            on_chunk(self, chunk, now)

    def noted(self: PayloadFile, start: int, chunk: bytes) -> None:
        written.append(start)
        write(self, start, chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Download, "on_chunk", only_16)
        federation.participant("p0")
        journal = federation.folder / "spool" / "p0" / "task.chunks"
        until(lambda: journal.exists() and journal.stat().st_size > 16 * 36)
        federation.stop("p0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PayloadFile, "write", noted)
        assert federation.participant("p0").result(DEADLINE_S) == "run_finished"
    assert len(written) == CHUNKS - 16
    assert run.result(DEADLINE_S).accepted == 1
    federation.check(versions=1, updates=1)


def test_a_task_whose_chunks_are_lost_is_declined_and_another_one_asked_for(
    federation: Federation, broker: EmbeddedBroker
) -> None:
    lost: list[str] = []

    class Losing(EmbeddedTransport):
        def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
            if message.headers.get("kind") == "task" and not lost:
                lost.extend(payload_queues(broker))
                broker.delete_queue(lost[0])
            return super().publish(message, timeout_s)

    run = federation.coordinator(versions=1, buffer_size=1, connect=lambda: Losing(broker, "coordinator"))
    assert federation.participant("p0").result(DEADLINE_S) == "run_finished"
    assert run.result(DEADLINE_S).accepted == 1
    assert len(lost) == 1


def test_an_upload_of_a_task_that_was_withdrawn_leaves_nothing(federation: Federation, broker: EmbeddedBroker) -> None:
    """The run ends while p1 uploads. Afterwards p1's queue is gone and its outbox is empty."""
    transport = Meddling(broker, "p1")
    uploading = threading.Event()
    stuck: Future[None] = Future()

    def publish(message: Message, timeout_s: float = 30.0) -> Future[None]:
        if is_chunk(message) and int(message.headers[chunks.INDEX]) >= 8:
            uploading.set()
            return stuck
        return Meddling.publish(transport, message, timeout_s)

    transport.publish = publish  # type: ignore[method-assign]
    one = federation.participant("p1", transport=transport)
    run = federation.coordinator(versions=1, buffer_size=1)
    assert uploading.wait(DEADLINE_S)
    assert len(payload_queues(broker)) == 1
    other = federation.participant("p0")
    assert run.result(DEADLINE_S).accepted == 1
    assert [one.result(DEADLINE_S), other.result(DEADLINE_S)] == ["run_finished"] * 2
    assert payload_queues(broker) == []
    assert list((federation.folder / "spool" / "p1" / "outbox").iterdir()) == []


def test_the_coordinator_removes_the_upload_of_a_participant_that_never_came_back(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "LEAVE_S", 0.0)
    transport = Meddling(broker, "p1")
    stuck: Future[None] = Future()

    def publish(message: Message, timeout_s: float = 30.0) -> Future[None]:
        late = is_chunk(message) and int(message.headers[chunks.INDEX]) >= 8
        return stuck if late else Meddling.publish(transport, message, timeout_s)

    transport.publish = publish  # type: ignore[method-assign]
    federation.participant("p1", transport=transport)
    run = federation.coordinator(versions=1, buffer_size=1)
    until(lambda: len(transport.published) == 8)
    federation.stop("p1")
    assert len(payload_queues(broker)) == 1
    federation.participant("p0")
    assert run.result(DEADLINE_S).accepted == 1
    assert payload_queues(broker) == []
