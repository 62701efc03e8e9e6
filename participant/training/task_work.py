"""One task from parameters to update: call the trainer, check its result, make the payload.

delta = local - base, over the model's floating-point tensors, in the tensor's own dtype. For float16 and bfloat16 the
subtraction is done in float32. `participant.training.methods` has the payloads and memories of the other methods.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmq.participant.memory import Memory
from fedmq.participant.trainer import TrainResult, checked_result, keeps
from fedmq.participant.training.methods import (
    Start,
    begin,
    make,
    method_memory,
    takes_correction,
)
from fedmq.participant.training.uplink import Coder, coder_of
from fedmq.schemas.codecs.codec import Codec
from fedmq.schemas.errors import (
    AppError,
    MissingExtra,
    NotFinite,
    Overflow,
    PeerError,
    SpecMismatch,
    TrainerError,
    in_short,
    shown,
)
from fedmq.schemas.frozen import Frozen
from fedmq.schemas.local.event_log import EventLog
from fedmq.schemas.messages import DeclineReason, Task, Update, update_id
from fedmq.schemas.methods import has_memory
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.redaction import redacted
from fedmq.schemas.tensors import check_magnitudes, check_spec, spec_of

log = EventLog(__name__)

MAX_METRICS = 64
MAX_METRIC_NAME = 64


class TaskFailed(Exception):
    """A task that ends in a decline. `fatal`: the app does not fit the federation, so no later task can fare better."""

    def __init__(self, reason: DeclineReason, detail: str, fatal: bool = False) -> None:
        super().__init__(detail)
        self.reason: DeclineReason = reason
        self.detail = redacted(detail)
        self.fatal = fatal


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """A finished task."""

    update: Update
    payload: Parameters | None
    """Tensors of the update; None for an evaluation."""
    next_memory: Memory | None = None
    """The method's memory once the update is accepted; None if the method has none."""


def do_task(
    trainer: Any,
    task: Task,
    tensors: Parameters,
    clock: Callable[[], float],
    memory: Memory | None = None,
    *,
    was_cancelled: Callable[[], bool] = lambda: False,
    own_codec: Codec | None = None,
    frozen: Frozen | None = None,
    own_folder: Path | None = None,
) -> FinishedTask:
    """Do a task, and return its update and payload. `memory` is the method's or the codec's memory of the run,
    `own_codec` the codec of the federation's own file, and `own_folder` the folder for what the trainer keeps itself.
    `frozen` is the part of the model that the tensors lack.

    `was_cancelled` says that the trainer was asked to stop: then its error is no fault that anybody must look into.
    Raises TaskFailed and nothing else.
    """
    started = clock()
    mark = uuid.uuid4().hex if has_memory(task) else None
    try:
        start = begin(task.reply, tensors, method_memory(task.reply, memory))
        if own_folder is not None and keeps(trainer):
            trainer.keep_in(own_folder)
        if task.work == "evaluate":
            whole = start.parameters if frozen is None else frozen.join(start.parameters)
            return FinishedTask(_evaluated(trainer, task, whole, clock, started), None)
        check_magnitudes(start.parameters)  # no training from there could be sent
        coder = _coder(task, start, memory, own_codec)
        result = _train(trainer, task, start, frozen)

        def code(update: Parameters) -> Parameters:
            _check_finite(update)
            if coder is None:
                return update
            try:
                received = coder.code(update)
            except MissingExtra as error:
                raise TaskFailed("unsupported", str(error)) from error
            _check_finite(received)  # the receiver looks at the decoded tensors, and refuses them
            return received

        made = make(task.reply, start, result.parameters, result.num_steps, task.training, code)
        update = _update(
            task,
            payload=task.reply,
            codec=None if coder is None else coder.name,
            memory=None if memory is None else memory.mark,
            next_memory=mark,
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            metrics=result.metrics,
            train_s=clock() - started,
        )
    except TaskFailed:
        raise
    except AppError as error:
        raise TaskFailed("unsupported", str(error), fatal=True) from error
    except PeerError as error:  # the task's tensors do not go together: the trainer has not seen them
        raise TaskFailed("unreadable", f"{error.reason}: {error}") from error
    except (Exception, SystemExit) as error:
        if was_cancelled():
            log.info("training_cancelled", task=task.task_id, detail=in_short(error))
        else:
            log.exception("trainer_error", task=task.task_id)
        raise TaskFailed("trainer_error", in_short(error)) from error
    left = made.next_memory if coder is None or made.next_memory is not None else coder.next_memory()
    next_memory = None if left is None or mark is None else Memory(mark, left, coder is not None and coder.remembers)
    return FinishedTask(update, made.tensors if coder is None else coder.coded, next_memory)


