"""The decoding of updates: a few bytes may decode to a whole model, so only those of open tasks are decoded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedmq.broker_config.transport import Delivery
from fedmq.coordinator.decisions.commands import Discard, IssueTask
from fedmq.coordinator.decisions.events import PoisonArrived, UpdateArrived
from fedmq.coordinator.service.incoming.update_reader import read_update
from fedmq.coordinator.strategies import FedBuff
from fedmq.schemas.codec import Limits, encode
from fedmq.schemas.codecs.bf16 import Bf16
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.messages import Update, Uplink, update_id
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from tests.unit.coordinator.decisions.harness import Bench, only

MODEL = Parameters({"w": np.zeros(2, np.float32)})
WIRE = Wire(Bf16(), False, spec_of(MODEL))
NOBODY_JUDGED: Any = SimpleNamespace(
    unnamed=lambda _user: None, fault=lambda *_: None, fault_of_unreadable=lambda _user: None
)


class Counts:
    """A wire that counts what it decodes."""

    def __init__(self) -> None:
        self.decoded = 0
        self.name = WIRE.codec.name

    def of(self, _base_version: int) -> Counts:
        return self

    def decode(self, coded: Parameters) -> Parameters:
        self.decoded += 1
        return WIRE.decode(coded)


def update_of(task: IssueTask, **fields: Any) -> Update:
    known = {
        "update_id": update_id("run", task.task_id, task.participant_id), "task_id": task.task_id, "run_id": "run",
        "participant_id": task.participant_id, "base_version": 0, "payload": "delta", "codec": "bf16",
        "num_examples": 1, "num_steps": 1, "train_s": 0.0,
    }  # fmt: skip
    return Update(**(known | fields))


def read(bench: Bench, update: Update, wire: Counts, tensors: Parameters | None = None) -> Any:
    body = encode(update, WIRE.encode(MODEL, 0, None, {}).tensors if tensors is None else tensors)
    delivery = Delivery("updates", body, "m", update.task_id, "a", {}, False, 0, "token")
    return read_update(bench.core, NOBODY_JUDGED, Limits(), 0, delivery, cast(Wire, wire))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"task_id": "abcdef01-99"}, "unknown_task"),
        ({"run_id": "other"}, "wrong_run"),
        ({"participant_id": "b"}, "unknown_participant"),
        ({"base_version": 7}, "wrong_base_version"),
        ({"payload": "parameters"}, "wrong_payload"),
        ({"update_id": "f" * 32}, "malformed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_coded_update_that_nobody_awaits_is_discarded_and_never_decoded(fields, reason) -> None:
    bench, wire = Bench(FedBuff(buffer_size=2), uplink=Uplink(codec="bf16")), Counts()
    task = only(IssueTask, bench.hello("a", codecs=("bf16",)))
    event = read(bench, update_of(task, **fields), wire)
    assert isinstance(event, UpdateArrived)
    assert wire.decoded == 0
    assert only(Discard, bench.step(event)).reason == reason


def test_each_task_has_one_update_decoded_and_not_its_copies() -> None:
    bench, wire = Bench(FedBuff(buffer_size=2), concurrency=1, uplink=Uplink(codec="bf16")), Counts()
    task = only(IssueTask, bench.hello("a", codecs=("bf16",)))
    for times in range(3):
        event = read(bench, update_of(task), wire)
        assert isinstance(event, UpdateArrived)
        assert event.payload.num_bytes == (0 if times else 8)
        bench.step(event._replace(closed_task=bench.closed(task.task_id)))
    assert (wire.decoded, bench.core.accepted) == (1, 1)


def test_one_that_is_awaited_and_cannot_be_decoded_closes_its_task() -> None:
    bench, wire = Bench(FedBuff(buffer_size=2), uplink=Uplink(codec="bf16")), Counts()
    task = only(IssueTask, bench.hello("a", user="a", codecs=("bf16",)))
    event = read(bench, update_of(task), wire, Parameters({"coded:value": np.zeros(3, np.uint8)}))
    assert isinstance(event, PoisonArrived)
    assert (event.reason, event.task_id, wire.decoded) == ("wrong_shape", task.task_id, 1)


def test_names_of_codecs_that_nobody_knows_are_not_kept() -> None:
    bench = Bench(uplink=Uplink(codec="own"))
    names = ("own", "topk", "downlink", *(f"{'x' * 60}{i}" for i in range(50)), "zstd")
    bench.hello("a", codecs=names)
    bench.hello("a", codecs=names)
    assert set(bench.commit().participants["a"].codecs) == {"own", "topk", "downlink", "zstd"}
