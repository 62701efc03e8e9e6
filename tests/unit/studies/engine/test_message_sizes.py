"""The bytes that a study counts are those of the messages that a deployment sends."""

import numpy as np
import pytest

from fedmq.schemas.codec import encode
from fedmq.schemas.codecs.known import codec_of
from fedmq.schemas.codecs.wire import Wire
from fedmq.schemas.messages import Task, TrainingConfig, Update, Uplink, update_id
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import spec_of
from fedmq.studies.engine.message_sizes import task_bytes, update_bytes

TENSORS = Parameters({"w": np.linspace(-1, 1, 1001, dtype=np.float32).reshape(7, 143), "b": np.ones(3, np.float32)})
"""The second tensor has padding before it."""


def update(codec: str | None = None) -> Update:
    return Update(
        update_id=update_id("study", "57d1e500-7", "4"), task_id="57d1e500-7", run_id="study", participant_id="4",
        base_version=3, payload="delta", num_examples=1200, num_steps=38, metrics={"loss": 0.25}, train_s=0.7,
        codec=codec,
    )  # fmt: skip


@pytest.mark.parametrize("codec", [None, "bf16", "int8", "int4", "topk", "powersgd"])
def test_an_update_has_the_bytes_of_its_message(codec):
    sent = TENSORS
    if codec is not None:
        coder = codec_of(Uplink(codec=codec))
        sent = Wire(coder, False, spec_of(TENSORS)).encode(TENSORS, 1, None, {}).tensors
    assert update_bytes(spec_of(sent), "delta", codec) == len(encode(update(codec), sent))


def test_an_update_with_a_memory_has_the_bytes_of_its_marks():
    marks = {"memory": "1" * 32, "next_memory": "f" * 32}
    for given in ({}, {"next_memory": "f" * 32}, marks):
        sent = encode(update().model_copy(update=given), TENSORS)
        assert update_bytes(spec_of(TENSORS), "delta", **dict.fromkeys(given, True)) == len(sent)


def test_a_task_has_the_bytes_of_its_message():
    training, uplink = TrainingConfig(learning_rate=0.1), Uplink(codec="topk")
    task = Task(
        task_id="57d1e500-7", run_id="study", participant_id="4", base_version=3, reply="delta", training=training,
        lease_s=60.0, uplink=uplink,
    )  # fmt: skip
    assert task_bytes(spec_of(TENSORS), "delta", training, uplink) == len(encode(task, TENSORS))
    assert task_bytes(spec_of(TENSORS), "delta", training) < len(encode(task, TENSORS)), "the order takes a few"