def _coder(task: Task, start: Start, memory: Memory | None, own_codec: Codec | None) -> Coder | None:
    """Return the codec at work on this task's update; None if the plain tensors are asked for."""
    if task.uplink is None:
        return None
    try:
        return coder_of(task.uplink, task.reply, spec_of(start.parameters), task.training.seed, memory, own_codec)
    except (MissingExtra, TrainerError) as error:  # it is not the trainer's: no traceback helps
        raise TaskFailed("unsupported", str(error)) from error


def _train(trainer: Any, task: Task, start: Start, frozen: Frozen | None) -> TrainResult:
    """Train, and return the result without the frozen part. Raises AppError if the trainer changed that."""
    if frozen is None:
        return plain_result(start.parameters, _called(trainer, task, start, start.parameters))
    base = frozen.join(start.parameters)
    result = plain_result(base, _called(trainer, task, start, base))
    changed = frozen.changed_in(result.parameters)
    if changed is not None:
        raise AppError(
            f"the training changed the tensor {shown(changed)}, which is frozen in this federation and is never sent: "
            "freeze it in this app as the coordinator's app does, or unfreeze it in both and start a new run"
        )
    return replace(result, parameters=frozen.cut(Parameters(result.parameters, base.non_trainable)))


def _called(trainer: Any, task: Task, start: Start, base: Parameters) -> Any:
    if start.correction is None:
        return trainer.train(base, task.training)
    if not takes_correction(trainer):
        raise TaskFailed("unsupported", f"{type(trainer).__name__}.train has no argument `correction` ({task.reply})")
    return trainer.train(base, task.training, correction=start.correction)


def plain_result(base: Parameters, returned: Any) -> TrainResult:
    """Return what a `train` from these parameters returned, as arrays and numbers of plain types.

    Raises TrainerError if the trainer protocol does not allow it.
    """
    result = checked_result(returned)
    return TrainResult(
        _checked(base, result.parameters),
        num_examples=_count(result.num_examples, "num_examples", at_least=1),
        num_steps=_count(result.num_steps, "num_steps", at_least=0),
        metrics=plain_metrics(result.metrics),
    )


def _checked(base: Parameters, returned: Any) -> Parameters:
    if not isinstance(returned, Mapping):
        raise TrainerError(f"train returned parameters as {type(returned).__name__}, expected a mapping name -> array")
    arrays = {name: np.asarray(array) for name, array in returned.items()}
    in_order = {name: arrays[name] for name in base if name in arrays} | arrays
    local = Parameters(in_order, base.non_trainable & arrays.keys())
    try:
        check_spec(local, spec_of(base))
    except (SpecMismatch, AppError) as error:
        raise TrainerError(f"train returned other tensors than it was given: {error}") from None
    return local


def _check_finite(payload: Parameters) -> None:
    try:
        check_magnitudes(payload)
    except (NotFinite, Overflow) as error:
        raise TrainerError(
            f"the trained parameters are not finite, or far too large: {error}. A lower learning_rate may help"
        ) from None


def _evaluated(trainer: Any, task: Task, parameters: Parameters, clock: Callable[[], float], started: float) -> Update:
    evaluate = getattr(trainer, "evaluate", None)
    if evaluate is None:
        raise TaskFailed("unsupported", f"{type(trainer).__name__} has no evaluate method")
    try:
        metrics = plain_metrics(evaluate(parameters))
    except NotImplementedError as error:
        raise TaskFailed("unsupported", str(error)) from error
    num_examples = max(int(getattr(trainer, "num_examples", 0) or 0), 1)
    return _update(
        task, payload="none", num_examples=num_examples, num_steps=0, metrics=metrics, train_s=clock() - started
    )


def _update(task: Task, **fields: Any) -> Update:
    return Update(
        update_id=update_id(task.run_id, task.task_id, task.participant_id),
        task_id=task.task_id,
        run_id=task.run_id,
        participant_id=task.participant_id,
        base_version=task.base_version,
        **fields,
    )


def _count(value: Any, name: str, at_least: int) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = -1
    if count < at_least:
        raise TrainerError(f"train returned {name}={shown(value)}, expected an integer of at least {at_least}")
    return count


def plain_metrics(returned: Any) -> dict[str, float]:
    """Return finite scalars by short names. A metric that no message may carry is left out, and the log says so."""
    if not isinstance(returned, Mapping):
        raise TrainerError(f"metrics are {type(returned).__name__}, expected a mapping name -> number")
    kept: dict[str, float] = {}
    for name, value in returned.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number) and len(str(name)) <= MAX_METRIC_NAME and len(kept) < MAX_METRICS:
            kept[str(name)] = number
        else:
            log.warning("metric_left_out", name=shown(name), value=shown(value))
    return kept
