"""Bytes of a study's messages: whole bodies as a deployment would send them, with headers and padding.

Each update is taken to report one metric. Names differ in length from those of a deployment by a few bytes. Transfers
take the time of the tensors alone, as they always did.
"""

from __future__ import annotations

from fedmq.schemas.codec import encoded_bytes
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.messages import Downlink, Reply, Task, TrainingConfig, Update, Uplink, update_id
from fedmq.schemas.tensors import ModelSpec

_TASK = "57d1e500-1"
_MARK = "0" * 32
"""A memory's mark, as a participant draws it."""


def task_bytes(
    model: ModelSpec,
    reply: Reply,
    training: TrainingConfig,
    uplink: Uplink | None = None,
    downlink: Downlink | None = None,
    *,
    frozen: Frozen | None = None,
) -> int:
    """Return the bytes of a task with a model's tensors, or with those of its steps.

    It names the `frozen` part, if there is one.
    """
    task = Task(
        task_id=_TASK, run_id="study", participant_id="0", base_version=1, reply=reply, training=training, lease_s=1.0,
        uplink=uplink, downlink=downlink, frozen=None if frozen is None else frozen.digest,
    )  # fmt: skip
    return encoded_bytes(task, model)


def update_bytes(
    tensors: ModelSpec, reply: Reply, codec: str | None = None, *, memory: bool = False, next_memory: bool = False
) -> int:
    """Return the bytes of an update with these tensors, which are coded if `codec` names one.

    `memory`: it was made from a memory of the method's or the codec's, and names it. `next_memory`: it leaves one.
    """
    update = Update(
        update_id=update_id("study", _TASK, "0"), task_id=_TASK, run_id="study", participant_id="0", base_version=1,
        payload=reply, num_examples=1000, num_steps=100, metrics={"loss": 0.5}, train_s=1.5, codec=codec,
        memory=_MARK if memory else None, next_memory=_MARK if next_memory else None,
    )  # fmt: skip
    return encoded_bytes(update, tensors)
