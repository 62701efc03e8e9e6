"""Runs whose tasks refer to models in the stream of models."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.topology import Topology
from fedmq.broker_config.transport import Delivery, Message
from fedmq.coordinator.settings import DownlinkSettings
from fedmq.coordinator.state import checkpoint
from fedmq.coordinator.state.ledger.reader import LedgerReader
from fedmq.coordinator.state.ledger.traffic import ModelBytes, Traffic
from fedmq.participant.service import service
from fedmq.participant.service.download import Download
from fedmq.participant.service.publishing import ParticipantPublisher, publish_control
from fedmq.schemas import chunks
from fedmq.schemas.errors import PublishRejected
from fedmq.schemas.messages import Hello, TrainingConfig
from fedmq.schemas.parameters import Parameters
from tests.integration.chunks.federation import DEADLINE_S, Federation, Trainer, initial, until

CHUNKS = 25
"""Chunks of a model here."""
REFERENCES = DownlinkSettings(reference_bytes=4096)


class Counting(EmbeddedTransport):
    """A transport that counts what is published: marks and chunks of models, chunks of single tasks, and all else."""

    def __init__(self, broker: EmbeddedBroker, name: str) -> None:
        super().__init__(broker, name)
        self.published: Counter[str] = Counter()

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        kind = str(message.headers.get("kind"))
        if message.routing_key.endswith(".models"):
            kind = "chunk" if chunks.INDEX in message.headers else "mark"
        elif ".payload." in message.routing_key:
            kind = "single"
        self.published[kind] += 1
        return super().publish(message, timeout_s)


class Once(Trainer):
    """A trainer that notes the model of each training."""

    def __init__(self) -> None:
        super().__init__()
        self.bases: list[bytes] = []

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        self.bases.append(parameters["000/w"].tobytes())
        return super().train(parameters, config)


def final(federation: Federation) -> dict[str, np.ndarray[Any, Any]]:
    return dict(checkpoint.read(federation.run_dir / "final.safetensors").arrays)


class Still(Trainer):
    """A trainer that leaves the tensor 002/f as it is."""

    def train(self, parameters: Any, config: TrainingConfig) -> Any:
        result = super().train(parameters, config)
        result.parameters["002/f"] = parameters["002/f"]
        return result


def with_backbone() -> Parameters:
    return Parameters({**initial(), "002/f": np.linspace(0, 9, 30_000, dtype=np.float32)})


class Run(NamedTuple):
    """The result of one run: counts of messages, bytes as the ledger has them, and the final model."""

    published: Counter[str]
    models: ModelBytes
    down: Traffic
    final: dict[str, np.ndarray[Any, Any]]


def in_both_forms(tmp_path: Path, frozen: bool = False, **downlink: Any) -> list[Run]:
    """Return a run with references and one without. One participant gets all tasks, one after the other, so both are
    the same order of events. Tasks are signed."""
    found = []
    for reference in ("auto", "never"):
        broker = EmbeddedBroker()
        federation = Federation(tmp_path / reference, Topology("p"), lambda name, b=broker: Counting(b, name))
        try:
            model: dict[str, Any] = {}
            if frozen:
                model = {"initial_parameters": with_backbone, "frozen": lambda: ["002/f"]}
            federation.participant(
                "p1", Still() if frozen else None, verify=lambda signed, signature: signature == sign(signed)
            )
            settings = DownlinkSettings(reference=reference, reference_bytes=4096, **downlink)
            run = federation.coordinator(versions=3, buffer_size=4, downlink=settings, sign=sign, **model)
            run.result(DEADLINE_S)
            federation.check(versions=3, updates=12)
            published = federation.transports["coordinator"].published
            with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
                assert declined(federation) == {}
                found.append(Run(published, ledger.bytes_of_models(), ledger.bytes_down(), final(federation)))
        finally:
            federation.close()
    by_reference, whole = found
    for name, array in whole.final.items():
        assert np.array_equal(array, by_reference.final[name])
    assert (whole.published["mark"], whole.models.tasks) == (0, 0)
    return found


def sign(signed: bytes) -> str:
    return hashlib.sha512(signed).hexdigest()


@pytest.mark.parametrize("codec", ["bf16", "hidden"])
def test_coded_models_by_reference_give_the_same_bits(tmp_path: Path, codec: str) -> None:
    by_reference, whole = in_both_forms(tmp_path, codec=codec)
    assert by_reference.published["mark"] == (3 if codec == "bf16" else 1), "a hidden state goes whole once"
    assert by_reference.models.tasks == (12 if codec == "bf16" else 1)
    assert by_reference.published["single"] < whole.published["single"]


def test_a_frozen_part_travels_by_reference_beside_the_rest_and_then_no_more(tmp_path: Path) -> None:
    by_reference, whole = in_both_forms(tmp_path, frozen=True)
    assert (by_reference.published["mark"], by_reference.models.tasks) == (4, 12), "version 0 goes in two forms"
    assert by_reference.published["chunk"] < whole.published["single"] / 2


def test_tasks_of_a_version_refer_to_one_model_and_the_run_has_the_same_bits(tmp_path: Path) -> None:
    (auto, models, down, by_reference), (never, none, down_whole, whole) = in_both_forms(tmp_path)
    assert (auto["mark"], auto["chunk"], auto["single"]) == (3, 3 * CHUNKS, 0)
    assert (never["mark"], never["chunk"], never["single"]) == (0, 0, 12 * CHUNKS)
    assert by_reference.keys() == whole.keys()
    assert (models.tasks, models.sent_bytes * 4) == (12, models.read_bytes)
    assert down.messages == down_whole.messages == 12
    assert abs(down.wire_bytes - down_whole.wire_bytes) < 12 * 1024
    assert (none.tasks, none.sent_bytes) == (0, 0)


class Unable(EmbeddedTransport):
    """A transport that cannot write to the stream: the broker says nack."""

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        if not message.routing_key.endswith(".models"):
            return super().publish(message, timeout_s)
        refused: Future[None] = Future()
        refused.set_exception(PublishRejected("the broker said nack"))
        return refused


class Damaging(Counting):
    """A transport that damages one chunk of the first model."""

    def publish(self, message: Message, timeout_s: float = 30.0) -> Future[None]:
        if message.routing_key.endswith(".models") and self.published["chunk"] == 3:
            message = replace(message, body=bytes(len(message.body)))
        return super().publish(message, timeout_s)


class Deleting(EmbeddedTransport):
    """A participant's transport that finds the stream deleted, the first time that it wants to read it."""

    def __init__(self, broker: EmbeddedBroker, name: str) -> None:
        super().__init__(broker, name)
        self._theirs = broker
        self.deleted = False

    def depth(self, queue: str) -> int:
        if queue.endswith(".models") and not self.deleted:
            self._theirs.delete_queue(queue)
            self.deleted = True
        return super().depth(queue)


