"""The whole participant against a scripted coordinator, over the embedded transport."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.broker_config.embedded.transport import EmbeddedBroker, EmbeddedTransport
from fedmq.broker_config.transport import Message
from fedmq.participant.settings import ParticipantSettings
from fedmq.participant.spool.spool import Spool
from fedmq.participant.trainer import TrainResult
from fedmq.schemas.codec import encode
from fedmq.schemas.errors import AppError, SpoolError
from fedmq.schemas.local.clocks import moment_now
from fedmq.schemas.messages import ChunkedPayload, Decline, Hello, Notice, TrainingConfig, Update
from fedmq.schemas.parameters import Parameters
from tests.integration.chunks.federation import until
from tests.integration.participant.conftest import TOPOLOGY, Running
from tests.integration.participant.scripted import BASE, DEADLINE_S, ScriptedCoordinator

Start = Callable[..., Running]


class AddOne:
    """A trainer that adds 1 to every tensor."""

    num_examples = 5

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:
        return TrainResult({n: a + np.float32(1) for n, a in parameters.items()}, 5, 1, {"loss": 0.5})


class Gated(AddOne):
    """A trainer that waits for the test, and fails after `cancel`."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.cancelled = False
        self.trained: list[int] = []

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:
        self.entered.set()
        assert self.go_on.wait(DEADLINE_S)
        if self.cancelled:
            raise RuntimeError("cancelled")
        self.trained.append(config.seed)
        return super().train(parameters, config)

    def cancel(self) -> None:
        self.cancelled = True
        self.go_on.set()


class Raises(AddOne):
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:
        if self.errors:
            raise self.errors.pop(0)
        return super().train(parameters, config)


def spooled(tmp_path: Path) -> list[str]:
    folder = tmp_path / "spool" / "sensor-1"
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.fedmq"))


def test_a_task_comes_back_as_an_update_and_the_run_ends(
    coordinator: ScriptedCoordinator, start: Start, tmp_path: Path
) -> None:
    participant = start(AddOne())
    hello = coordinator.wait_for(Hello)
    assert (hello.num_examples, hello.accepting, hello.task_ids) == (5, True, ())
    task = coordinator.issue()
    decoded = coordinator.wait_for_decoded(Update)
    update = decoded.message
    assert isinstance(update, Update)
    assert decoded.parameters is not None
    assert decoded.parameters["w"].tolist() == [1.0, 1.0]
    assert (update.task_id, update.base_version, update.metrics) == (task.task_id, 3, {"loss": 0.5})
    coordinator.receipt(update)
    coordinator.finish()
    assert participant.wait() == "run_finished"
    assert spooled(tmp_path) == []


def test_a_trainer_that_raises_gives_a_decline_and_the_participant_lives_on(
    coordinator: ScriptedCoordinator, start: Start
) -> None:
    start(Raises(ValueError("no such file: x.csv")))
    coordinator.wait_for(Hello)
    coordinator.issue(1)
    decline = coordinator.wait_for(Decline)
    assert (decline.reason, decline.detail) == ("trainer_error", "ValueError: no such file: x.csv")
    coordinator.issue(2)
    assert coordinator.wait_for(Update).task_id == "task-2"


def test_a_model_that_differs_ends_the_participant_with_the_difference(
    coordinator: ScriptedCoordinator, start: Start
) -> None:
    participant = start(Raises(AppError("'w' is float32[3], expected float32[2]")))
    coordinator.wait_for(Hello)
    coordinator.issue()
    assert coordinator.wait_for(Decline).reason == "unsupported"
    with pytest.raises(AppError, match=r"'w' is float32\[3\]"):
        participant.wait()


def test_a_second_task_is_declined_while_the_first_is_in_training(
    coordinator: ScriptedCoordinator, start: Start
) -> None:
    trainer = Gated()
    start(trainer)
    coordinator.issue(1)
    assert trainer.entered.wait(DEADLINE_S)
    coordinator.issue(2)
    decline = coordinator.wait_for(Decline)
    assert (decline.task_id, decline.reason) == ("task-2", "busy")
    trainer.go_on.set()
    assert coordinator.wait_for(Update).task_id == "task-1"


