"""Messages and hand-made envelopes. `envelope` follows the description of the format with plain msgpack, not our
code."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from fedmq.schemas.messages import (
    AnyMessage,
    Certificate,
    CertificateInstalled,
    CertificateRequest,
    Decline,
    Hello,
    Notice,
    Receipt,
    Task,
    TrainingConfig,
    Update,
)
from fedmq.schemas.parameters import Parameters

UPDATE_FIELDS: dict[str, Any] = {
    "update_id": "u-1", "task_id": "t-1", "run_id": "run", "participant_id": "sensor-1", "base_version": 3,
    "payload": "delta", "num_examples": 10, "num_steps": 2, "metrics": {"loss": 0.5}, "train_s": 1.25,
    "memory": "m-0", "next_memory": "m-1",
}  # fmt: skip
UPDATE = Update(**UPDATE_FIELDS)
TASK = Task(
    task_id="t-1", run_id="run", participant_id="sensor-1", base_version=3, reply="delta", lease_s=60.0,
    training=TrainingConfig(epochs=2, learning_rate=0.1, extra={"on": True, "n": 3, "x": 0.5, "word": "w"}),
)  # fmt: skip
PLAIN_MESSAGES: tuple[AnyMessage, ...] = (
    Hello(participant_id="sensor-1", session_id="s", num_examples=10, task_ids=("t-1", "t-2"), software="fedmq 0.1"),
    Decline(task_id="t-1", run_id="run", participant_id="sensor-1", reason="not_idle", retry_after_s=2.0),
    Receipt(update_id="u-1", task_id="t-1", run_id="run", participant_id="sensor-1", verdict="accepted", version=4),
    Notice(run_id="run", participant_id="sensor-1", event="task_withdrawn", task_id="t-1"),
    CertificateRequest(participant_id="sensor-1", request="-----BEGIN CERTIFICATE REQUEST-----"),
    CertificateInstalled(participant_id="sensor-1", key_id="0123456789abcdef" * 4),
    Certificate(participant_id="sensor-1", verdict="issued", certificate="-----BEGIN CERTIFICATE-----"),
    Update(**(UPDATE_FIELDS | {"payload": "none"})),
)


def small_model() -> Parameters:
    return Parameters(
        {
            "000/kernel": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32),
            "001/bias": np.array([0.5], np.float64),
            "002/count": np.array(7, np.int64),
        },
        {"002/count"},
    )


def entry(name: object, dtype: object, shape: object, trainable: object = True) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape, "trainable": trainable}


def header(**changes: Any) -> dict[str, Any]:
    """Return an update's header without tensors. Fields that are None here are left out."""
    plain = {"fedmq": 1, "kind": "update", "body": UPDATE_FIELDS | {"payload": "none"}} | changes
    return {key: value for key, value in plain.items() if value is not None}


def tensors_header(*entries: object) -> dict[str, Any]:
    return {"fedmq": 1, "kind": "update", "body": UPDATE_FIELDS, "tensors": list(entries)}


def envelope(head: object, blob: bytes = b"", padding: bytes | None = None) -> bytes:
    """Return the three parts as one msgpack array, padded so that the blob starts at a multiple of 64."""
    packed, packed_blob = msgpack.packb(head), msgpack.packb(blob)
    start = 1 + len(packed) + 2 + len(packed_blob) - len(blob)
    if padding is None:
        padding = bytes(-start % 64)
    return b"\x93" + packed + msgpack.packb(padding) + packed_blob