def declined(federation: Federation) -> Counter[str]:
    with sqlite3.connect(federation.run_dir / "ledger.sqlite") as db:
        rows = db.execute("SELECT detail FROM tasks WHERE state = 'declined'").fetchall()
    return Counter(detail.partition(":")[0] for (detail,) in rows)


def run_of_four(federation: Federation, versions: int = 3) -> None:
    """Run four participants to the end, and check that each update counts once and the model replays."""
    names = [f"p{number}" for number in range(4)]
    ended = [federation.participant(name) for name in names if name not in federation.transports]
    run = federation.coordinator(versions=versions, buffer_size=4, downlink=REFERENCES)
    assert run.result(DEADLINE_S).version == versions
    assert [one.result(DEADLINE_S) for one in ended] == ["run_finished"] * len(ended)
    federation.check(versions=versions, updates=4 * versions)


@pytest.mark.broker
def test_over_rabbitmq_every_update_of_a_run_with_references_counts_once(amqp_federation: Federation) -> None:
    run_of_four(amqp_federation)
    with LedgerReader(amqp_federation.run_dir / "ledger.sqlite") as ledger:
        models = ledger.bytes_of_models()
    assert models.tasks >= 12
    assert models.sent_bytes < models.read_bytes / 2


def test_a_model_that_cannot_be_published_goes_down_with_each_task(
    tmp_path: Path, broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"coordinator": Unable}
    federation = Federation(tmp_path, Topology("p"), lambda name: kinds.get(name, EmbeddedTransport)(broker, name))
    try:
        run_of_four(federation)
    finally:
        federation.close()
    assert "event=model_not_published version=0" in caplog.text