def test_hellos_go_on_during_a_long_training(coordinator: ScriptedCoordinator, start: Start) -> None:
    trainer = Gated()
    start(trainer, settings=ParticipantSettings(hello_interval_s=0.01))
    coordinator.issue()
    assert trainer.entered.wait(DEADLINE_S)
    for _ in range(2):
        hello = coordinator.wait_for(Hello, lambda h: h.task_ids == ("task-1",))
        assert hello.accepting is False
    trainer.go_on.set()
    coordinator.wait_for(Update)


def test_an_update_finished_while_the_broker_is_away_is_delivered_when_it_is_back(
    coordinator: ScriptedCoordinator, start: Start, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    trainer = Gated()
    start(trainer)
    coordinator.issue()
    assert trainer.entered.wait(DEADLINE_S)
    broker.pause()
    trainer.go_on.set()
    broker.resume()
    assert coordinator.wait_for(Update).task_id == "task-1"
    hello = coordinator.wait_for(Hello, lambda h: h.task_ids == ("task-1",))
    assert hello.participant_id == "sensor-1"


def test_a_redelivered_task_is_trained_once(
    coordinator: ScriptedCoordinator, start: Start, broker: EmbeddedBroker
) -> None:
    trainer = Gated()
    trainer.go_on.set()
    start(trainer)
    coordinator.issue(1, training=TrainingConfig(seed=11))
    coordinator.wait_for(Update)
    coordinator.issue(1, training=TrainingConfig(seed=11))
    coordinator.issue(2, training=TrainingConfig(seed=12))
    coordinator.wait_for(Update, lambda u: u.task_id == "task-2")
    assert trainer.trained == [11, 12]


def test_a_task_on_disk_is_trained_by_the_next_process(
    coordinator: ScriptedCoordinator, start: Start, tmp_path: Path
) -> None:
    trainer = Gated()
    first = start(trainer)
    coordinator.issue()
    assert trainer.entered.wait(DEADLINE_S)
    assert first.stop() == "stopped"
    assert spooled(tmp_path) == ["task.fedmq"]
    old_session = coordinator.wait_for(Hello).session_id
    start(AddOne())
    assert coordinator.wait_for(Update).task_id == "task-1"
    assert coordinator.wait_for(Hello, lambda h: h.session_id != old_session).task_ids == ("task-1",)


def test_an_update_in_the_outbox_is_sent_by_the_next_process(
    coordinator: ScriptedCoordinator, start: Start, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    first = start(AddOne())
    coordinator.wait_for(Hello)
    broker.withhold_confirms("sensor-1")
    coordinator.issue()
    earlier = coordinator.wait_for(Update)
    broker.pause()
    assert first.stop() == "stopped"
    assert spooled(tmp_path) == [f"outbox/{earlier.update_id}.fedmq"]
    broker.resume()
    start(Raises(AssertionError("it must not be trained again")))
    again = coordinator.wait_for(Update)
    assert again == earlier


def test_an_old_task_on_disk_is_declined(coordinator: ScriptedCoordinator, start: Start, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "sensor-1")
    now = moment_now()
    long_ago = type(now)(now.wall_s - 5000.0, now.boot_s - 5000.0, "an earlier boot")
    spool.write_task(encode(coordinator.task(lease_s=600.0), BASE), long_ago)
    spool.close()
    start(AddOne())
    assert coordinator.wait_for(Decline).reason == "lease_over"
    assert spooled(tmp_path) == []


def test_a_damaged_spool_does_not_keep_a_participant_from_starting(
    coordinator: ScriptedCoordinator, start: Start, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool", "sensor-1")
    spool.write_task(b"whole on disk, but no message", moment_now())
    spool.close()
    (tmp_path / "spool" / "sensor-1" / "outbox" / "u1.fedmq").write_bytes(b"torn")
    start(AddOne())
    assert coordinator.wait_for(Hello).task_ids == ()
    coordinator.issue()
    assert coordinator.wait_for(Update).task_id == "task-1"
    assert len(list((tmp_path / "spool" / "sensor-1" / "set-aside").iterdir())) == 2


def test_two_processes_with_one_id_are_refused(coordinator: ScriptedCoordinator, start: Start) -> None:
    start(AddOne())
    coordinator.wait_for(Hello)
    with pytest.raises(SpoolError, match="in use by another process"):
        start(AddOne()).wait()


def test_a_disk_that_refuses_the_task_gives_a_decline(
    coordinator: ScriptedCoordinator, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise SpoolError("cannot write task.fedmq: No space left on device")

    monkeypatch.setattr(Spool, "write_task", refuse)
    start(AddOne())
    coordinator.issue()
    decline = coordinator.wait_for(Decline)
    assert decline.reason == "not_idle"
    assert "No space left on device" in decline.detail


def test_conditions_that_do_not_hold_decline_and_an_accepting_hello_follows_when_they_do(
    coordinator: ScriptedCoordinator, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmq.participant.service.service.FRESH_CONDITIONS_S", 0.0)
    monkeypatch.setattr("fedmq.participant.service.service.CONDITIONS_INTERVAL_S", 0.0)
    unmet: list[str | None] = ["on battery"]
    start(AddOne(), conditions=lambda: unmet[0])
    assert coordinator.wait_for(Hello).accepting is False
    coordinator.issue()
    decline = coordinator.wait_for(Decline)
    assert (decline.reason, decline.detail, decline.retry_after_s) == ("not_idle", "on battery", 60.0)
    unmet[0] = None
    assert coordinator.wait_for(Hello, lambda h: h.accepting).task_ids == ()
    coordinator.issue(2)
    assert coordinator.wait_for(Update).task_id == "task-2"


def test_bad_messages_are_acked_and_the_participant_goes_on(
    coordinator: ScriptedCoordinator, start: Start, broker: EmbeddedBroker
) -> None:
    start(AddOne())
    coordinator.wait_for(Hello)
    coordinator.send_bytes(b"\xc1 not msgpack")
    coordinator.send(Hello(participant_id="x", session_id="x", num_examples=1))
    coordinator.issue()
    coordinator.wait_for(Update)
    own = TOPOLOGY.participant("sensor-1").name
    assert (coordinator.transport.depth(own), broker.unsettled(own)) == (0, 0)
    assert coordinator.transport.depth(TOPOLOGY.dead.name) == 0


def test_a_task_that_cannot_be_read_is_declined_by_the_ids_beside_its_body(
    coordinator: ScriptedCoordinator, start: Start
) -> None:
    start(AddOne())
    coordinator.wait_for(Hello)
    coordinator.send_bytes(b"\xc1", task_id="task-7", run_id="run-1")
    decline = coordinator.wait_for(Decline)
    assert (decline.task_id, decline.run_id, decline.reason) == ("task-7", "run-1", "unreadable")
    assert decline.detail.startswith("malformed: ")


@pytest.mark.parametrize(("task_id", "run_id"), [(None, "run-1"), ("task 7", "run-1"), ("task-7", None)])
def test_a_bad_message_that_names_no_task_is_only_logged(
    coordinator: ScriptedCoordinator, start: Start, task_id: str | None, run_id: str | None
) -> None:
    start(AddOne())
    coordinator.wait_for(Hello)
    coordinator.send_bytes(b"\xc1", task_id=task_id, run_id=run_id)
    coordinator.send_bytes(b"\xc1", task_id="task-8", run_id="run-1")
    assert coordinator.wait_for(Decline).task_id == "task-8"


def test_a_task_for_somebody_else_is_left_alone(coordinator: ScriptedCoordinator, start: Start) -> None:
    start(AddOne())
    coordinator.wait_for(Hello)
    coordinator.issue(1, participant_id="sensor-2")
    coordinator.issue(2)
    assert coordinator.wait_for(Update).task_id == "task-2"
    assert coordinator.transport.depth(TOPOLOGY.participant("sensor-1").name) == 0


def test_a_withdrawn_task_is_not_sent(coordinator: ScriptedCoordinator, start: Start, tmp_path: Path) -> None:
    trainer = Gated()
    start(trainer)
    coordinator.issue(1)
    assert trainer.entered.wait(DEADLINE_S)
    coordinator.send(
        Notice(run_id="run-1", participant_id="sensor-1", event="task_withdrawn", task_id="task-1", detail="too late")
    )
    coordinator.wait_for(Hello, lambda h: h.accepting and h.task_ids == ())
    assert trainer.go_on.wait(DEADLINE_S)
    coordinator.send(Notice(run_id="run-1", participant_id="sensor-1", event="say_hello"))
    coordinator.wait_for(Hello, lambda h: h.accepting and h.task_ids == ())
    assert spooled(tmp_path) == []


def test_an_update_that_is_larger_than_any_payload_may_be_is_declined(
    coordinator: ScriptedCoordinator, start: Start
) -> None:
    class Grows(AddOne):
        def train(self, parameters: Parameters, config: TrainingConfig) -> TrainResult:
            return TrainResult(dict(parameters), 5, 1, {"m" * 30 + str(i): 0.5 for i in range(20)})

    task_bytes = len(encode(coordinator.task(), BASE))
    start(Grows(), max_payload_bytes=task_bytes + 8)
    coordinator.issue()
    decline = coordinator.wait_for(Decline)
    assert decline.reason == "unsupported"
    assert "max_payload_bytes" in decline.detail


def test_an_evaluation_sends_metrics_and_no_tensors(coordinator: ScriptedCoordinator, start: Start) -> None:
    class Evaluates(AddOne):
        def evaluate(self, parameters: Parameters) -> dict[str, float]:
            return {"mean": float(parameters["w"].mean())}

    start(Evaluates())
    coordinator.issue(work="evaluate")
    update = coordinator.wait_for(Update)
    assert (update.payload, update.metrics) == ("none", {"mean": 1.5})


def test_a_task_in_chunks_that_comes_while_leaving_goes_back_with_its_payload(
    broker: EmbeddedBroker, coordinator: ScriptedCoordinator, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Gated()
    running = start(trainer)
    coordinator.issue(1)
    assert trainer.entered.wait(DEADLINE_S)
    broker.withhold_confirms("sensor-1")
    trainer.go_on.set()
    coordinator.wait_for(Update)
    running.service.stop()  # it waits for the confirm
    chunks = ChunkedPayload(payload_id="two", num_bytes=2048, chunk_bytes=1024, count=2, digest="0" * 64)
    payload = TOPOLOGY.download("sensor-1", "two")
    coordinator.transport.declare(payload).result(DEADLINE_S)
    with caplog.at_level("INFO"):
        coordinator.send(coordinator.task(2, chunks=chunks))
        until(lambda: "task_received participant=sensor-1 task=task-2" in caplog.text)
    broker.drop_connections("sensor-1")
    assert running.wait() == "stopped"
    assert coordinator.transport.depth(TOPOLOGY.participant("sensor-1").name) == 1
    assert payload.name in broker.queue_names


@pytest.mark.parametrize("user", ["mallory", None])
def test_a_stranger_gives_no_orders_and_is_told_nothing(
    broker: EmbeddedBroker, coordinator: ScriptedCoordinator, start: Start, user: str | None
) -> None:
    trainer = Gated()
    trainer.go_on.set()
    running = start(trainer, coordinator_user="guest")
    coordinator.wait_for(Hello)
    stranger = EmbeddedTransport(broker, "stranger", user)
    stranger.open((), ())
    queue = TOPOLOGY.participant("sensor-1")
    forged = coordinator.task(7, training=TrainingConfig(seed=7))
    chunks = ChunkedPayload(payload_id="two", num_bytes=2048, chunk_bytes=1024, count=2, digest="0" * 64)
    lies = [
        encode(forged, BASE),
        encode(forged.model_copy(update={"chunks": chunks})),
        encode(Notice(run_id="run-1", participant_id="sensor-1", event="run_finished")),
        b"noise",
    ]
    for body in lies:
        stranger.publish(Message(queue.exchange, queue.routing_key, body, message_id="m")).result(DEADLINE_S)
    stranger.close()
    task = coordinator.task(1, training=TrainingConfig(seed=1))
    coordinator.send(task, BASE)
    assert coordinator.wait_for(Update).task_id == "task-1"
    assert trainer.trained == [1]
    assert running.service._strangers.count == len(lies)
    assert coordinator.transport.depth(TOPOLOGY.dead.name) == 0
    coordinator.finish()
    assert running.wait() == "run_finished"
    assert not [decoded for decoded in coordinator._unread if isinstance(decoded.message, Decline)]
