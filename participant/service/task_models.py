"""The model that a task is to train from, made of what travelled and of the hidden state on disk.

The hidden state of the newest task is one file in the spool. It is there before its task counts as spooled, so that a
restart finds it. If it is lost or damaged, hellos name none, and the next task carries the whole one.
"""

from __future__ import annotations

import numpy as np

from fedmq.broker_config.faults import fault
from fedmq.participant.spool.spool import KeptModel, Spool
from fedmq.schemas.codecs.hidden import applied
from fedmq.schemas.codecs.rounded import wide
from fedmq.schemas.errors import PeerError
from fedmq.schemas.messages import Downlink, HeldModel, Task
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.signing import tensors_digest


class ModelDiffers(Exception):
    """The tensors that the task is to train from cannot be made here."""


def base_of(task: Task, tensors: Parameters, spool: Spool) -> Parameters:
    """Return the tensors to train from, read-only. `tensors` are those that travelled.

    Raises ModelDiffers if they are not those that the task's digest names, and SpoolError.
    """
    order = task.downlink
    if order is None:
        return tensors
    kept = spool.read_model() if order.codec == "hidden" else None
    if kept is not None and kept.held == _held(task, order):
        return _read_only(kept.tensors)
    made = _made(task, order, tensors, kept)
    if tensors_digest(made).hex() != order.digest:
        raise ModelDiffers(f"what was made of version {task.base_version} has another digest than the task names")
    return _read_only(made)


def keep(task: Task, base: Parameters, spool: Spool) -> HeldModel | None:
    """Keep the hidden state of this task, if it has one, and return its name. Raises SpoolError."""
    if task.downlink is None or task.downlink.codec != "hidden":
        return None
    held = _held(task, task.downlink)
    if task.downlink.held == held.version:  # no step: it came from there
        return held
    fault("before-model-kept")
    spool.write_model(KeptModel(held, base), task.run_id)
    fault("model-kept")
    return held


def kept(task: Task, spool: Spool) -> Parameters | None:
    """Return the hidden state on disk if it is this task's; else None. Raises SpoolError."""
    if task.downlink is None or task.downlink.codec != "hidden":
        return None
    found = spool.read_model()
    return _read_only(found.tensors) if found is not None and found.held == _held(task, task.downlink) else None


def _held(task: Task, order: Downlink) -> HeldModel:
    return HeldModel(version=_version(task, order), digest=order.digest)


def _version(task: Task, order: Downlink) -> int:
    """Return the version of the hidden state that the task is to train from."""
    return task.base_version if order.version is None else order.version


def _made(task: Task, order: Downlink, tensors: Parameters, kept: KeptModel | None) -> Parameters:
    if order.codec == "bf16":
        return wide(tensors)
    if order.held is None:
        return tensors
    if kept is None or kept.held.version != order.held:
        has = "none that can be read" if kept is None else f"that of version {kept.held.version}"
        raise ModelDiffers(f"the task has steps from the hidden state of version {order.held}, and here is {has}")
    try:
        return applied(order.step, kept.tensors, tensors, order.held, _version(task, order))
    except PeerError as error:
        raise ModelDiffers(f"the task's steps do not fit the hidden state here: {error}") from error


def _read_only(tensors: Parameters) -> Parameters:
    """Return the tensors, aligned, as arrays that a trainer cannot change: its update is the difference from them."""
    if tensors.block is not None and not tensors.block.flags.aligned:
        tensors = tensors.packed()
    elif not all(array.flags.aligned for array in tensors.values()):
        tensors = tensors.replace({name: np.array(array) for name, array in tensors.items()})
    if tensors.block is not None:
        tensors.block.flags.writeable = False
    for array in tensors.values():
        array.flags.writeable = False
    return tensors