def test_a_participant_that_does_not_find_the_model_gets_the_next_task_whole(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    kinds = {"coordinator": Counting, "p0": Deleting}
    federation = Federation(tmp_path, Topology("p"), lambda name: kinds.get(name, EmbeddedTransport)(broker, name))
    try:
        run_of_four(federation)
        published = federation.transports["coordinator"].published  # type: ignore[attr-defined]
    finally:
        federation.close()
    assert federation.transports["p0"].deleted  # type: ignore[attr-defined]
    assert declined(federation)["payload_lost"] >= 1
    assert published["single"] >= CHUNKS, "nobody got a whole task"
    assert published["mark"] >= 4, "the model was not published again"


def test_a_damaged_chunk_is_declined_and_trained_by_nobody(tmp_path: Path, broker: EmbeddedBroker) -> None:
    kinds = {"coordinator": Damaging}
    federation = Federation(tmp_path, Topology("p"), lambda name: kinds.get(name, EmbeddedTransport)(broker, name))
    try:
        run_of_four(federation)
    finally:
        federation.close()
    assert declined(federation)["payload_lost"] >= 1


def test_a_participant_with_an_older_fedmq_gets_whole_tasks(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "capabilities", lambda _own: ("int8", "downlink"))
    run_of_four(federation)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        assert ledger.bytes_of_models().tasks == 0


def test_a_download_goes_on_after_a_lost_connection_and_after_a_restart(
    federation: Federation, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost after ten chunks, and the participant stops after twenty."""
    kept: list[int] = []
    keep = Download.keep

    def watched(self: Download, index: int | None, digest: bytes, delivery: Delivery) -> None:
        keep(self, index, digest, delivery)
        if index is not None and self.in_stream:
            kept.append(index)
            if len(kept) == 10:
                assert broker.drop_connections("p0") == 1
            elif len(kept) == 20:
                federation.service("p0").stop()

    monkeypatch.setattr(Download, "keep", watched)
    ended = federation.participant("p0")
    run = federation.coordinator(versions=1, buffer_size=4, downlink=REFERENCES)
    assert ended.result(DEADLINE_S) == "stopped"
    assert len(kept) < 2 * CHUNKS
    federation.participant("p0")
    assert run.result(DEADLINE_S).version == 1
    assert kept[:CHUNKS] == list(range(CHUNKS)), "each chunk was kept once, and in order"
    federation.check(versions=1, updates=4)


def test_the_next_coordinator_publishes_again_and_references_of_the_last_one_hold(federation: Federation) -> None:
    gate = threading.Event()
    trainers = [Once() for _ in range(4)]
    for number, trainer in enumerate(trainers):
        trainer.gate = gate
        federation.participant(f"p{number}", trainer)
    federation.coordinator(versions=2, buffer_size=4, downlink=REFERENCES)
    until(lambda: all(trainer.trainings for trainer in trainers))
    federation.stop_coordinator()
    run = federation.coordinator(versions=2, buffer_size=4, downlink=REFERENCES)
    gate.set()
    assert run.result(DEADLINE_S).version == 2
    federation.check(versions=2, updates=8)
    first = {trainer.bases[0] for trainer in trainers}
    assert first == {initial()["000/w"].tobytes()}


def test_a_standby_takes_over_among_references(federation: Federation) -> None:
    gate = threading.Event()
    trainers = [Once() for _ in range(4)]
    for number, trainer in enumerate(trainers):
        trainer.gate = gate
        federation.participant(f"p{number}", trainer)
    active = federation.coordinator(versions=3, buffer_size=4, downlink=REFERENCES)
    until(lambda: all(trainer.trainings for trainer in trainers))
    first = federation.newest_coordinator
    standby = federation.coordinator(
        versions=3, buffer_size=4, downlink=REFERENCES, connect=lambda: federation.transport("standby")
    )
    first.stop()
    assert active.result(DEADLINE_S).finished is None
    gate.set()
    assert standby.result(DEADLINE_S).version == 3
    federation.check(versions=3, updates=12)


def test_a_stream_of_another_run_with_other_arguments_is_made_anew(
    federation: Federation, broker: EmbeddedBroker
) -> None:
    other = EmbeddedTransport(broker, "other")
    other.open((), (federation.topology.models(123_456, 12_345),), timeout_s=DEADLINE_S)
    other.close()
    run_of_four(federation, versions=2)
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        assert ledger.bytes_of_models().tasks >= 8


def test_one_who_reads_references_and_knows_no_frozen_part_spoils_no_model_for_the_others(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hello is a claim: it may name `reference` and leave out the frozen parts."""
    send = ParticipantPublisher.send_hello

    def sent(self: ParticipantPublisher, hello: Hello) -> None:
        if hello.participant_id == "odd":
            publish_control(self._context, hello)
        else:
            send(self, hello)

    monkeypatch.setattr(ParticipantPublisher, "send_hello", sent)
    for name in ("odd", "p1", "p2"):
        federation.participant(name, Still())
    run = federation.coordinator(
        versions=3, buffer_size=4, downlink=REFERENCES, initial_parameters=with_backbone, frozen=lambda: ["002/f"]
    )
    assert run.result(DEADLINE_S).version == 3
    federation.check(versions=3, updates=12)
    assert declined(federation) == {}
    assert federation.discarded().keys() <= {"run_finished", "task_closed"}
    with LedgerReader(federation.run_dir / "ledger.sqlite") as ledger:
        assert ledger.bytes_of_models().tasks > 0
